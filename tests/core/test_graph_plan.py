"""(records, leases, selection) -> decisions, as tables. A stage is written `action cause: reason`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given as drawn

from bam_core.graph.key import pipeline_keys, stage_payload
from bam_core.graph.plan import Decision, Facts, plan, rebuilt_input
from bam_core.graph.record import InputRef, Record
from bam_core.graph.schedule import Schedule
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline, Stage
from bam_core.protocols import LeaseInfo

NOW = 1000.0
STAGES = (
    Stage("tokenizer", "tokenizer", 1, {"vocab_size": 64}),
    Stage("data.law", "data", 1, {"sources": {"law": {"digest": "1" * 64}}}, {"tokenizer": "tokenizer"}),
    Stage("data.math", "data", 1, {"sources": {"math": {"digest": "2" * 64}}}, {"tokenizer": "tokenizer"}),
    Stage("seed", "seed", 1, {"phase": {"lr": 0.01}}, {"data.law": "data.law", "data.math": "data.math"}),
    Stage("expert.law", "expert", 1, {"phase": {"lr": 0.001}}, {"seed": "seed", "data": "data.law"}),
    Stage("expert.math", "expert", 1, {"phase": {"lr": 0.001}}, {"seed": "seed", "data": "data.math"}),
    Stage("mix.bam", "mix", 1, {}, {"seed": "seed", "expert.law": "expert.law", "expert.math": "expert.math"}),
    Stage("report", "report", 1, {}, {"mix.bam": "mix.bam"}),
)
NAMES = [stage.name for stage in STAGES]
PIPELINE = Pipeline("p", STAGES)


def pipeline(**changes: dict[str, Any]) -> Pipeline:
    """The pipeline with some stages changed; `__` stands for the dot of a stage's name."""
    named = {name.replace("__", "."): change for name, change in changes.items()}
    return Pipeline("p", tuple(replace(stage, **named.get(stage.name, {})) for stage in STAGES))


def made(stage: Stage, keys: dict[str, str], digests: dict[str, str]) -> Record:
    inputs = {role: InputRef(name, keys[name], digests[name]) for role, name in stage.inputs.items()}
    payload = stage_payload(stage, {role: ref.key for role, ref in inputs.items()})
    return Record(
        stage=stage.name,
        key=keys[stage.name],
        payload=payload,
        inputs=inputs,
        outputs=(),
        digest=digests[stage.name],
        metrics={},
        provenance={},
        started=1.0,
        ended=2.0,
        attempt=1,
    )


@dataclass
class World:
    """What a store holds: every stage of PIPELINE made, but for what a test takes away or adds."""

    records: dict[str, Record]
    damaged: dict[str, str]
    leases: dict[str, LeaseInfo]

    def facts(self, pipe: Pipeline, keys: dict[str, str]) -> dict[str, Facts]:
        facts = {}
        for stage in pipe:
            record = self.records.get(stage.name)
            current = record if record is not None and record.key == keys[stage.name] else None
            broken = self.damaged.get(stage.name)
            facts[stage.name] = Facts(
                record=None if broken else current,
                damaged=broken,
                lease=self.leases.get(stage.name),
                previous=None if current else record,
            )
        return facts


def world(*, without: str = "", damaged: dict[str, str] | None = None, leases: str = "", rebuilt: str = "") -> World:
    """rebuilt: stages whose artifact now has other bytes than their consumers read."""
    keys = pipeline_keys(PIPELINE)
    records = {stage.name: made(stage, keys, {name: f"bytes of {name}" for name in NAMES}) for stage in STAGES}
    for name in rebuilt.split():
        records[name] = replace(records[name], digest="other bytes")
    for name in without.split():
        del records[name]
    return World(records, damaged or {}, {name: LeaseInfo("host:7", NOW + 12.4) for name in leases.split()})


