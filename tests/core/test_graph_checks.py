"""A stage waits for its checks where they run too, reads nothing of them, and has them in no key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bam_core.errors import UsageError
from bam_core.graph.key import pipeline_keys
from bam_core.graph.plan import Decision, Facts, plan
from bam_core.graph.record import Record
from bam_core.graph.schedule import Schedule
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline, Stage
from bam_core.protocols import LeaseInfo

STAGES = (
    Stage("data", "data", 1, {}),
    Stage("overlap", "overlap", 1, {}, {"data": "data"}),
    Stage("seed", "seed", 1, {}, {"data": "data"}, checks=("overlap",)),
    Stage("report", "report", 1, {}, {"overlap": "overlap", "seed": "seed"}),
)
PIPELINE = Pipeline("p", STAGES)
KEYS = pipeline_keys(PIPELINE)


def decide(*done: str, held: str = "", selection: Selection | None = None) -> dict[str, Decision]:
    """done: stages whose artifacts are there. held: a stage that another run makes."""
    facts = {name: Facts(_record(name) if name in done else None) for name in KEYS}
    if held:
        facts[held] = replace(facts[held], lease=LeaseInfo("host:7", 12.0))
    decisions = plan(PIPELINE, KEYS, facts, selection or Selection(), now=0.0)
    return {decision.stage: decision for decision in decisions}


def _record(name: str) -> Record:
    inputs = {role: _record(parent).ref for role, parent in PIPELINE[name].inputs.items()}
    return Record(name, KEYS[name], {}, inputs, (), f"bytes of {name}", {}, {}, 0.0, 1.0, 1)


def test_a_check_is_in_no_key() -> None:
    without = Pipeline("p", tuple(replace(stage, checks=()) for stage in STAGES))
    assert pipeline_keys(without) == KEYS


def test_a_check_must_come_before_what_it_checks() -> None:
    with pytest.raises(UsageError, match="no earlier stage is named 'overlap', which checks it"):
        Pipeline("p", (STAGES[0], STAGES[2], STAGES[1]))


def test_a_stage_that_runs_waits_for_a_check_that_runs() -> None:
    assert decide()["seed"].after == ("data", "overlap")
    assert decide("data")["seed"].after == ("overlap",)
    assert decide("data", "overlap")["seed"].after == ()
    assert decide("data", held="overlap")["seed"].after == ("overlap",)


def test_a_stage_that_is_done_is_reused_whatever_its_check_does() -> None:
    decided = decide("data", "seed")
    assert (decided["seed"].action, decided["seed"].after) == ("reuse", ())
    assert decided["overlap"].action == "run"
    assert decided["report"].after == ("overlap",)


@pytest.mark.parametrize("selection", [Selection(only=("seed",)), Selection(until=("seed",))])
def test_a_check_that_is_not_asked_for_is_not_waited_for(selection: Selection) -> None:
    decided = decide("data", selection=selection)
    assert "overlap" not in decided
    assert (decided["seed"].action, decided["seed"].after) == ("run", ())


def test_a_check_that_fails_stops_what_it_checks_also_where_branches_go_on() -> None:
    decisions = list(decide("data").values())
    schedule = Schedule(PIPELINE, decisions, max_parallel=2, fail_fast=False)
    assert [stage.name for stage in schedule.startable()] == ["overlap"]
    schedule.started("overlap")
    assert schedule.startable() == []
    assert schedule.failed("overlap") == ["seed", "report"]
    assert schedule.finished
