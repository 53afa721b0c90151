"""What exactly made this, and what was made from it: a walk over records, without any I/O.

Invariant: an edge is what a record says it was made from, never what exists now. A parent whose record is
gone is a node marked `missing`; a parent that has been replaced since is an edge marked `replaced`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bam_core.errors import UsageError
from bam_core.graph.record import Record

Direction = Literal["up", "down", "both"]
NodeId = tuple[str, str]
"""(stage, key); for a domain's text, (`source.<domain>`, digest of the text)."""


@dataclass(frozen=True)
class RawSource:
    """A text that a stage read. spec: what the recipe said of it, without where it lies."""

    domain: str
    digest: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """An artifact, or a raw source. started: epoch seconds. tokens, flops: of this stage's own training."""

    stage: str
    key: str
    digest: str
    started: float | None = None
    seconds: float | None = None
    git_commit: str | None = None
    dirty: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int | None = None
    flops: int | None = None
    source: Mapping[str, Any] | None = None
    missing: bool = False

    @property
    def id(self) -> NodeId:
        return self.stage, self.key


@dataclass(frozen=True)
class Edge:
    """parent was read by child, as `role`. replaced: the parent on record now has other bytes."""

    parent: NodeId
    child: NodeId
    role: str
    replaced: bool = False

    def to_json(self) -> dict[str, Any]:
        ends = {name: dict(zip(("stage", "key"), end, strict=True)) for name, end in self._ends()}
        return {**ends, "role": self.role, "replaced": self.replaced}

    def _ends(self) -> tuple[tuple[str, NodeId], tuple[str, NodeId]]:
        return ("from", self.parent), ("to", self.child)


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, parents first."""

    root: NodeId
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "root": dict(zip(("stage", "key"), self.root, strict=True)),
            "nodes": [asdict(node) for node in self.nodes],
            "edges": [edge.to_json() for edge in self.edges],
        }


def lineage(records: Iterable[Record], key: str, direction: Direction = "up") -> Graph:
    """All that `key` was made from (up), all that was made from it (down), or both.

    Raises UsageError when no record has this key.
    """
    known = {(record.stage, record.key): record for record in records}
    root = next((found for found in known if found[1] == key), None)
    if root is None:
        raise UsageError(f"no artifact with key {key[:12]}: `bam ls` lists what the store holds")
    edges = [edge for record in known.values() for edge in _edges_into(record, known)]
    wanted = {root}
    if direction in ("up", "both"):
        wanted |= _reach(root, _neighbours((edge.child, edge.parent) for edge in edges))
    if direction in ("down", "both"):
        wanted |= _reach(root, _neighbours((edge.parent, edge.child) for edge in edges))
    kept = [edge for edge in edges if edge.parent in wanted and edge.child in wanted]
    order = {node: (level, node) for node, level in levels(wanted, kept).items()}
    leaves = _leaves(known.values())
    nodes = (_node(known[node]) if node in known else leaves[node] for node in sorted(wanted, key=order.__getitem__))
    kept.sort(key=lambda edge: (order[edge.child], order[edge.parent], edge.role))
    return Graph(root, tuple(nodes), tuple(kept))


def raw_sources(config: Mapping[str, Any]) -> list[RawSource]:
    """The texts that a stage's configuration names: one domain's (`data.*`), or several (`tokenizer`)."""
    domains = config.get("domains")
    parts = dict(domains) if isinstance(domains, Mapping) else {}
    if "domain" in config:
        parts[config["domain"]] = config
    found = []
    for domain, part in parts.items():
        spec = part.get("source") if isinstance(part, Mapping) else None
        if isinstance(spec, Mapping) and "digest" in spec:
            rest = {name: value for name, value in spec.items() if name != "digest"}
            found.append(RawSource(domain, spec["digest"], rest))
    return found


def levels(nodes: Iterable[NodeId], edges: Iterable[Edge]) -> dict[NodeId, int]:
    """Longest way from a node without parents: a child is above all of them. Raises UsageError on a cycle."""
    parents: dict[NodeId, set[NodeId]] = {node: set() for node in nodes}
    for edge in edges:
        parents[edge.child].add(edge.parent)
    level: dict[NodeId, int] = {}
    while len(level) < len(parents):
        ready = [node for node in parents if node not in level and parents[node] <= level.keys()]
        if not ready:
            raise UsageError("the records of this store contradict each other: an artifact is among its own ancestors")
        level |= {node: 1 + max((level[parent] for parent in parents[node]), default=-1) for node in ready}
    return level


def _edges_into(record: Record, known: Mapping[NodeId, Record]) -> Iterable[Edge]:
    child = (record.stage, record.key)
    for role, ref in record.inputs.items():
        parent = known.get((ref.stage, ref.key))
        yield Edge((ref.stage, ref.key), child, role, parent is not None and parent.digest != ref.digest)
    for source in _sources_of(record):
        yield Edge(_source_id(source), child, "source")


def _leaves(records: Iterable[Record]) -> dict[NodeId, Node]:
    """Ends of the graph that have no record: raw sources, and parents whose artifacts are gone."""
    leaves: dict[NodeId, Node] = {}
    for record in records:
        for ref in record.inputs.values():
            leaves[ref.stage, ref.key] = Node(ref.stage, ref.key, ref.digest, missing=True)
        for source in _sources_of(record):
            stage, digest = _source_id(source)
            leaves[stage, digest] = Node(stage, digest, digest, source=dict(source.spec))
    return leaves


def _sources_of(record: Record) -> list[RawSource]:
    return raw_sources(record.payload.get("config", {}))


def _source_id(source: RawSource) -> NodeId:
    return f"source.{source.domain}", source.digest


def _node(record: Record) -> Node:
    figures = {
        name: value
        for name, value in record.metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    made_by = record.provenance
    return Node(
        stage=record.stage,
        key=record.key,
        digest=record.digest,
        started=record.started,
        seconds=record.seconds,
        git_commit=made_by.get("git_commit"),
        dirty=made_by.get("dirty"),
        packages=dict(made_by.get("packages") or {}),
        metrics=figures,
        tokens=record.metrics.get("train_tokens"),
        flops=record.metrics.get("train_flops"),
    )


def _neighbours(pairs: Iterable[tuple[NodeId, NodeId]]) -> dict[NodeId, set[NodeId]]:
    neighbours: dict[NodeId, set[NodeId]] = {}
    for start, end in pairs:
        neighbours.setdefault(start, set()).add(end)
    return neighbours


def _reach(start: NodeId, neighbours: Mapping[NodeId, set[NodeId]]) -> set[NodeId]:
    found: set[NodeId] = set()
    ahead = [start]
    while ahead:
        new = neighbours.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found