def decide(
    pipe: Pipeline, there: World, selection: Selection, given: dict[tuple[str, str], Record] | None = None
) -> list[Decision]:
    overrides = {place: record.key for place, record in (given or {}).items()}
    keys = pipeline_keys(pipe, overrides)
    return plan(pipe, keys, there.facts(pipe, keys), selection, now=NOW, given=given, recipe="quickstart")


def told(decisions: list[Decision]) -> dict[str, str]:
    """What is not plainly reused."""
    lines = {d.stage: f"{d.action} {d.cause}: {d.reason}" for d in decisions}
    return {stage: line for stage, line in lines.items() if line != "reuse none: done"}


NEVER = "run missing: never made"
LEASE = "wait lease: held by host:7 for 12 s more"
FILE = "output model.safetensors is missing"
DAMAGE = {"mix.bam": f"mix.bam@{pipeline_keys(PIPELINE)['mix.bam'][:12]}: {FILE}"}
UNSELECTED = "blocked not selected: never made, and not selected"
MAKES_SEED = "`bam run quickstart --until seed` makes it"
NEEDS_SEED = f"blocked input: needs seed, which is not done and not selected: {MAKES_SEED}"
BELOW_MATH = {"mix.bam": "run input: expert.math runs", "report": "run input: mix.bam runs"}
FORCED_MATH = {"expert.math": "run forced: forced by --force"}

