"""A lineage as one HTML page that needs no network: a drawing to walk through, and the record of every artifact in it.

Invariant: what a record says reaches the page as text only. The drawing is escaped here; the records travel as JSON
in which nothing can end its element, and the page's script writes them by `textContent`. The page's policy lets no
other script or style run than its own, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from importlib import resources
from math import isfinite
from typing import Any

from bam_core.graph.key import key12
from bam_core.graph.lineage import CHECKPOINT, SOURCE, Graph, Node
from bam_core.graph.lineage_layout import BOX_H, BOX_W, Arrow, Layout, Point, layout
from bam_core.graph.lineage_text import to_text
from bam_core.graph.stage import kind_of
from bam_core.graph.words import clip, count, duration, printable, short

KINDS = {
    "text": ("texts and data", (SOURCE, "discover", "tokenizer", "data")),
    "dense": ("dense models", ("seed", "expert", "dense", "adopt", "adopted", "import", "imported")),
    "mixture": ("mixtures", ("mix", "edit", "train", "distil")),
    "figures": ("searches, evaluations, reports", ("tune", "overlap", "evaluate", "routing", "report")),
    "other": ("others", ("export",)),
}
"""Colour -> (its name in the legend, first parts of the stages' names)."""
_NAME_COLUMNS, _FACT_COLUMNS, _TITLE_COLUMNS, _TREE_COLUMNS = 18, 20, 120, 140
_EXACT = 2**53
"""Beyond it, a page's numbers are no longer whole numbers: seeds are written as text."""


def to_html(graph: Graph) -> str:
    drawn = layout(graph)
    style, script = _part("lineage.css"), _part("lineage.js")
    values = {
        "title": escape(clip(short(graph.root), _TITLE_COLUMNS)),
        "summary": escape(_summary(graph)),
        "drawing": _drawing(graph, drawn),
        "legend": "".join(_legend(graph)),
        "text": escape(to_text(graph, _TREE_COLUMNS)),
        "data": _data(graph),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
    }
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], _part("lineage.html"))


@cache
def _part(name: str) -> str:
    return resources.files("bam_core.graph").joinpath("page", name).read_text("utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _summary(graph: Graph) -> str:
    sources = [node.stage for node in graph.nodes if node.source is not None]
    checkpoints = sources.count(f"{SOURCE}.{CHECKPOINT}")
    missing = sum(node.missing for node in graph.nodes)
    counts = {"artifact": len(graph.nodes) - len(sources), "text": len(sources) - checkpoints, CHECKPOINT: checkpoints}
    words = [_counted(number, word) for word, number in counts.items() if number or word == "artifact"]
    return f"{', '.join(words)}{f', {missing} of them missing' if missing else ''}."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _data(graph: Graph) -> str:
    """The nodes with their records, and the edges by number, safe inside a `script` element."""
    number = {node.id: place for place, node in enumerate(graph.nodes)}
    value = {
        "root": number[graph.root],
        "nodes": [
            node.to_json() | {"record": None if node.record is None else node.record.to_json()} for node in graph.nodes
        ],
        "edges": [
            {"a": number[edge.parent], "b": number[edge.child], "role": edge.role, "replaced": edge.replaced}
            for edge in graph.edges
        ],
    }
    text = json.dumps(_finite(value), separators=(",", ":"), default=str)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _finite(value: Any) -> Any:
    """The value with words for the numbers that JavaScript has not."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    is_lost = isinstance(value, float) and not isfinite(value)
    is_rounded = isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT
    return str(value) if is_lost or is_rounded else value


def _drawing(graph: Graph, drawn: Layout) -> str:
    width, height = f"{drawn.width:g}", f"{drawn.height:g}"
    parts = [
        *(_path(arrow) for arrow in drawn.arrows),
        *(_box(node, drawn.boxes[node.id], node.id == graph.root) for node in graph.nodes),
    ]
    return (
        f'<svg id="drawing" viewBox="0 0 {width} {height}" data-w="{width}" data-h="{height}" '
        f'data-box-w="{BOX_W}" data-box-h="{BOX_H}" role="group" aria-label="Lineage of {escape(short(graph.root))}">'
        f'<g id="scene">{"".join(parts)}</g></svg>'
    )


def _path(arrow: Arrow) -> str:
    edge = arrow.edge
    style = " ".join(["edge", *["implied"] * arrow.implied, *["replaced"] * edge.replaced])
    (x, y), *rest = arrow.way
    way = [f"M{x:g} {y:g}"]
    for place, (x2, y2) in enumerate(rest):
        if place % 2:  # along a lane
            way.append(f"L{x2:g} {y2:g}")
        else:
            bend = (x2 - x) / 2 if x2 - x < 2 * BOX_W else BOX_W
            way.append(f"C{x + bend:g} {y:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}")
        x, y = x2, y2
    role = printable(edge.role)
    return f'<path class="{style}" d="{"".join(way)}"><title>{escape(clip(role, 200))}</title></path>'


def _box(node: Node, place: Point, is_root: bool) -> str:
    x, y = (f"{value:g}" for value in place)
    marks = {"root": is_root, "missing": node.missing, "foreign": node.store is not None, "source": node.source}
    style = " ".join(["box", _kind(node), *(name for name, holds in marks.items() if holds)])
    name, fact = printable(node.stage), _fact(node)
    label = escape(f"{clip(name, 200)}, {fact}" if fact else clip(name, 200))
    return (
        f'<g class="{style}" transform="translate({x} {y})" data-x="{x}" data-y="{y}" tabindex="0" role="button" '
        f'aria-label="{label}"><rect class="frame" width="{BOX_W}" height="{BOX_H}" rx="9"/>'
        f'<rect class="bar" x="7" y="10" width="4" height="{BOX_H - 20}" rx="2"/>'
        f'<svg class="inside" width="{BOX_W - 5}" height="{BOX_H}">'  # what is too wide ends at the frame
        f'<text x="18" y="22">{escape(clip(name, _NAME_COLUMNS))}</text>'
        f'<text class="small" x="18" y="40">{escape(printable(key12(node.key)))}</text>'
        f'<text class="small" x="18" y="55">{escape(clip(fact, _FACT_COLUMNS))}</text>'
        f"</svg><title>{label}</title></g>"
    )


def _kind(node: Node) -> str:
    """One of ours, whatever the stage is called."""
    names = (kind_of(node.stage), node.function)
    return next((kind for kind, (_, stages) in KINDS.items() if any(name in stages for name in names)), "other")


def _fact(node: Node) -> str:
    """What a reader of the drawing asks first."""
    if node.missing:
        return "missing"
    if node.source is not None:
        return printable(str(node.source.get("kind", "text")))
    if "loss" in node.metrics:
        return f"loss {node.metrics['loss']:.3g}" + (f" {count(node.tokens)}" if node.tokens else "")
    return "" if node.seconds is None else duration(node.seconds)


def _legend(graph: Graph) -> Iterator[str]:
    shown = {_kind(node) for node in graph.nodes}
    for kind, (words, _) in KINDS.items():
        if kind in shown:
            yield f'<li class="{kind}">{words}</li>'
    if any(edge.replaced for edge in graph.edges):
        yield '<li class="dashed">made again since</li>'
    if any(node.missing or node.store for node in graph.nodes):
        yield '<li class="dashed">missing, or in another store</li>'
