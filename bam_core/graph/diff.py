"""Why two artifacts differ: which field of which ancestor, the earliest cause first.

What both were made from is paired by stage name, and by the role that it fills where names differ or repeat. A pair
differs when its keys do, or its bytes. It is a *cause* where its own definition (code, configuration, a text) says so,
or where equal keys and equal inputs came out as other bytes; it *follows* where all that differs is what it was made
from. Pure; changes are in the words of `bam plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bam_core.graph.key import Change, payload_changes
from bam_core.graph.lineage import ORIGIN, SOURCE, Graph, Node, NodeId, hosts_of
from bam_core.graph.record import Record
from bam_core.graph.stage import StageName

BYTES, NAME, UNKNOWN = "bytes", "name", "unknown"
"""Kinds of causes that no payload has: other bytes under an equal key; another stage name; no record to ask."""

Pair = tuple[NodeId, NodeId]
_COMMIT = 10


@dataclass(frozen=True)
class Cause:
    """A pair whose difference starts with itself.

    kind: `code`, `config`, `data`, `input` (a role more or less), or one of the above. changes: in its definition; of
    `bytes`, in what the records say of how it was made. files: outputs that differ under equal keys. follows: the
    stages that differ because of it, on the right side.
    """

    left: NodeId
    right: NodeId
    kind: str
    changes: tuple[Change, ...] = ()
    files: tuple[str, ...] = ()
    follows: tuple[NodeId, ...] = ()


@dataclass(frozen=True)
class Difference:
    """causes, follows, same: parents first. only_left, only_right: ancestors without a counterpart."""

    left: NodeId
    right: NodeId
    causes: tuple[Cause, ...] = ()
    follows: tuple[Pair, ...] = ()
    only_left: tuple[NodeId, ...] = ()
    only_right: tuple[NodeId, ...] = ()
    same: tuple[NodeId, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether both were made from the same and are the same bytes."""
        return not (self.causes or self.follows)

    def to_json(self) -> dict[str, Any]:
        return {
            **_pair_json(self.left, self.right),
            "identical": self.is_empty,
            "causes": [_cause_json(cause) for cause in self.causes],
            "follows": [_pair_json(*pair) for pair in self.follows],
            "only_left": [_node_json(node) for node in self.only_left],
            "only_right": [_node_json(node) for node in self.only_right],
            "same": [_node_json(node) for node in self.same],
        }


def compare(left: Graph, right: Graph) -> Difference:
    """left, right: what each artifact was made from (`lineage(..., "up")`)."""
    return _Comparison(left, right).result()


class _Side:
    """One graph: its nodes, what each read as which role, and the bytes that were read."""

    def __init__(self, graph: Graph) -> None:
        self.root = graph.root
        self.nodes: Mapping[NodeId, Node] = {node.id: node for node in graph.nodes}
        self.roles: dict[NodeId, dict[str, NodeId]] = {node: {} for node in self.nodes}
        for edge in graph.edges:
            self.roles[edge.child][edge.parent[0] if edge.role == SOURCE else edge.role] = edge.parent
        self._read: dict[NodeId, str] = {}
        for node in graph.nodes:
            for ref in node.record.inputs.values() if node.record is not None else ():
                self._read[ref.stage, ref.key] = ref.digest

    def digest(self, node: NodeId) -> str:
        """As it was read: its record may be of bytes that were made since."""
        return self.nodes[node].digest if node == self.root else self._read.get(node, self.nodes[node].digest)

    def record(self, node: NodeId) -> Record | None:
        return self.nodes[node].record

    def by_stage(self) -> dict[str, NodeId]:
        """Stages of which there is one artifact."""
        stages: dict[str, list[NodeId]] = {}
        for node in self.nodes:
            stages.setdefault(node[0], []).append(node)
        return {stage: nodes[0] for stage, nodes in stages.items() if len(nodes) == 1}


