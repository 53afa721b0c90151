"""What stays and what goes: each root by a small example, and the promises by generated stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bam_core.graph.holdings import Artifact, Contents, Leftover, Node, Policy, Reach, inputs_of, node_of, ref
from bam_core.graph.pins import Pin
from bam_core.graph.reach import children_first, is_alive, reach
from bam_core.graph.record import InputRef, Record
from bam_core.graph.runs import Run, RunStage

NOW = 1_000_000.0
LONG_AGO = NOW - 7 * 86400
CHAIN = ("seed", "expert.law", "mix.bam", "train.bam")
"""Each is made from the one before it."""


def key(stage: str, version: int = 1) -> str:
    return f"{version:x}{stage.encode().hex()}".ljust(64, "0")


def node(stage: str, version: int = 1) -> Node:
    return node_of(stage, key(stage, version))


def chain(version: int = 1, **changes: object) -> dict[Node, Artifact]:
    """The artifacts of one run of the chain; all but the seed differ by version."""
    made: dict[Node, Artifact] = {}
    parents: tuple[Node, ...] = ()
    for stage in CHAIN:
        name = node(stage, 1 if stage == "seed" else version)
        made[name] = replace(Artifact(100, LONG_AGO + version, inputs=parents), **changes)  # type: ignore[arg-type]
        parents = (name,)
    return made


def a_run(
    name: str, stages: Sequence[str] = CHAIN, version: int = 1, started: float | None = None, **changes: object
) -> Run:
    planned: dict[str, RunStage] = {}
    for stage in stages:
        before = CHAIN[: CHAIN.index(stage)][-1:]
        inputs = {parent: (parent, key(parent, 1 if parent == "seed" else version)) for parent in before}
        planned[stage] = RunStage(key(stage, 1 if stage == "seed" else version), "run", inputs)
    began = LONG_AGO + version if started is None else started
    run = Run(name, "quick", "done", began, began + 5, {}, planned, {})
    return replace(run, **changes)  # type: ignore[arg-type]


def gone(found: Reach) -> list[str]:
    return [going.name for going in found.goes]


def kept(found: Reach) -> dict[str, str]:
    return {ref(name): "; ".join(why) for name, why in found.stays.items()}


def names(*nodes: Node) -> set[str]:
    return {ref(name) for name in nodes}


OLD = [node("train.bam", 1), node("mix.bam", 1), node("expert.law", 1)]


def test_without_any_root_all_goes_children_first() -> None:
    found = reach(Contents(chain()), Policy(), NOW)
    assert gone(found) == [ref(node(stage)) for stage in reversed(CHAIN)]
    assert found.stays == {}
    assert {going.why for going in found.goes} == {"in no run on record"}


def test_the_newest_run_of_a_recipe_keeps_what_it_used_and_an_older_one_does_not() -> None:
    two = Contents(chain(1) | chain(2), [a_run("one", version=1), a_run("two", version=2)])
    found = reach(two, Policy(), NOW)
    assert gone(found) == [*(ref(old) for old in OLD), "run one"][: len(OLD)]
    assert {going.why for going in found.goes} == {"last in run one"}
    assert kept(found) == {ref(name): "newest run of quick" for name in chain(2)}
    both = reach(two, Policy(keep_last=2), NOW)
    assert not both.goes
    assert set(kept(both).values()) == {"newest 2 runs of quick"}


def test_each_recipe_has_its_newest_run() -> None:
    runs = [a_run("one", version=1, pipeline="other"), a_run("two", version=2)]
    found = reach(Contents(chain(1) | chain(2), runs), Policy(), NOW)
    assert not found.goes
    assert kept(found)[ref(node("seed"))] == "newest run of quick; newest run of other"


def test_a_run_of_some_stages_does_not_cost_the_others_theirs() -> None:
    runs = [a_run("one", version=1), a_run("two", ["seed", "expert.law"], version=2)]
    found = reach(Contents(chain(1) | chain(2), runs), Policy(), NOW)
    assert gone(found) == [ref(node("train.bam", 2)), ref(node("mix.bam", 2))]
    assert kept(found)[ref(node("expert.law", 1))] == "ancestor of " + ref(node("mix.bam", 1))


def test_a_run_that_failed_does_not_cost_the_last_result() -> None:
    new = chain(2)
    del new[node("train.bam", 2)]
    new[node("mix.bam", 2)] = Artifact(5, LONG_AGO, "none")
    runs = [a_run("one", version=1), a_run("two", version=2, status="failed")]
    found = reach(Contents(chain(1) | new, runs), Policy(), NOW)
    assert not found.goes
    runs.append(a_run("three", version=3))
    done = reach(Contents(chain(1) | new | chain(3), runs), Policy(), NOW)
    assert set(gone(done)) == names(*OLD, *new) - names(node("seed"))


def test_a_damaged_newest_one_does_not_cost_the_last_whole_one() -> None:
    new = chain(2)
    new[node("train.bam", 2)] = replace(new[node("train.bam", 2)], record="damaged")
    runs = [a_run("one", version=1), a_run("two", version=2)]
    found = reach(Contents(chain(1) | new, runs), Policy(), NOW)
    assert not found.goes


def test_a_pin_keeps_an_artifact_and_its_ancestors() -> None:
    pins = [Pin("best", "mix.bam", key("mix.bam"), "for the paper", 0.0)]
    found = reach(Contents(chain(), pins=pins), Policy(), NOW)
    assert gone(found) == [ref(node("train.bam"))]
    assert kept(found) == {
        ref(node("mix.bam")): "pinned as best: for the paper",
        ref(node("expert.law")): "ancestor of " + ref(node("mix.bam")),
        ref(node("seed")): "ancestor of " + ref(node("mix.bam")),
    }


def test_a_registered_model_is_said_to_be_one_and_a_dangling_pin_is_noted() -> None:
    why = '{"model": "law", "version": 3, "digest": "d", "aliases": ["champion"]}'
    pins = [
        Pin("registry-law-3", "train.bam", key("train.bam"), why, 0.0),
        Pin("lost", "dense", key("dense"), "", 0.0),
    ]
    found = reach(Contents(chain(), pins=pins), Policy(), NOW)
    assert kept(found)[ref(node("train.bam"))] == "pinned as registry-law-3: registered as law version 3 (champion)"
    assert found.notes == (f"pin lost: {ref(node('dense'))} is not in the store",)


def test_what_is_being_made_stays_with_what_its_run_plans_to_read() -> None:
    artifacts = chain(1) | chain(2)
    del artifacts[node("train.bam", 1)]
    artifacts[node("mix.bam", 1)] = Artifact(0, LONG_AGO, "none", lease="host:7 one")
    runs = [a_run("one", version=1, status="running", ended=None), a_run("two", version=2)]
    found = reach(Contents(artifacts, runs), Policy(), NOW)
    assert not found.goes
    assert kept(found)[ref(node("mix.bam", 1))] == "being made by host:7 one; in run one, which is running"
    assert kept(found)[ref(node("expert.law", 1))] == "in run one, which is running"


def test_a_run_that_says_it_runs_and_is_dead_keeps_nothing() -> None:
    runs = [a_run("one", version=1, status="running", ended=None), a_run("two", version=2)]
    found = reach(Contents(chain(1) | chain(2), runs), Policy(), NOW)
    assert gone(found) == [ref(old) for old in OLD]


def test_between_two_stages_a_run_holds_no_lease_and_is_alive_yet() -> None:
    run = a_run("one", status="running", ended=None, started=NOW - 5000)
    assert not is_alive(run, (), {}, NOW, 60)
    assert is_alive(run, (), {node("seed"): NOW - 50}, NOW, 60)
    assert is_alive(run, [node("mix.bam")], {}, NOW, 60)
    assert is_alive(run, (), {}, NOW, 6000)
    assert not is_alive(replace(run, status="done"), [node("mix.bam")], {}, NOW, 6000)


def test_a_leased_artifact_that_nobody_knows_stops_all_removal() -> None:
    artifacts = chain() | {node("edit.x"): Artifact(0, LONG_AGO, "none", lease="host:7 edit.x-1")}
    found = reach(Contents(artifacts, leftovers=[Leftover("checkpoints", node("seed"), 9, LONG_AGO)]), Policy(), NOW)
    assert found.goes == ()
    assert found.stays.keys() == artifacts.keys()
    [why] = found.blocked
    assert ref(node("edit.x")) in why
    assert "host:7 edit.x-1" in why


def test_what_cannot_be_read_stops_all_removal_where_it_could_keep_something() -> None:
    unreadable = reach(Contents(chain(), unreadable=["pins/best.json"]), Policy(), NOW)
    assert unreadable.goes == ()
    assert "pins/best.json cannot be read" in unreadable.blocked[0]
    torn = chain()
    torn[node("mix.bam")] = Artifact(9, LONG_AGO, "unreadable")
    pins = [Pin("best", "train.bam", key("train.bam"), "", 0.0)]
    assert "its record cannot be read" in reach(Contents(torn, pins=pins), Policy(), NOW).blocked[0]
    # A run that knows what it was made from, or nothing that needs it, and all is well.
    known = reach(Contents(torn, [a_run("one")], pins), Policy(), NOW)
    assert (known.blocked, known.goes) == ((), ())
    assert len(reach(Contents(torn), Policy(), NOW).goes) == len(torn)


def test_an_ancestor_that_is_gone_is_noted() -> None:
    artifacts = chain()
    del artifacts[node("mix.bam")]
    pins = [Pin("best", "train.bam", key("train.bam"), "", 0.0)]
    found = reach(Contents(artifacts, pins=pins), Policy(), NOW)
    assert gone(found) == [ref(node("expert.law")), ref(node("seed"))]
    assert found.notes == (
        f"{ref(node('mix.bam'))} (ancestor of {ref(node('train.bam'))}) is gone: what it was made from is not known",
    )


@pytest.mark.parametrize(("min_age_s", "n_kept"), [(3600, 4), (60, 3), (5, 0), (0, 0)])
def test_what_is_young_stays_with_its_ancestors(min_age_s: float, n_kept: int) -> None:
    ages = dict(zip(CHAIN, (1e6, 1e6, 30.0, 600.0), strict=True))
    artifacts = {name: replace(found, changed=NOW - ages[name[0]]) for name, found in chain().items()}
    found = reach(Contents(artifacts), Policy(min_age_s=min_age_s), NOW)
    assert len(found.stays) == n_kept
    if n_kept == 4:
        assert kept(found)[ref(node("train.bam"))] == "younger than 1 h"
        assert kept(found)[ref(node("seed"))].startswith("ancestor of")


def test_keep_run() -> None:
    runs = [a_run("one", version=1), a_run("two", version=2), a_run("three", version=3)]
    found = reach(Contents(chain(1) | chain(2) | chain(3), runs), Policy(keep_runs=("one",)), NOW)
    assert set(gone(found)) == names(*(name for name in chain(2) if name[0] != "seed"))
    assert kept(found)[ref(node("train.bam", 1))] == "kept with run one"


def test_what_another_collector_removes_is_left_to_it_and_its_ancestors_stay_until_it_is_gone() -> None:
    """That collector may be killed before it has removed it."""
    artifacts = chain()
    artifacts[node("mix.bam")] = replace(artifacts[node("mix.bam")], lease="host:9 bam gc")
    found = reach(Contents(artifacts), Policy(), NOW)
    assert gone(found) == [ref(node("train.bam"))]
    assert kept(found)[ref(node("mix.bam"))] == "being removed by host:9 bam gc"
    artifacts[node("mix.bam")] = Artifact(3, LONG_AGO, "none", lease="host:9 bam gc")  # its record is gone already
    found = reach(Contents(artifacts), Policy(), NOW)
    assert gone(found) == [ref(node(stage)) for stage in ("train.bam", "expert.law", "seed")]


def leftovers(*nodes: Node, changed: float = LONG_AGO) -> list[Leftover]:
    return [Leftover("checkpoints", name, 7, changed) for name in nodes]


def test_checkpoints_go_when_their_training_is_done_or_needed_by_nothing() -> None:
    artifacts = chain(1) | chain(2)
    artifacts[node("train.bam", 2)] = Artifact(3, LONG_AGO, "none")
    artifacts[node("mix.bam", 2)] = replace(artifacts[node("mix.bam", 2)], lease="host:1 x")
    left = leftovers(*(node(stage, 2) for stage in CHAIN), *(node(stage) for stage in CHAIN), node("dense"))
    runs = [a_run("one", version=1), a_run("two", version=2, status="interrupted")]
    found = reach(Contents(artifacts, runs, leftovers=left), Policy(), NOW)
    words = {going.name.removeprefix("checkpoints of "): going.why for going in found.goes}
    done, unwanted = "its training is done", "nothing needs its training"
    # Not that of train.bam, which the next run of the recipe continues, nor of mix.bam, which is being made.
    assert words == {
        ref(node("seed")): done,
        ref(node("expert.law", 2)): done,
        ref(node("expert.law")): done,
        ref(node("mix.bam")): done,
        ref(node("train.bam")): done,
        ref(node("seed", 2)): unwanted,
        ref(node("dense")): unwanted,
    }


def test_scratch_and_leases_of_the_dead_go_where_nobody_works() -> None:
    artifacts = chain()
    artifacts[node("mix.bam")] = replace(artifacts[node("mix.bam")], lease="host:1 x")
    left = [Leftover(kind, node(stage), 7, LONG_AGO) for kind in ("scratch", "lease") for stage in CHAIN[1:3]]
    left.append(Leftover("scratch", node("train.bam"), 7, NOW - 60))
    found = reach(Contents(artifacts, [a_run("one")], leftovers=left), Policy(), NOW)
    law = ref(node("expert.law"))
    assert gone(found) == [f"scratch of {law}", f"lease of {law}"]
    # With its artifact goes all that lies in its folder.
    assert all(going.kind == "artifact" for going in reach(Contents(chain(), leftovers=left[:1]), Policy(), NOW).goes)


def test_a_run_goes_from_the_record_when_all_of_it_is_gone() -> None:
    runs = [a_run("one", version=1), a_run("two", version=2), a_run("three", version=3)]
    runs = [replace(run, stages={k: v for k, v in run.stages.items() if k != "seed"}) for run in runs]
    artifacts = chain(2) | chain(3)
    found = reach(Contents(artifacts, runs), Policy(), NOW)
    assert [going.run for going in found.goes if going.kind == "run"] == ["two", "one"]
    assert not [going for going in reach(Contents(artifacts, runs), Policy(keep_last=3), NOW).goes if going.run]
    young = [replace(runs[0], ended=NOW - 9), *runs[1:]]
    assert [going.run for going in reach(Contents(artifacts, young), Policy(), NOW).goes if going.run] == ["two"]


def test_a_run_stays_on_record_while_it_says_what_something_kept_is_made_from() -> None:
    """The pinned model itself is gone; the run knows what it takes to make it again."""
    artifacts = chain(1) | chain(2)
    del artifacts[node("train.bam", 1)]
    pins = [Pin("best", "train.bam", key("train.bam", 1), "", 0.0)]
    runs = [a_run("one", ["train.bam"], version=1), a_run("two", version=2)]
    found = reach(Contents(artifacts, runs, pins), Policy(), NOW)
    assert found.goes == ()


def test_an_adopted_expert_needs_our_seed_and_not_what_it_was_copied_from() -> None:
    payload = {"config": {"origin": {"stage": "expert.law", "key": key("expert.law"), "digest": "d"}}}
    seed = {"seed": InputRef("seed", key("seed"), "d")}
    record = Record("adopted.law", "a" * 64, payload, seed, (), "", {}, {}, 0, 0, 1)
    assert inputs_of(record) == (node("seed"),)


def test_a_circle_in_damaged_records_is_cut() -> None:
    a, b = node("a"), node("b")
    artifacts = {a: Artifact(1, LONG_AGO, inputs=(b,)), b: Artifact(1, LONG_AGO, inputs=(a,))}
    assert sorted(gone(reach(Contents(artifacts), Policy(), NOW))) == [ref(a), ref(b)]
    pins = [Pin("a", "a", key("a"), "", 0.0)]
    assert len(reach(Contents(artifacts, pins=pins), Policy(), NOW).stays) == 2


# ---- the promises, on generated stores

N_STAGES = 6
STAGES = [f"s{index}" for index in range(N_STAGES)]


@st.composite
def stores(draw: st.DrawFn) -> tuple[Contents, Policy]:
    """Up to three versions of six stages, each made from some of the earlier ones; runs, pins, leases over them."""
    every: list[Node] = []
    inputs: dict[Node, tuple[Node, ...]] = {}
    for stage in STAGES:
        for version in range(1, draw(st.integers(1, 3)) + 1):
            parents = draw(st.lists(st.sampled_from(every), max_size=3, unique=True)) if every else []
            every.append(node(stage, version))
            inputs[every[-1]] = tuple(parents)
    artifacts = {}
    for name in every:
        if draw(st.booleans()) or draw(st.booleans()):
            record = draw(st.sampled_from(["whole", "whole", "whole", "damaged", "unreadable", "none"]))
            lease = draw(st.sampled_from([None] * 8 + ["h:1 run", "h:1 bam gc"]))
            changed = draw(st.sampled_from([LONG_AGO, LONG_AGO, NOW - 10]))
            known = inputs[name] if record in ("whole", "damaged") else ()
            artifacts[name] = Artifact(1, changed, record, known, lease)
    runs = []
    for index in range(draw(st.integers(0, 4))):
        chosen = {name[0]: name for name in draw(st.lists(st.sampled_from(every), max_size=6))}
        planned = {
            stage: RunStage(name[1], "run", {str(i): parent for i, parent in enumerate(inputs[name])})
            for stage, name in chosen.items()
        }
        status = draw(st.sampled_from(["done", "done", "failed", "running"]))
        began = draw(st.sampled_from([LONG_AGO + index, LONG_AGO + index, NOW - 5]))
        pipeline = draw(st.sampled_from(["p", "q"]))
        runs.append(Run(f"r{index}", pipeline, status, began, None, {}, planned, {}))  # type: ignore[arg-type]
    runs.sort(key=lambda run: run.started)
    pinned = draw(st.lists(st.sampled_from(every), max_size=2, unique=True))
    pins = [Pin(f"p{i}", name[0], name[1], "", 0.0) for i, name in enumerate(pinned)]
    trained = draw(st.lists(st.sampled_from(every), max_size=3, unique=True))
    keep_runs = tuple(draw(st.lists(st.sampled_from(["r0", "r1"]), max_size=1)))
    policy = Policy(draw(st.integers(0, 2)), keep_runs, draw(st.sampled_from([0.0, 3600.0])))
    return Contents(artifacts, runs, pins, leftovers(*trained)), policy


def edges(contents: Contents) -> dict[Node, set[Node]]:
    found: dict[Node, set[Node]] = {name: set(artifact.inputs) for name, artifact in contents.artifacts.items()}
    for run in contents.runs:
        for stage, planned in run.stages.items():
            place = found.setdefault(node_of(stage, planned.key), set())
            place |= {node_of(*parent) for parent in planned.inputs.values()}
    return found


def above(name: Node, parents: Mapping[Node, set[Node]], seen: set[Node] | None = None) -> set[Node]:
    seen = set() if seen is None else seen
    for parent in parents.get(name, ()):
        if parent not in seen:
            seen.add(parent)
            above(parent, parents, seen)
    return seen


def certain_roots(contents: Contents, policy: Policy) -> set[Node]:
    """Told from the rules once more, and independently of how they are worked out."""
    roots = {name for name, found in contents.artifacts.items() if found.lease}
    roots |= {node_of(pin.stage, pin.key) for pin in contents.pins}
    for run in contents.runs:
        nodes = {node_of(stage, planned.key) for stage, planned in run.stages.items()}
        if run.name in policy.keep_runs or (run.status == "running" and roots & nodes & contents.artifacts.keys()):
            leased = any((found := contents.artifacts.get(name)) and found.lease == "h:1 run" for name in nodes)
            roots |= nodes if run.name in policy.keep_runs or leased else set()
    for pipeline in {run.pipeline for run in contents.runs}:
        for stage in STAGES:
            had = [run for run in contents.runs if run.pipeline == pipeline and stage in run.stages]
            roots |= {node_of(stage, run.stages[stage].key) for run in had[::-1][: policy.keep_last]}
    return roots


def without(contents: Contents, goes: Sequence[object]) -> Contents:
    gone_now = {(going.kind, going.node, going.run) for going in goes}  # type: ignore[attr-defined]
    return replace(
        contents,
        artifacts={n: found for n, found in contents.artifacts.items() if ("artifact", n, None) not in gone_now},
        runs=[run for run in contents.runs if ("run", None, run.name) not in gone_now],
        leftovers=[left for left in contents.leftovers if (left.kind, left.node, None) not in gone_now],
    )


@settings(max_examples=150, deadline=None)
@given(stores(), st.data())
def test_the_promises(store: tuple[Contents, Policy], data: st.DataObject) -> None:
    contents, policy = store
    found = reach(contents, policy, NOW)
    going = {item.node for item in found.goes if item.kind == "artifact"}
    there, parents = contents.artifacts, edges(contents)
    # Each thing is judged, and each that stays has a reason.
    assert found.stays.keys() | going == there.keys()
    assert not found.stays.keys() & going
    assert all(why and all(why) for why in found.stays.values())
    # Nothing that is reachable goes, nor what somebody works on.
    roots = certain_roots(contents, policy)
    assert not going & (roots | {up for root in roots for up in above(root, parents)})
    assert not any(there[name].lease for name in going if name)
    # Stopped after any step, what is left has all of its ancestors that were there.
    stop = data.draw(st.integers(0, len(found.goes)))
    left = without(contents, found.goes[:stop])
    for name in left.artifacts:
        lost = {up for up in above(name, parents) if up in there and up not in left.artifacts}
        assert not lost, f"{name} lost {lost}"
    # And going on from there comes to the same end; a second time there is nothing to do.
    after = reach(left, policy, NOW)
    end = without(left, after.goes)
    assert end == without(contents, found.goes)
    assert reach(end, policy, NOW).goes == ()
    assert {n: len(w) > 0 for n, w in reach(end, policy, NOW).stays.items()} == dict.fromkeys(found.stays, True)


def test_children_first_is_quick_and_deep() -> None:
    deep = {node(f"s{index}"): {node(f"s{index - 1}")} for index in range(1, 3000)}
    order = children_first(deep, deep)
    assert order[0] == node("s2999")
    assert order[-1] == node("s1")
