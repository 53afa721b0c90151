"""What stays in a store, why, and what may go. Pure: what the store holds in, a decision with its reasons out.

    root                                                            reason
    under a live lease                                              being made by OWNER, being removed by OWNER
    pinned                                                          pinned as NAME
    in a run that was asked for by name                             kept with run NAME
    of each recipe and stage, in the newest N runs that had it      newest run of RECIPE
    in a run that is under way                                      in run NAME, which is running
    younger than the minimum                                        younger than 1 h
    and all that a root was made from                               ancestor of STAGE@KEY

A run whose artifact never came to be does not count among the N: a failed try costs no older result.

Invariant: what stays has all of its ancestors that were there. Where it cannot be told what something that must stay
was made from, nothing goes at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from bam_core.graph.holdings import (
    Artifact,
    Contents,
    Going,
    Node,
    Policy,
    Reach,
    is_collected,
    node_of,
    ref,
    run_nodes,
)
from bam_core.graph.runs import Run


def reach(contents: Contents, policy: Policy, now: float) -> Reach:
    """Decide for everything that is there. now: seconds since the epoch."""
    inputs = _known_inputs(contents)
    roots = _roots(contents, policy, now)
    why = _with_ancestors(roots, inputs)
    stays = {node: reasons for node, reasons in why.items() if node in contents.artifacts}
    notes = _notes(contents, roots, why, inputs)
    if blocked := _blockers(contents, why, inputs):
        for node in contents.artifacts.keys() - stays.keys():
            stays[node] = ("nothing may go now",)
        return Reach(stays, (), blocked, notes)
    last_run = {node: run.name for run in contents.runs for node in run_nodes(run)}
    artifacts = [
        _going(node, contents.artifacts[node], last_run.get(node))
        for node in children_first(contents.artifacts, inputs)
        if node not in why
    ]
    leftovers = _leftovers(contents, policy, now, why.keys())
    runs = _runs(contents, policy, now, why.keys())
    return Reach(stays, (*artifacts, *leftovers, *runs), (), notes)


def is_alive(run: Run, leased: Collection[Node], made: Mapping[Node, float], now: float, quiet_s: float) -> bool:
    """Whether a run that says it is running is: a live lease on a stage of it, or a sign of it within `quiet_s`.

    Between two stages it holds no lease. made: when each artifact was made.
    """
    if run.status != "running":
        return False
    nodes = run_nodes(run)
    signs = [run.started, *(made[node] for node in nodes if made.get(node, 0.0) > run.started)]
    return any(node in leased for node in nodes) or now - max(signs) < quiet_s


def children_first(nodes: Iterable[Node], inputs: Mapping[Node, Collection[Node]]) -> list[Node]:
    """The nodes, each before all that it was made from. Damaged records may name a circle: it is cut somewhere."""
    wanted = sorted(nodes)
    parents_first: dict[Node, None] = {}
    seen: set[Node] = set()
    for start in wanted:
        ahead = [(start, iter(sorted(inputs.get(start, ()))))] if start not in seen else []
        seen.add(start)
        while ahead:
            node, rest = ahead[-1]
            parent = next((found for found in rest if found not in seen), None)
            if parent is None:
                parents_first[node] = None
                ahead.pop()
            else:
                seen.add(parent)
                ahead.append((parent, iter(sorted(inputs.get(parent, ())))))
    there = set(wanted)
    return [node for node in reversed(parents_first) if node in there]


def _known_inputs(contents: Contents) -> dict[Node, set[Node]]:
    """By records and by runs. One that neither knows is not in it."""
    artifacts = contents.artifacts.items()
    known = {node: set(found.inputs) for node, found in artifacts if found.record in ("whole", "damaged")}
    for run in contents.runs:
        for stage, planned in run.stages.items():
            parents = {node_of(*parent) for parent in planned.inputs.values()}
            known.setdefault(node_of(stage, planned.key), set()).update(parents)
    return known


def _roots(contents: Contents, policy: Policy, now: float) -> dict[Node, list[str]]:
    roots: dict[Node, list[str]] = {}
    for node, reason in _reasons(contents, policy, now):
        if reason not in roots.setdefault(node, []):
            roots[node].append(reason)
    return roots


def _reasons(contents: Contents, policy: Policy, now: float) -> Iterator[tuple[Node, str]]:
    artifacts = contents.artifacts
    leased = [node for node, artifact in artifacts.items() if artifact.lease and not is_collected(artifact.lease)]
    for node, artifact in artifacts.items():
        if artifact.lease is not None:
            yield node, f"being {'removed' if is_collected(artifact.lease) else 'made'} by {artifact.lease}"
    for pin in contents.pins:
        yield node_of(pin.stage, pin.key), f"pinned as {pin.name}" + (f": {pin.words}" if pin.words else "")
    for run in contents.runs:
        if run.name in policy.keep_runs:
            yield from ((node, f"kept with run {run.name}") for node in run_nodes(run))
    yield from _newest(contents, policy.keep_last)
    made = {node: artifact.changed for node, artifact in artifacts.items()}
    for run in contents.runs:
        if is_alive(run, leased, made, now, policy.min_age_s):
            yield from ((node, f"in run {run.name}, which is running") for node in run_nodes(run))
    for node, artifact in artifacts.items():
        if now - artifact.changed < policy.min_age_s:
            yield node, f"younger than {_age(policy.min_age_s)}"


def _newest(contents: Contents, keep_last: int) -> Iterator[tuple[Node, str]]:
    found: dict[tuple[str, str], int] = {}
    words = "newest run of" if keep_last == 1 else f"newest {keep_last} runs of"
    for run in reversed(contents.runs):
        for node in run_nodes(run):
            place = (run.pipeline, node[0])
            if found.get(place, 0) < keep_last:
                yield node, f"{words} {run.pipeline}"
                artifact = contents.artifacts.get(node)
                found[place] = found.get(place, 0) + (artifact is not None and artifact.record == "whole")


def _with_ancestors(
    roots: Mapping[Node, Sequence[str]], inputs: Mapping[Node, Collection[Node]]
) -> dict[Node, tuple[str, ...]]:
    """Every node that is reached, there or not, the nearest root first."""
    why = {node: tuple(reasons) for node, reasons in roots.items()}
    ahead = deque((node, node) for node in roots)
    while ahead:
        node, root = ahead.popleft()
        for parent in sorted(inputs.get(node, ())):
            if parent not in why:
                why[parent] = (f"ancestor of {ref(root)}",)
                ahead.append((parent, root))
    return why


def _blockers(
    contents: Contents, reached: Mapping[Node, Sequence[str]], inputs: Mapping[Node, Collection[Node]]
) -> tuple[str, ...]:
    """Where following the inputs ends for want of knowledge, so that something needed could be taken for garbage."""
    found = [
        f"{name} cannot be read, so what it keeps is not known: look at it, and remove it if it is worth nothing"
        for name in contents.unreadable
    ]
    for node in sorted(reached):
        artifact = contents.artifacts.get(node)
        if artifact is None or node in inputs:
            continue
        if artifact.lease is not None and not is_collected(artifact.lease):
            found.append(
                f"{ref(node)} is being made by {artifact.lease}, and no run on record says from what: wait for its end"
            )
        elif artifact.record == "unreadable":
            found.append(
                f"{ref(node)} stays ({reached[node][0]}), but its record cannot be read and no run on record says what "
                "it was made from: make it again, or remove it"
            )
    return tuple(found)


def _notes(
    contents: Contents,
    roots: Collection[Node],
    reached: Mapping[Node, Sequence[str]],
    inputs: Mapping[Node, Collection[Node]],
) -> tuple[str, ...]:
    def is_there(node: Node) -> bool:
        return node in contents.artifacts and contents.artifacts[node].record != "none"

    gone = [pin for pin in contents.pins if not is_there(node_of(pin.stage, pin.key))]
    notes = [f"pin {pin.name}: {ref(node_of(pin.stage, pin.key))} is not in the store" for pin in gone]
    for node in sorted(reached.keys() - set(roots)):
        if not is_there(node) and node not in inputs:
            notes.append(f"{ref(node)} ({reached[node][0]}) is gone: what it was made from is not known")
    return tuple(notes)


def _going(node: Node, artifact: Artifact, last_run: str | None) -> Going:
    why = "in no run on record" if last_run is None else f"last in run {last_run}"
    if artifact.record != "whole":
        why = f"{'not done' if artifact.record == 'none' else 'damaged'}, {why}"
    return Going("artifact", node, None, artifact.size_bytes, artifact.changed, why)


def _leftovers(contents: Contents, policy: Policy, now: float, reached: Collection[Node]) -> Iterator[Going]:
    for left in contents.leftovers:
        artifact = contents.artifacts.get(left.node)
        if (artifact is not None and artifact.lease is not None) or now - left.changed < policy.min_age_s:
            continue
        is_done = artifact is not None and artifact.record == "whole"
        if left.kind == "checkpoints":
            if left.node in reached and not is_done:
                continue
            why = "its training is done" if is_done else "nothing needs its training"
        elif left.node not in reached:
            continue  # it goes with its artifact
        else:
            why = "of a stage that was killed"
        yield Going(left.kind, left.node, None, left.size_bytes, left.changed, why)


def _runs(contents: Contents, policy: Policy, now: float, reached: Collection[Node]) -> Iterator[Going]:
    """Runs of which nothing is left, and that say of nothing that stays what it is to be made from."""
    newer: dict[str, int] = {}
    for run in reversed(contents.runs):
        newer[run.pipeline] = newer.get(run.pipeline, 0) + 1
        last_sign = run.started if run.ended is None else run.ended
        nodes = run_nodes(run)
        leased = any(node in contents.artifacts and contents.artifacts[node].lease for node in nodes)
        is_newest = newer[run.pipeline] <= max(1, policy.keep_last)
        if is_newest or leased or run.name in policy.keep_runs or now - last_sign < policy.min_age_s:
            continue
        if not any(node in reached for node in nodes):
            yield Going("run", None, run.name, 0, last_sign, "nothing that it made or used is left")


def _age(seconds: float) -> str:
    whole = round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= size and whole % size == 0:
            return f"{whole // size} {unit}"
    return f"{whole} s"
