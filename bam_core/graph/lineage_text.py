"""A lineage as trees for a terminal: what the root was made from, and what was made from it, with aligned facts.

An artifact is drawn once, where it is met first; wherever it is met again it is named in one line, `above: ...`.
Facts that do not fit the width are left out, the least asked for first; what is the same for all stands once below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bam_core.graph.key import key12
from bam_core.graph.lineage import Edge, Graph, Node, NodeId
from bam_core.graph.stage import StageName
from bam_core.graph.words import clip, count, duration, listed, printable, short, when, width

NARROWEST = 40
"""Columns; less is taken for this."""
GAP = 2
COMMIT = 10
"""Hex digits of a commit."""


@dataclass(frozen=True)
class _Row:
    """A line before it is laid out. node: whose facts stand in it; `names` instead: of what is drawn above."""

    stem: str
    role: str = ""
    node: Node | None = None
    note: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Column:
    title: str
    of: Callable[[Node], str]
    to_right: bool = True


def to_text(graph: Graph, columns: int = 100) -> str:
    """Lines of at most `columns` columns."""
    columns = max(columns, NARROWEST)
    rows = [_shallow(row, columns) for row in (_Row("", node=_nodes(graph)[graph.root]), *_trees(graph))]
    artifacts = [node for node in graph.nodes if node.source is None and not node.missing]
    shown = _fitting(rows, artifacts, columns)
    labels = min(_label_width(rows, columns), columns - sum(GAP + room for _, room in shown))
    head = [_line("", shown, [column.title for column, _ in shown], labels)] if shown else []
    body = [_laid_out(row, shown, labels, columns) for row in rows]
    return "\n".join([*head, *body, *_common(artifacts, shown, columns)])


def _shallow(row: _Row, columns: int) -> _Row:
    """Of a deep branch, the part nearest to what it holds."""
    limit = columns // 3
    return row if len(row.stem) <= limit else replace(row, stem="…" + row.stem[1 - limit :])


def _nodes(graph: Graph) -> dict[NodeId, Node]:
    return {node.id: node for node in graph.nodes}


_Branches = dict[NodeId, list[tuple[NodeId, Edge]]]


def _trees(graph: Graph) -> Iterator[_Row]:
    """What is farthest from the root comes first, so that no branch has to be drawn inside its neighbour."""
    made_from: _Branches = {}
    used_by: _Branches = {}
    order = {node.id: number for number, node in enumerate(graph.nodes)}
    for edge in sorted(graph.edges, key=lambda edge: order[edge.parent]):
        made_from.setdefault(edge.child, []).append((edge.parent, edge))
    for edge in sorted(graph.edges, key=lambda edge: -order[edge.child]):
        used_by.setdefault(edge.parent, []).append((edge.child, edge))
    for title, branches in (("made from", made_from), ("used by", used_by)):
        if graph.root in branches:
            yield _Row(title)
            yield from _tree(graph, branches)


def _tree(graph: Graph, branches: _Branches) -> Iterator[_Row]:
    nodes, shown = _nodes(graph), {graph.root}
    unique = _unique_stages(graph)
    ahead = _children(graph.root, "", branches, nodes, shown, unique)[::-1]
    while ahead:
        row = ahead.pop()
        if row.node is None or row.node.id in shown:
            yield row
            continue
        shown.add(row.node.id)
        yield row
        below = row.stem[:-3] + ("   " if row.stem.endswith("└─ ") else "│  ")
        ahead += _children(row.node.id, below, branches, nodes, shown, unique)[::-1]


def _children(
    node: NodeId, stem: str, branches: _Branches, nodes: dict[NodeId, Node], shown: set[NodeId], unique: set[str]
) -> list[_Row]:
    """Rows of what is met here first or replaced since; then one for all that is drawn above."""
    rows, above, met = [], [], set[NodeId]()
    for end, edge in branches.get(node, ()):
        parent = StageName.parse(edge.parent[0])
        is_plain = edge.role in (str(parent), parent.plain, parent.kind)
        role = "" if is_plain else f"{printable(edge.role)}: "
        is_above = end in shown or end in met
        if is_above and not edge.replaced:
            above.append(role + (printable(end[0]) if end[0] in unique else short(end)))
        else:
            notes = [_note(nodes[end]), "above" * is_above, "replaced since" * edge.replaced]
            rows.append(_Row("", role, nodes[end], ", ".join(filter(None, notes))))
            met.add(end)
    if above:
        rows.append(_Row("", names=tuple(dict.fromkeys(above))))
    turns = ["├─ "] * (len(rows) - 1) + ["└─ "]
    return [_Row(stem + turn, row.role, row.node, row.note, row.names) for row, turn in zip(rows, turns, strict=False)]


def _unique_stages(graph: Graph) -> set[str]:
    stages = sorted(node.stage for node in graph.nodes)
    return set(stages) - {stage for stage, following in pairwise(stages) if stage == following}


def _note(node: Node) -> str:
    store = f"in {printable(node.store)}" if node.store else ""
    kind = printable(str(node.source.get("kind", "text"))) if node.source is not None else ""
    return ", ".join(filter(None, [kind, "missing" if node.missing else "", store]))


def _commit(node: Node) -> str:
    return printable(node.git_commit[:COMMIT]) + ("+" if node.dirty else "") if node.git_commit else ""


_COLUMNS = (
    _Column("took", lambda node: "" if node.seconds is None else duration(node.seconds)),
    _Column("tokens", lambda node: count(node.tokens) if node.tokens else ""),
    _Column("FLOPs", lambda node: f"{node.flops:.2e}" if node.flops else ""),
    _Column("loss", lambda node: f"{node.metrics['loss']:.3f}" if "loss" in node.metrics else ""),
    _Column("made", lambda node: "" if node.started is None else when(node.started)),
    _Column("commit", _commit, to_right=False),
    _Column("host", lambda node: printable(", ".join(node.hosts)), to_right=False),
)
_WANTED_FIRST = ("took", "loss", "tokens", "FLOPs", "made", "commit", "host")
_SAID_BELOW = {"commit": "code", "host": "host"}
"""Columns that become one line where all artifacts agree."""
_WIDEST = 24


def _fitting(rows: Sequence[_Row], artifacts: Sequence[Node], columns: int) -> list[tuple[_Column, int]]:
    """The facts that are shown, in their order, each with its width."""
    room = columns - _label_width(rows, columns)
    chosen: dict[str, int] = {}
    for column in sorted(_COLUMNS, key=lambda column: _WANTED_FIRST.index(column.title)):
        values = {column.of(node) for node in artifacts}
        if values <= {""} or (column.title in _SAID_BELOW and len(values) == 1):
            continue
        needed = min(_WIDEST, max(width(text) for text in (*values, column.title)))
        if needed + GAP <= room:
            chosen[column.title] = needed
            room -= needed + GAP
    return [(column, chosen[column.title]) for column in _COLUMNS if column.title in chosen]


def _label_width(rows: Sequence[_Row], columns: int) -> int:
    widest = max((width(_label(row, columns)) for row in rows if _has_facts(row)), default=0)
    return min(widest, columns * 3 // 4)


def _has_facts(row: _Row) -> bool:
    """Others need not leave room for them."""
    is_artifact = row.node is not None and row.node.source is None and not row.node.missing
    return is_artifact and "above" not in row.note.split(", ")


def _label(row: _Row, columns: int) -> str:
    """`stem role: stage@key12 (note)` in at most `columns`: of a long one the stage's name is cut, then the note."""
    assert row.node is not None, row
    name, key = printable(row.node.stage), f"@{printable(key12(row.node.key))}"
    note = f" ({row.note})" if row.note else ""
    free = max(0, columns - len(row.stem) - width(key))
    note = clip(note, max(0, free - min(width(row.role + name), free // 2)))
    return row.stem + clip(row.role + name, free - width(note)) + key + note


def _laid_out(row: _Row, shown: Sequence[tuple[_Column, int]], labels: int, columns: int) -> str:
    if row.node is None:
        return row.stem + (f"above: {listed(row.names, columns - len(row.stem) - 7)}" if row.names else "")
    if not _has_facts(row):
        return clip(_label(row, columns), columns)
    return clip(_line(_label(row, labels), shown, [column.of(row.node) for column, _ in shown], labels), columns)


def _line(label: str, shown: Sequence[tuple[_Column, int]], facts: Sequence[str], labels: int) -> str:
    line = label + " " * (labels - width(label))
    for (column, room), fact in zip(shown, facts, strict=False):
        fact = clip(fact, room)
        space = " " * (room - width(fact))
        line += " " * GAP + (space + fact if column.to_right else fact + space)
    return line.rstrip()


def _common(artifacts: Sequence[Node], shown: Sequence[tuple[_Column, int]], columns: int) -> Iterator[str]:
    """What all artifacts share and no column says."""
    titles = {column.title for column, _ in shown}
    words = []
    for column in _COLUMNS:
        values = {column.of(node) for node in artifacts}
        if column.title in _SAID_BELOW and column.title not in titles and len(values) == 1 and values != {""}:
            words.append(f"{_SAID_BELOW[column.title]} {values.pop()}")
    runs = {node.run for node in artifacts}
    if len(runs) == 1 and (run := runs.pop()):
        words.append(f"run {printable(run)}")
    if words:
        yield clip(("all: " if len(artifacts) > 1 else "") + ", ".join(words), columns)
    if any(node.dirty for node in artifacts) and ("commit" in titles or any(word.endswith("+") for word in words)):
        yield clip("+ with changes that no commit has", columns)