TABLE: dict[str, tuple[World, Selection, dict[str, str]]] = {
    "an empty store": (world(without=" ".join(NAMES)), Selection(), dict.fromkeys(NAMES, NEVER)),
    "all is done": (world(), Selection(), {}),
    "forced, and what is below": (world(), Selection(force=("expert.math",)), FORCED_MATH | BELOW_MATH),
    "two inputs run": (
        world(),
        Selection(force=("expert.*",)),
        FORCED_MATH
        | {
            "expert.law": "run forced: forced by --force",
            "mix.bam": "run input: expert.law and 1 more run",
            "report": "run input: mix.bam runs",
        },
    ),
    "forced, the selection bounds what is below": (
        world(),
        Selection(force=("expert.math",), until=("mix.bam",)),
        FORCED_MATH | {"mix.bam": "run input: expert.math runs"},
    ),
    "forced outside the selection": (world(), Selection(force=("seed",), from_=("mix.bam",)), {}),
    "one was removed": (world(without="expert.math"), Selection(), {"expert.math": NEVER} | BELOW_MATH),
    "one is damaged": (
        world(damaged=DAMAGE),
        Selection(),
        {"mix.bam": f"run damaged: {FILE}", "report": "run input: mix.bam runs"},
    ),
    "an input has other bytes": (
        world(rebuilt="expert.law"),
        Selection(),
        {
            "mix.bam": "run input: expert.law was rebuilt with other bytes",
            "report": "run input: mix.bam runs",
        },
    ),
    "another run makes one": (
        world(without="expert.math mix.bam", leases="expert.math"),
        Selection(),
        {"expert.math": LEASE, "mix.bam": NEVER, "report": "run input: mix.bam runs"},
    ),
    "another run makes one again": (
        world(leases="mix.bam"),
        Selection(),
        {"mix.bam": LEASE, "report": "run input: mix.bam is being made by another run"},
    ),
    "another run makes one, and has not renewed its lease": (
        replace(world(), leases={"mix.bam": LeaseInfo("host:7", NOW - 5)}),
        Selection(until=("mix.bam",)),
        {"mix.bam": "wait lease: held by host:7 for 0 s more"},
    ),
    "a lease goes before force and damage": (
        world(leases="mix.bam", damaged=DAMAGE),
        Selection(force=("mix.bam",), until=("mix.bam",)),
        {"mix.bam": LEASE},
    ),
    "only one, its inputs are done": (
        world(without="expert.law"),
        Selection(only=("expert.law",)),
        {"expert.law": NEVER},
    ),
    "only one, an input is missing": (
        world(without="expert.law seed"),
        Selection(only=("expert.law",)),
        {"seed": UNSELECTED, "expert.law": NEEDS_SEED},
    ),
    "only one that is done, its input is missing": (
        world(without="seed"),
        Selection(only=("expert.law",)),
        {},
    ),
    "only one, another run makes its input": (
        world(without="expert.law seed", leases="seed"),
        Selection(only=("expert.law",)),
        {"seed": LEASE, "expert.law": NEVER},
    ),
    "only one, its input is damaged": (
        world(without="report", damaged=DAMAGE),
        Selection(only=("report",)),
        {
            "mix.bam": f"blocked not selected: {FILE}, and not selected",
            "report": "blocked input: needs mix.bam, which is not done and not selected: "
            "`bam run quickstart --until mix.bam` makes it",
        },
    ),
    "blocked all the way down": (
        world(without="seed expert.law mix.bam report"),
        Selection(from_=("expert.law",)),
        {
            "seed": UNSELECTED,
            "expert.law": NEEDS_SEED,
            "mix.bam": NEEDS_SEED,
            "report": "blocked input: needs mix.bam, which is blocked",
        },
    ),
    "an unselected input is used as it is, and says so": (
        world(without="report"),
        Selection(only=("expert.law", "report"), force=("expert.law",)),
        {
            "expert.law": "run forced: forced by --force",
            "mix.bam": "reuse none: done; expert.law runs, but it is not selected",
            "report": NEVER,
        },
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_table(row: str) -> None:
    there, selection, expected = TABLE[row]
    assert told(decide(PIPELINE, there, selection)) == expected


CHANGES: dict[str, tuple[Pipeline, dict[str, str]]] = {
    "a learning rate": (
        pipeline(expert__math={"config": {"phase": {"lr": 0.002}}}),
        {"expert.math": "run config: phase.lr 0.001 -> 0.002"} | BELOW_MATH,
    ),
    "the text of a domain": (
        pipeline(data__math={"config": {"sources": {"math": {"digest": "3" * 64}}}}),
        {
            "data.math": "run data: sources.math.digest changed",
            "seed": "run input: data.math runs",
            "expert.law": "run input: seed runs",
            "expert.math": "run input: seed and 1 more run",
            "mix.bam": "run input: seed and 2 more run",
            "report": "run input: mix.bam runs",
        },
    ),
    "the meaning of a stage": (
        pipeline(mix__bam={"version": 2}),
        {"mix.bam": "run code: version 1 -> 2", "report": "run input: mix.bam runs"},
    ),
    "another input": (
        pipeline(report={"inputs": {"mix.bam": "seed"}}),
        {"report": "run input: input mix.bam changed"},
    ),
    "an input more": (
        pipeline(report={"inputs": {"mix.bam": "mix.bam", "seed": "seed"}}),
        {"report": "run input: input seed added"},
    ),
    "where it runs": (pipeline(seed={"runtime": {"workers": 8}}), {}),
}


@pytest.mark.parametrize("row", CHANGES)
def test_a_change_is_explained_against_the_newest_older_record(row: str) -> None:
    pipe, expected = CHANGES[row]
    assert told(decide(pipe, world(), Selection())) == expected


def test_what_is_listed() -> None:
    """The selected stages, and the inputs of those that would run; no others."""
    listed = decide(PIPELINE, world(without="mix.bam"), Selection(only=("mix.bam", "tokenizer")))
    assert [d.stage for d in listed] == ["tokenizer", "seed", "expert.law", "expert.math", "mix.bam"]
    assert [d.stage for d in decide(PIPELINE, world(), Selection(only=("mix.bam",)))] == ["mix.bam"]
    assert [d.stage for d in decide(PIPELINE, world(), Selection())] == NAMES


def test_decisions_in_full() -> None:
    """Here nothing starts, so nothing waits for the seed, also where it is an input."""
    there, keys = world(without="seed expert.law"), pipeline_keys(PIPELINE)
    decisions = plan(PIPELINE, keys, there.facts(PIPELINE, keys), Selection(only=("expert.*",)), now=NOW)
    needs = "needs seed, which is not done and not selected: `bam run RECIPE --until seed` makes it"
    assert decisions == [
        Decision("data.law", keys["data.law"], "reuse", "done", "none", after=()),
        Decision("seed", keys["seed"], "blocked", "never made, and not selected", "not selected", after=()),
        Decision("expert.law", keys["expert.law"], "blocked", needs, "input", after=()),
        Decision("expert.math", keys["expert.math"], "reuse", "done", "none", after=()),
    ]


def test_a_stage_starts_after_what_it_waits_for_and_no_other() -> None:
    there = world(without="expert.law mix.bam", leases="expert.math")
    after = {d.stage: d.after for d in decide(PIPELINE, there, Selection(force=("seed",)))}
    assert after["expert.law"] == ("seed",)
    assert after["mix.bam"] == ("seed", "expert.law", "expert.math")
    assert after["tokenizer"] == ()


def test_a_given_input_stands_in_for_the_pipelines_own() -> None:
    """Then the stage neither waits for, nor needs, what would have filled the role."""
    other = replace(world().records["seed"], key="ab" * 32, digest="given bytes")
    given = {("expert.law", "seed"): other}
    there = world(without="seed expert.math mix.bam report")
    listed = decide(PIPELINE, there, Selection(only=("expert.law",)), given)
    assert told(listed) == {"expert.law": "run input: input seed changed"}

    keys = pipeline_keys(PIPELINE, {("expert.law", "seed"): other.key})
    stage = PIPELINE["expert.law"]
    record = made(stage, keys | {"seed": other.key}, dict.fromkeys(NAMES, "b") | {"seed": other.digest})
    there.records["expert.law"] = replace(
        record, inputs=record.inputs | {"data": there.records["expert.law"].inputs["data"]}
    )
    assert told(decide(PIPELINE, there, Selection(only=("expert.law",)), given)) == {}

    rebuilt = {("expert.law", "seed"): replace(other, digest="other bytes")}
    assert told(decide(PIPELINE, there, Selection(only=("expert.law",)), rebuilt)) == {
        "expert.law": "run input: seed was rebuilt with other bytes"
    }


def test_rebuilt_input_names_the_first_role() -> None:
    records = world().records
    inputs = {role: records[role] for role in ("seed", "expert.law", "expert.math")}
    assert rebuilt_input(records["mix.bam"], inputs) is None
    inputs["seed"] = replace(inputs["seed"], digest="x")
    inputs["expert.math"] = replace(inputs["expert.math"], digest="x")
    assert rebuilt_input(records["mix.bam"], inputs) == "expert.math"


def test_a_selected_stage_that_another_run_makes_needs_nothing_here() -> None:
    keys = pipeline_keys(PIPELINE)
    held = "held by host:7 for 12 s more"
    there = world(without="expert.law seed", leases="expert.law")
    [alone] = decide(PIPELINE, there, Selection(only=("expert.law",)))
    assert alone == Decision("expert.law", keys["expert.law"], "wait", held, "lease", after=())
    assert Schedule(PIPELINE, [alone], 1).startable() == [PIPELINE["expert.law"]]


@drawn(
    without=st.sets(st.sampled_from(NAMES)),
    leases=st.sets(st.sampled_from(NAMES)),
    only=st.sets(st.sampled_from(NAMES), min_size=1),
)
def test_whatever_is_there_a_schedule_can_be_made_of_the_plan(
    without: set[str], leases: set[str], only: set[str]
) -> None:
    there = world(without=" ".join(without), leases=" ".join(leases))
    decisions = decide(PIPELINE, there, Selection(only=tuple(only)))
    schedule = Schedule(PIPELINE, decisions, 2)
    while ready := schedule.startable():
        schedule.started(ready[0].name)
        schedule.done(ready[0].name)
    assert schedule.finished
