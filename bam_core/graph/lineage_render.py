"""A lineage graph as a tree for a terminal, JSON, Mermaid, or one HTML page that needs no network.

Pure: text in, text out. Every name is escaped for where it goes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import escape

from bam_core.graph.lineage import Edge, Graph, Node, NodeId, levels

BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN = 196, 46, 64, 18, 24
_SWEEPS = 6


def to_json(graph: Graph) -> str:
    return json.dumps(graph.to_json(), indent=1)


def to_text(graph: Graph, width: int = 100) -> str:
    """Trees of what the root was made from, and what from it. A shared node is drawn once, then `(above)`."""
    nodes = {node.id: node for node in graph.nodes}
    made_from = _tree(graph.edges, lambda edge: (edge.child, edge.parent))
    used_by = _tree(graph.edges, lambda edge: (edge.parent, edge.child))
    lines = [_line(nodes[graph.root])]
    if graph.root in made_from:
        lines += ["made from", *_branches(graph.root, made_from, nodes, {graph.root}, "")]
    if graph.root in used_by:
        lines += ["used by", *_branches(graph.root, used_by, nodes, {graph.root}, "")]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def to_mermaid(graph: Graph) -> str:
    """A flowchart that GitHub and MLflow notes draw."""
    ids = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        label = _mermaid_text(_short(node.id) + " (missing)" * node.missing)
        lines.append(f'  {ids[node.id]}["{label}"]')
    for edge in graph.edges:
        arrow = "-.->" if edge.replaced else "-->"
        label = "" if edge.role in (edge.parent[0], "source") else f'|"{_mermaid_text(edge.role)}"|'
        lines.append(f"  {ids[edge.parent]} {arrow}{label} {ids[edge.child]}")
    lines.append(f"  style {ids[graph.root]} stroke-width:3px")
    return "\n".join(lines)


def to_html(graph: Graph) -> str:
    """A self-contained page: parents left of children; drag to move, wheel to zoom, click for facts."""
    places = _places(graph)
    width = max(x for x, _ in places.values()) + BOX_W + MARGIN
    height = max(y for _, y in places.values()) + BOX_H + MARGIN
    parts = [
        *_edge_paths(graph, places),
        *(_box(node, places[node.id], node.id == graph.root) for node in graph.nodes),
    ]
    title = escape(_short(graph.root))
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="Lineage of {title}"'
    facts = json.dumps(graph.to_json()["nodes"]).replace("<", "\\u003c").replace("&", "\\u0026")
    values = {
        "title": title,
        "drawing": f"<svg {box}>{''.join(parts)}</svg>",
        "text": escape(to_text(graph, 160)),
        "facts": facts,
    }
    return re.sub(r"@(title|drawing|text|facts)@", lambda match: values[match[1]], _PAGE)


RENDERERS: dict[str, Callable[[Graph], str]] = {
    "text": to_text,
    "json": to_json,
    "mermaid": to_mermaid,
    "html": to_html,
}


_Tree = dict[NodeId, list[tuple[NodeId, Edge]]]


def _tree(edges: tuple[Edge, ...], ends: Callable[[Edge], tuple[NodeId, NodeId]]) -> _Tree:
    tree: _Tree = {}
    for edge in edges:
        near, far = ends(edge)
        tree.setdefault(near, []).append((far, edge))
    return tree


def _branches(start: NodeId, tree: _Tree, nodes: dict[NodeId, Node], shown: set[NodeId], indent: str) -> Iterator[str]:
    branches = tree.get(start, [])
    for number, (end, edge) in enumerate(branches):
        last = number == len(branches) - 1
        role = "" if edge.role in (edge.parent[0], "source") else f"{edge.role}: "
        note = ["(replaced since)"] * edge.replaced
        prefix = f"{indent}{'└─ ' if last else '├─ '}{role}"
        if end in shown:
            yield "  ".join([f"{prefix}{_short(end)}", *note, *["(above)"] * (end in tree)])
            continue
        shown.add(end)
        yield "  ".join([f"{prefix}{_short(end)}", *note, *_facts(nodes[end])])
        yield from _branches(end, tree, nodes, shown, indent + ("   " if last else "│  "))


def _line(node: Node) -> str:
    return "  ".join([_short(node.id), *_facts(node)])


def _short(node: NodeId) -> str:
    return f"{node[0]}@{node[1][:12]}"


def _facts(node: Node) -> Iterator[str]:
    """What fits beside a name: time, tokens, FLOPs, loss, commit."""
    if node.missing:
        yield "missing"
    if node.source is not None:
        yield str(node.source.get("kind", "text"))
    if node.seconds is not None:
        yield f"{node.seconds:,.1f} s"
    if node.tokens:
        yield f"{node.tokens:,} tokens"
    if node.flops:
        yield f"{node.flops:.2e} FLOPs"
    if "loss" in node.metrics:
        yield f"loss {node.metrics['loss']:.3f}"
    if node.git_commit:
        yield f"commit {node.git_commit[:10]}{'+changes' if node.dirty else ''}"


def _mermaid_text(text: str) -> str:
    """Mermaid's own escapes: everything that could end a label or start markup becomes `#code;`."""
    return "".join(char if char.isalnum() or char in " .@_-()" else f"#{ord(char)};" for char in text)


