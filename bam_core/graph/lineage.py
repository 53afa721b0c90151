"""What exactly made this, and what was made from it: a walk over records, without any I/O.

Invariant: an edge is what a record says it was made from, never what exists now. A parent whose record is
gone is a node marked `missing`; a parent that has been replaced since is an edge marked `replaced`. What was adopted
from another store has an edge `origin` from the artifact there, and that store's records go on from it.

Records may be damaged, or written by strangers: their values are looked at before they are used, and artifacts that
are their own ancestors are named, not walked in circles. Linear in records and edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from bam_core.errors import UsageError
from bam_core.graph.key import key12
from bam_core.graph.record import InputRef, Record

Direction = Literal["up", "down", "both"]
NodeId = tuple[str, str]
"""(stage, key); for a domain's text, (`source.<domain>`, digest of the text)."""

ORIGIN, SOURCE = "origin", "source"
CHECKPOINT = "checkpoint"
"""Roles of edges that are no input of a stage: from the artifact that was adopted, and from a text."""
_NAMED_IN_A_CYCLE = 8
_LARGEST = 1e300


@dataclass(frozen=True)
class RawSource:
    """A text that a stage read, or with domain CHECKPOINT a model. spec: what is said of it, without where it lies."""

    domain: str
    digest: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class ForeignRecord:
    """A record of another store, which an adopted artifact brought with it. store: that store's URI, for people."""

    record: Record
    store: str