class _Comparison:
    def __init__(self, left: Graph, right: Graph) -> None:
        self.left, self.right = _Side(left), _Side(right)
        self.pairs = self._aligned()
        self.differing = {pair: None for pair in self.pairs if self._differs(pair)}

    def result(self) -> Difference:
        found = {pair: self._cause(pair) for pair in self.differing}
        causes = {pair: cause for pair, cause in found.items() if cause is not None}
        follows = tuple(pair for pair in found if pair not in causes)
        behind = self._behind(causes)
        ours, theirs = {left for left, _ in self.pairs}, {right for _, right in self.pairs}
        return Difference(
            self.left.root,
            self.right.root,
            tuple(
                replace(cause, follows=tuple(other[1] for other in follows if pair in behind[other]))
                for pair, cause in causes.items()
            ),
            follows,
            tuple(node for node in self.left.nodes if node not in ours),
            tuple(node for node in self.right.nodes if node not in theirs),
            tuple(pair[1] for pair in self.pairs if pair not in self.differing),
        )

    def _aligned(self) -> dict[Pair, None]:
        """The roots, then stages of one name, then what two partners read as the same role; parents first."""
        partners: dict[NodeId, NodeId] = {}
        taken: set[NodeId] = set()
        ours, theirs = self.left.by_stage(), self.right.by_stage()
        ahead = [(self.left.root, self.right.root), *((ours[name], theirs[name]) for name in ours if name in theirs)]
        for left, right in ahead:  # grows
            if left in partners or right in taken:
                continue
            partners[left] = right
            taken.add(right)
            roles = self.right.roles[right]
            ahead += [(parent, roles[role]) for role, parent in self.left.roles[left].items() if role in roles]
        order = {node: number for number, node in enumerate(self.right.nodes)}
        return dict.fromkeys(sorted(partners.items(), key=lambda pair: order[pair[1]]))

    def _differs(self, pair: Pair) -> bool:
        left, right = pair
        return left[1] != right[1] or self.left.digest(left) != self.right.digest(right)

    def _parents(self, pair: Pair) -> dict[str, Pair]:
        """Role -> what both sides read as it, where it differs."""
        ours, theirs = self.left.roles[pair[0]], self.right.roles[pair[1]]
        found = {role: (ours[role], theirs[role]) for role in ours if role in theirs}
        return {role: parents for role, parents in found.items() if parents in self.differing}

    def _behind(self, causes: Mapping[Pair, Cause]) -> dict[Pair, set[Pair]]:
        """Pair -> the causes among what differs behind it."""
        behind: dict[Pair, set[Pair]] = {}
        for pair in self.pairs:
            behind[pair] = set()
            for parents in self._parents(pair).values():
                behind[pair] |= behind.get(parents, set()) | ({parents} if parents in causes else set())
        return behind

    def _cause(self, pair: Pair) -> Cause | None:
        """Why this pair differs by itself; None where it only follows."""
        left, right = self.left.nodes[pair[0]], self.right.nodes[pair[1]]
        if left.source is not None and right.source is not None:
            changes = payload_changes(_text_payload(left), _text_payload(right))
            return Cause(*pair, kind="data", changes=tuple(changes))
        parents = self._parents(pair)
        if left.key == right.key:
            return None if parents else self._other_bytes(pair)
        if left.record is None or right.record is None:
            return Cause(*pair, kind=UNKNOWN)
        changes = payload_changes(left.record.payload, right.record.payload)
        own = [c for c in changes if not (_is_name(c, pair) or self._is_explained(c, pair, parents))]
        if own:
            return Cause(*pair, kind=own[0].cause, changes=tuple(own))
        if parents:
            return None
        return Cause(*pair, kind=NAME if changes else UNKNOWN, changes=tuple(changes))

    def _is_explained(self, change: Change, pair: Pair, parents: Mapping[str, Pair]) -> bool:
        """Whether something that was read differs and brings this with it."""
        match change.path:
            case ("inputs", *role):
                return ".".join(role) in parents
            case ("config", "domains", domain, "source", *_):
                return f"{SOURCE}.{domain}" in parents
            case ("config", "source", *_):
                record = self.right.record(pair[1])
                assert record is not None
                return f"{SOURCE}.{record.payload['config'].get('domain')}" in parents
            case ("config", "origin", *_) | ("config", "digest"):
                return ORIGIN in parents
        return False

    def _other_bytes(self, pair: Pair) -> Cause:
        """Equal keys and equal inputs: how it was made differs, or making it is not deterministic."""
        records = self.left.record(pair[0]), self.right.record(pair[1])
        digests = self.left.digest(pair[0]), self.right.digest(pair[1])
        ours, theirs = records
        if ours is None or theirs is None or (ours.digest, theirs.digest) != digests:
            return Cause(*pair, kind=BYTES)  # of the bytes that were read, no record is left
        files = [{output.path: output.sha256 for output in record.outputs} for record in (ours, theirs)]
        names = sorted({*files[0], *files[1]})
        return Cause(
            *pair,
            kind=BYTES,
            changes=tuple(payload_changes(_circumstances(ours), _circumstances(theirs))),
            files=tuple(name for name in names if files[0].get(name) != files[1].get(name)),
        )


def _is_name(change: Change, pair: Pair) -> bool:
    """A stage's name, or the part of it that its configuration repeats: a reason only where there is no other."""
    (left, _), (right, _) = pair
    own_parts = StageName.parse(left).name or "", StageName.parse(right).name or ""
    return change.path == ("stage",) or (left != right and (change.old, change.new) == own_parts)


def _text_payload(node: Node) -> dict[str, Any]:
    return {"config": {"source": {**(node.source or {}), "digest": node.digest}}}


def _circumstances(record: Record) -> dict[str, Any]:
    """What no key has in it and may still change bytes: the code, the packages, the machines."""
    made_by = record.provenance
    commit, places, packages = made_by.get("git_commit"), made_by.get("ran_on"), made_by.get("packages")
    found = {
        "commit": commit[:_COMMIT] if isinstance(commit, str) else None,
        "changes no commit has": made_by.get("dirty_diff_sha256") or made_by.get("dirty"),
        "python": made_by.get("python"),
        "packages": packages if isinstance(packages, Mapping) else {},
        "hosts": ", ".join(hosts_of(made_by)),
        "workers": len(places) if isinstance(places, list) else None,
    }
    return {"provenance": found}


def _node_json(node: NodeId) -> dict[str, str]:
    return {"stage": node[0], "key": node[1]}


def _pair_json(left: NodeId, right: NodeId) -> dict[str, Any]:
    return {"left": _node_json(left), "right": _node_json(right)}


def _cause_json(cause: Cause) -> dict[str, Any]:
    return {
        **_pair_json(cause.left, cause.right),
        "cause": cause.kind,
        "changes": list(map(_change_json, cause.changes)),
        "files": list(cause.files),
        "follows": [stage for stage, _ in cause.follows],
    }


def _change_json(change: Change) -> dict[str, Any]:
    """A side that lacks the field has no entry."""
    sides = {"old": change.old, "new": change.new}
    there = {name: value for name, value in sides.items() if value is not Change.ABSENT}
    return {"path": list(change.path), **there, "words": str(change)}