def _places(graph: Graph) -> dict[NodeId, tuple[int, int]]:
    """Left upper corner of each box: a column per level, ordered within by where its neighbours are."""
    level = levels((node.id for node in graph.nodes), graph.edges)
    columns: list[list[NodeId]] = [[] for _ in range(max(level.values()) + 1)]
    for node in graph.nodes:
        columns[level[node.id]].append(node.id)
    tallest = max(len(column) for column in columns)
    row: dict[NodeId, float] = {}
    for sweep in range(_SWEEPS):
        near = _near(graph.edges, parents=sweep % 2 == 0)
        for column in columns if sweep % 2 == 0 else reversed(columns):
            middles = {node: _middle([row[end] for end in near.get(node, []) if end in row]) for node in column}
            column.sort(key=lambda node, at=middles: at[node])  # type: ignore[misc]
            first = (tallest - len(column)) / 2
            row |= {node: first + number for number, node in enumerate(column)}
    return {
        node: (MARGIN + number * (BOX_W + GAP_X), MARGIN + round(row[node] * (BOX_H + GAP_Y)))
        for number, column in enumerate(columns)
        for node in column
    }


def _near(edges: tuple[Edge, ...], parents: bool) -> dict[NodeId, list[NodeId]]:
    near: dict[NodeId, list[NodeId]] = {}
    for edge in edges:
        node, end = (edge.child, edge.parent) if parents else (edge.parent, edge.child)
        near.setdefault(node, []).append(end)
    return near


def _middle(rows: list[float]) -> float:
    return sum(rows) / len(rows) if rows else 0.0


def _edge_paths(graph: Graph, places: dict[NodeId, tuple[int, int]]) -> Iterator[str]:
    numbers = {node.id: number for number, node in enumerate(graph.nodes)}
    for edge in graph.edges:
        x1, y1 = places[edge.parent][0] + BOX_W, places[edge.parent][1] + BOX_H // 2
        x2, y2 = places[edge.child][0], places[edge.child][1] + BOX_H // 2
        bend = (x2 - x1) // 2
        style = "edge replaced" if edge.replaced else "edge"
        yield (
            f'<path class="{style}" data-a="{numbers[edge.parent]}" data-b="{numbers[edge.child]}" '
            f'd="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}">'
            f"<title>{escape(edge.role)}</title></path>"
        )


def _box(node: Node, place: tuple[int, int], is_root: bool) -> str:
    x, y = place
    style = " ".join(["box", node.stage.partition(".")[0], *["root"] * is_root, *["missing"] * node.missing])
    name = node.stage if len(node.stage) <= 24 else node.stage[:23] + "…"
    facts = next(_facts(node), "")
    return (
        f'<g class="{escape(style)}" transform="translate({x} {y})" tabindex="0">'
        f'<rect width="{BOX_W}" height="{BOX_H}" rx="8"/><text x="12" y="19">{escape(name)}</text>'
        f'<text class="small" x="12" y="36">{escape(node.key[:12])}  {escape(facts)}</text>'
        f"<title>{escape(_line(node))}</title></g>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Lineage of @title@</title>
<style>
:root {
  color-scheme: light dark;
  --ink: #1d2430; --soft: #5b6676; --line: #a9b4c2; --paper: #fbfcfd; --box: #fff; --mark: #2563eb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8ecf2; --soft: #9aa6b6; --line: #55606f; --paper: #12161c; --box: #1b212a; --mark: #7aa7ff;
  }
}
body {
  margin: 0; padding: 1rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.1rem; margin: 0; }
p { margin: .2rem 0 .8rem; color: var(--soft); }
svg {
  width: 100%; height: 68vh; border: 1px solid var(--line); border-radius: 10px;
  cursor: grab; touch-action: none;
}
.box { cursor: pointer; outline: none; }
.box rect { fill: var(--box); stroke: var(--line); }
.box text { font: 600 14px system-ui, sans-serif; fill: var(--ink); }
.box .small { font: 11.5px ui-monospace, monospace; fill: var(--soft); }
.box:focus rect, .root rect { stroke: var(--mark); stroke-width: 2.5; }
.source rect { rx: 23px; }
.edge { fill: none; stroke: var(--line); stroke-width: 1.4; }
.edge.on { stroke: var(--mark); stroke-width: 2.4; }
.missing rect, .replaced { stroke-dasharray: 5 4; }
pre { overflow: auto; font: 12.5px/1.5 ui-monospace, monospace; }
</style>
</head>
<body>
<h1>Lineage of @title@</h1>
<p>Inputs are left of what was made from them. Drag to move, scroll to zoom, choose a box for its facts.
Dashed: missing, or replaced since.</p>
@drawing@
<pre id="facts">@text@</pre>
<script>
const nodes = @facts@;
const svg = document.querySelector("svg"), view = svg.viewBox.baseVal;
const facts = document.querySelector("#facts");
svg.addEventListener("wheel", event => {
  event.preventDefault();
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const zoom = event.deltaY > 0 ? 1.15 : 1 / 1.15;
  view.x = at.x - (at.x - view.x) * zoom;
  view.y = at.y - (at.y - view.y) * zoom;
  view.width *= zoom;
  view.height *= zoom;
}, {passive: false});
svg.addEventListener("pointermove", event => {
  if (event.buttons !== 1) return;
  const scale = svg.getScreenCTM().a;
  view.x -= event.movementX / scale;
  view.y -= event.movementY / scale;
});
document.querySelectorAll(".box").forEach((box, number) => box.addEventListener("focus", () => {
  facts.textContent = JSON.stringify(nodes[number], null, 1);
  document.querySelectorAll(".edge").forEach(edge =>
    edge.classList.toggle("on", edge.dataset.a == number || edge.dataset.b == number));
}));
</script>
</body>
</html>
"""