@dataclass(frozen=True)
class Node:
    """An artifact, or a raw source. started, ended: epoch seconds. tokens, flops: of this stage's own training.

    hosts: where it ran. run, pipeline: the `bam run` that made it, and its recipe's name. store: URI of the other
    store that holds it, None for ours. record: the whole of it, where there is one; no part of what makes nodes equal.
    """

    stage: str
    key: str
    digest: str
    function: str | None = None
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    hosts: tuple[str, ...] = ()
    run: str | None = None
    pipeline: str | None = None
    git_commit: str | None = None
    dirty: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int | None = None
    flops: int | None = None
    source: Mapping[str, Any] | None = None
    store: str | None = None
    missing: bool = False
    record: Record | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> NodeId:
        return self.stage, self.key

    def to_json(self) -> dict[str, Any]:
        """All but the record."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "record"}


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
            "nodes": [node.to_json() for node in self.nodes],
            "edges": [edge.to_json() for edge in self.edges],
        }


def lineage(
    records: Iterable[Record], key: str, direction: Direction = "up", foreign: Iterable[ForeignRecord] = ()
) -> Graph:
    """All that `key` was made from (up), all that was made from it (down), or both.

    foreign: of other stores; where ours has an artifact too, its record is taken. Raises UsageError when no record has
    this key, and when artifacts are their own ancestors.
    """
    known: dict[NodeId, Record] = {}
    stores: dict[NodeId, str] = {}
    for ours in records:
        known[ours.stage, ours.key] = ours
    for other in foreign:
        place = (other.record.stage, other.record.key)
        if place not in known:
            known[place], stores[place] = other.record, other.store
    root = next((found for found in known if found[1] == key), None)
    if root is None:
        raise UsageError(f"no artifact with key {key12(key)}: `bam ls` lists what the store holds")
    edges = [edge for record in known.values() for edge in _edges_into(record, known)]
    wanted = {root}
    if direction in ("up", "both"):
        wanted |= _reach(root, _neighbours((edge.child, edge.parent) for edge in edges))
    if direction in ("down", "both"):
        wanted |= _reach(root, _neighbours((edge.parent, edge.child) for edge in edges))
    kept = [edge for edge in edges if edge.parent in wanted and edge.child in wanted]
    order = {node: (level, node) for node, level in levels(wanted, kept).items()}
    leaves = _leaves(known, stores)
    nodes = (
        _node(known[node], stores.get(node)) if node in known else leaves[node]
        for node in sorted(wanted, key=order.__getitem__)
    )
    kept.sort(key=lambda edge: (order[edge.child], order[edge.parent], edge.role))
    return Graph(root, tuple(nodes), tuple(kept))


def raw_sources(config: Mapping[str, Any]) -> list[RawSource]:
    """The texts that a stage's configuration names: one domain's (`data.*`), or several (`tokenizer`); or the
    checkpoint that it imports.

    A held-out text that has a source of its own is `DOMAIN.valid`.
    """
    domains = config.get("domains")
    parts = dict(domains) if isinstance(domains, Mapping) else {}
    if isinstance(config.get("domain"), str):
        parts[config["domain"]] = config
        parts[f"{config['domain']}.valid"] = {"source": config.get("valid")}
    found = []
    for domain, part in parts.items():
        spec = part.get("source") if isinstance(part, Mapping) else None
        if isinstance(spec, Mapping) and isinstance(spec.get("digest"), str):
            rest = {name: value for name, value in spec.items() if name != "digest"}
            found.append(RawSource(str(domain), spec["digest"], rest))
    brought = config.get("import")
    if isinstance(brought, Mapping) and isinstance(brought.get("digest"), str):
        kind = f"{brought.get('family', 'some')} {CHECKPOINT}"
        found.append(RawSource(CHECKPOINT, brought["digest"], {"kind": kind}))
    return found


def origin_of(record: Record) -> InputRef | None:
    """The artifact of another store that an adopted one is, as its configuration names it."""
    config = record.payload.get("config")
    named = config.get("origin") if isinstance(config, Mapping) else None
    if not isinstance(named, Mapping):
        return None
    stage, key, digest = (named.get(name) for name in ("stage", "key", "digest"))
    if not (isinstance(stage, str) and isinstance(key, str) and isinstance(digest, str)):
        return None
    return InputRef(stage, key, digest)


def levels(nodes: Iterable[NodeId], edges: Iterable[Edge]) -> dict[NodeId, int]:
    """Longest way from a node without parents: a child is above all of them.

    Raises UsageError, naming them, when artifacts are among their own ancestors.
    """
    level = dict.fromkeys(nodes, 0)
    children: dict[NodeId, list[NodeId]] = {}
    waiting_for = dict.fromkeys(level, 0)
    for edge in edges:
        children.setdefault(edge.parent, []).append(edge.child)
        waiting_for[edge.child] += 1
    ready = [node for node, count in waiting_for.items() if count == 0]
    for node in ready:
        for child in children.get(node, ()):
            level[child] = max(level[child], level[node] + 1)
            waiting_for[child] -= 1
            if waiting_for[child] == 0:
                ready.append(child)
    if len(ready) < len(level):
        raise UsageError(_contradiction(_cycle(children, set(level) - set(ready))))
    return level


def _cycle(children: Mapping[NodeId, Sequence[NodeId]], stuck: set[NodeId]) -> list[NodeId]:
    """One cycle among the nodes that wait for each other, each before what was made from it."""
    parent = {child: node for node in sorted(stuck) for child in children.get(node, ()) if child in stuck}
    node, seen = min(stuck), dict[NodeId, int]()
    while node not in seen:  # each of them waits for another of them, so this walk up must come round
        seen[node] = len(seen)
        node = parent[node]
    return list(reversed(list(seen)[seen[node] :]))


def _contradiction(cycle: list[NodeId]) -> str:
    names = [f"{stage}@{key12(key)}" for stage, key in cycle]
    if len(names) > _NAMED_IN_A_CYCLE:
        names[_NAMED_IN_A_CYCLE - 1 : -1] = [f"... {len(names) - _NAMED_IN_A_CYCLE} more ..."]
    way = " -> ".join([*names, names[0]])
    return (
        f"the records contradict each other: {way}: by them, each was made from the one before it, so an artifact "
        "would be among its own ancestors; `bam verify` of each says which record was changed"
    )


def _edges_into(record: Record, known: Mapping[NodeId, Record]) -> Iterator[Edge]:
    child = (record.stage, record.key)
    for role, ref in _refs(record):
        parent = known.get((ref.stage, ref.key))
        yield Edge((ref.stage, ref.key), child, role, parent is not None and parent.digest != ref.digest)
    for source in _sources_of(record):
        yield Edge(_source_id(source), child, SOURCE)


def _refs(record: Record) -> Iterator[tuple[str, InputRef]]:
    yield from record.inputs.items()
    if (origin := origin_of(record)) is not None:
        yield ORIGIN, origin


def _leaves(known: Mapping[NodeId, Record], stores: Mapping[NodeId, str]) -> dict[NodeId, Node]:
    """Ends of the graph that have no record: raw sources, and parents whose artifacts are gone."""
    leaves: dict[NodeId, Node] = {}
    for place, record in known.items():
        for role, ref in _refs(record):
            store = _text(record.provenance.get("adopted_from")) if role == ORIGIN else stores.get(place)
            if (ref.stage, ref.key) not in leaves or store is None:  # what ours had is ours, whoever else had it too
                leaves[ref.stage, ref.key] = Node(ref.stage, ref.key, ref.digest, store=store, missing=True)
        for source in _sources_of(record):
            stage, digest = _source_id(source)
            leaves[stage, digest] = Node(stage, digest, digest, source=dict(source.spec))
    return leaves


def _sources_of(record: Record) -> list[RawSource]:
    config = record.payload.get("config")
    return raw_sources(config) if isinstance(config, Mapping) else []


def _source_id(source: RawSource) -> NodeId:
    return f"{SOURCE}.{source.domain}", source.digest


def _node(record: Record, store: str | None) -> Node:
    made_by = record.provenance
    packages = made_by.get("packages")
    return Node(
        stage=record.stage,
        key=record.key,
        digest=record.digest,
        function=_text(record.payload.get("function")),
        started=_finite(record.started),
        ended=_finite(record.ended),
        seconds=_finite(record.seconds),
        hosts=hosts_of(made_by),
        run=_text(made_by.get("run")),
        pipeline=_text(made_by.get("pipeline")),
        git_commit=_text(made_by.get("git_commit")),
        dirty=made_by["dirty"] if isinstance(made_by.get("dirty"), bool) else None,
        packages={str(name): str(version) for name, version in packages.items()}
        if isinstance(packages, Mapping)
        else {},
        metrics={name: value for name, value in record.metrics.items() if _finite(value) is not None},
        tokens=_whole(record.metrics.get("train_tokens")),
        flops=_whole(record.metrics.get("train_flops")),
        store=store,
        record=record,
    )


def hosts_of(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Where it ran, each host once; of an older record, where the command was given."""
    places = provenance.get("ran_on")
    names = [place.get("host") for place in places if isinstance(place, Mapping)] if isinstance(places, list) else []
    found = dict.fromkeys(name for name in names if isinstance(name, str))
    return tuple(found) or tuple(filter(None, [_text(provenance.get("host"))]))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST else None


def _whole(value: Any) -> int | None:
    return int(value) if _finite(value) is not None else None


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
