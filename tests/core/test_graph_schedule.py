"""Whatever the graph, the plan and the order of events: nothing starts too early or too much, and it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.graph.plan import Action, Decision
from bam_core.graph.schedule import Schedule
from bam_core.graph.stage import Pipeline, Stage

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

ACTIONS: list[Action] = ["run", "run", "run", "wait", "reuse", "blocked"]


def build(edges: dict[str, list[str]], actions: dict[str, Action]) -> tuple[Pipeline, list[Decision]]:
    stages = [Stage(name, "f", 1, {}, {parent: parent for parent in parents}) for name, parents in edges.items()]
    decisions = []
    for name, parents in edges.items():
        action = actions.get(name, "run")
        after = tuple(p for p in parents if actions.get(p, "run") != "reuse") if action in ("run", "wait") else ()
        decisions.append(Decision(name, f"key of {name}", action, "", "", after))
    return Pipeline("p", tuple(stages)), decisions


@st.composite
def plans(draw: st.DrawFn) -> tuple[Pipeline, list[Decision]]:
    names = [f"s{i}" for i in range(draw(st.integers(1, 9)))]
    edges = {
        name: sorted(draw(st.sets(st.sampled_from(names[:i]), max_size=3)) if i else []) for i, name in enumerate(names)
    }
    return build(edges, {name: draw(st.sampled_from(ACTIONS)) for name in names})


def names_of(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


@CALM
@given(plans(), st.integers(1, 4), st.booleans(), st.data())
def test_properties(
    planned: tuple[Pipeline, list[Decision]], max_parallel: int, fail_fast: bool, data: st.DataObject
) -> None:
    pipeline, decisions = planned
    schedule = Schedule(pipeline, decisions, max_parallel, fail_fast=fail_fast)
    by_name = {decision.stage: decision for decision in decisions}
    running: set[str] = set()
    ended: dict[str, str] = {}
    for _ in range(2 * len(decisions) + 1):
        if schedule.finished:
            break
        startable = names_of(schedule.startable())
        assert len(running) + len(startable) <= max_parallel
        taken = startable
        if running and startable:  # an executor may be slow to take what may start
            taken = data.draw(st.lists(st.sampled_from(startable), unique=True))
        for name in taken:
            assert all(ended[parent] == "done" for parent in by_name[name].after)
            assert by_name[name].action in ("run", "wait")
            assert not (fail_fast and "failed" in ended.values())
            assert name not in ended
            schedule.started(name)
            running.add(name)
        assert running, "neither finished, nor anything to wait for"
        name = data.draw(st.sampled_from(sorted(running)))
        running.remove(name)
        ended[name] = data.draw(st.sampled_from(["done", "done", "failed"]))
        getattr(schedule, ended[name])(name)
    assert schedule.finished
    assert not running
    assert schedule.startable() == []
    expected = {}
    for decision in decisions:
        if decision.action == "reuse":
            expected[decision.stage] = "reused"
        elif decision.stage in ended:
            expected[decision.stage] = ended[decision.stage]
        else:
            expected[decision.stage] = "skipped"
            below_lost = any(expected[parent] in ("failed", "skipped") for parent in decision.after)
            stopped = fail_fast and "failed" in ended.values()
            assert decision.action == "blocked" or below_lost or stopped
    assert dict(schedule.statuses) == expected
    assert schedule.skipped == {name for name, status in expected.items() if status == "skipped"}


DIAMOND = {"a": [], "left": ["a"], "right": ["a"], "below": ["left"], "end": ["left", "right"]}


def test_a_failure_skips_what_is_below_and_nothing_else() -> None:
    schedule = Schedule(*build(DIAMOND, {"a": "reuse"}), max_parallel=4)
    assert names_of(schedule.startable()) == ["left", "right"]
    schedule.started("left")
    assert schedule.failed("left") == ["below", "end"]
    assert names_of(schedule.startable()) == ["right"]
    schedule.started("right")
    assert not schedule.finished
    schedule.done("right")
    assert schedule.finished
    assert dict(schedule.statuses) == {
        "a": "reused",
        "left": "failed",
        "right": "done",
        "below": "skipped",
        "end": "skipped",
    }


def test_no_more_start_than_may_run() -> None:
    schedule = Schedule(*build({name: [] for name in "abcde"}, {}), max_parallel=3)
    for running, startable in [("a", ["b", "c"]), ("b", ["c"]), ("c", [])]:
        schedule.started(running)
        assert names_of(schedule.startable()) == startable
    schedule.done("a")
    assert names_of(schedule.startable()) == ["d"]


def test_fail_fast_starts_nothing_more_and_lets_what_runs_end() -> None:
    schedule = Schedule(*build({"a": [], "b": [], "c": []}, {}), max_parallel=2, fail_fast=True)
    schedule.started("a")
    schedule.started("b")
    assert schedule.failed("a") == ["c"]
    assert not schedule.finished
    schedule.done("b")
    assert schedule.finished


def test_what_can_run_goes_before_what_another_run_holds() -> None:
    schedule = Schedule(*build({"a": [], "b": [], "c": []}, {"a": "wait"}), max_parallel=2)
    assert names_of(schedule.startable()) == ["b", "c"]
    schedule.started("b")
    assert names_of(schedule.startable()) == ["c"]
    schedule.done("b")
    assert names_of(schedule.startable()) == ["c", "a"]


def test_what_is_reused_is_not_waited_for() -> None:
    pipeline, (a, b) = build({"a": [], "b": ["a"]}, {"a": "reuse"})
    schedule = Schedule(pipeline, [a, replace(b, after=("a",))], max_parallel=1)
    assert names_of(schedule.startable()) == ["b"]


def test_a_stage_that_another_run_makes_leaves_its_place_to_the_next() -> None:
    schedule = Schedule(*build({"a": [], "b": [], "below": ["a"]}, {}), max_parallel=1)
    schedule.started("a")
    assert schedule.startable() == []
    schedule.put_back("a")
    assert names_of(schedule.startable(held={"a"})) == ["b"]
    assert names_of(schedule.startable()) == ["a"]
    schedule.started("b")
    schedule.done("b")
    assert schedule.startable(held={"a"}) == []
    assert not schedule.finished
    schedule.started("a")
    schedule.done("a")
    assert names_of(schedule.startable()) == ["below"]


def test_impossible_events_are_bugs() -> None:
    pipeline, decisions = build(DIAMOND, {})
    with pytest.raises(AssertionError):
        Schedule(pipeline, decisions, max_parallel=0)
    schedule = Schedule(pipeline, decisions, max_parallel=1)
    with pytest.raises(AssertionError):
        schedule.started("left")
    with pytest.raises(AssertionError):
        schedule.done("a")
    schedule.started("a")
    schedule.done("a")
    schedule.started("left")
    with pytest.raises(AssertionError):
        schedule.started("right")
