"""The lineage as a layered drawing, sources on the left: longest-path layers, barycentre order, curves.

An arrow that others already imply (A to C where A leads to B and B to C) is drawn faint, and not at all where
it is long, so that the shape of the pipeline stays visible; a stage under the pointer shows all its inputs.
Any graph is drawn, even one with a cycle.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipelines.report.inputs import Json, group
from pipelines.report.svg import CHAR, Panel, element, shortened

NODE_H, ROW, COLUMN_GAP = 34.0, 44.0, 30.0
MAX_NODE_W = 150.0
SWEEPS = 8
LONG = 2
"""An implied arrow over more layers than this is only drawn for the stage under the pointer."""

Id = tuple[str, str]
"""(stage, key) of a node."""
Slot = tuple[Id, Id, int] | Id
"""A place in a layer: a node, or where a long arrow (from, to, layer) passes."""


@dataclass(frozen=True)
class Box:
    """Where a slot lies; all are NODE_H high."""

    x: float
    y: float
    width: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def middle(self) -> float:
        return self.y + NODE_H / 2


def lineage_panel(graph: Json | None) -> Panel | None:
    """The drawing of `bam lineage --format json`; None for an empty graph."""
    nodes: dict[Id, Json] = {node_id(node): node for node in (graph or {}).get("nodes", ())}
    if graph is None or not nodes:
        return None
    edges = sorted({(node_id(e["from"]), node_id(e["to"])) for e in graph.get("edges", ())})
    edges = [(a, b) for a, b in edges if a in nodes and b in nodes and a != b]
    parents = {node: [a for a, b in edges if b == node] for node in nodes}
    layers = layer_of(parents)
    strong = {(a, b) for a, b in edges if not _is_implied(a, b, parents)}
    boxes = _place(_arrange(layers, sorted(strong)), nodes)
    arrows = {
        node: [_arrow(parent, node, (parent, node) in strong, layers, boxes) for parent in parents[node]]
        for node in nodes
    }
    children = [_draw_inputs(nodes[node], boxes[node], arrows[node]) for node in nodes]
    children += [_draw_node(nodes[node], boxes[node]) for node in nodes]
    width = max(box.right for box in boxes.values()) + 1
    height = max(box.y for box in boxes.values()) + NODE_H + 1
    stages = ", ".join(sorted({node["stage"] for node in nodes.values()}))
    label = f"Lineage: {len(nodes)} artifacts, {len(edges)} inputs. Stages: {stages}."
    return Panel(width, height, label, tuple(children))


def node_id(node: Json) -> Id:
    return str(node["stage"]), str(node.get("key") or "")


def layer_of(parents: Mapping[Id, Sequence[Id]]) -> dict[Id, int]:
    """The length of the longest path to each node. Nodes on a cycle come after all others."""
    layers: dict[Id, int] = {}
    waiting = list(parents)
    while waiting:
        ready = [node for node in waiting if all(parent in layers for parent in parents[node])]
        if not ready:
            last = max(layers.values(), default=-1) + 1
            return layers | dict.fromkeys(waiting, last)
        for node in ready:
            layers[node] = max((layers[parent] + 1 for parent in parents[node]), default=0)
        waiting = [node for node in waiting if node not in layers]
    return layers


def _is_implied(start: Id, end: Id, parents: Mapping[Id, Sequence[Id]]) -> bool:
    """Whether `start` also reaches `end` through another node."""
    seen: set[Id] = set()
    queue = [parent for parent in parents[end] if parent != start]
    while queue:
        node = queue.pop()
        if node == start:
            return True
        if node not in seen and node != end:
            seen.add(node)
            queue.extend(parents[node])
    return False


def _arrange(layers: Mapping[Id, int], edges: Iterable[tuple[Id, Id]]) -> list[list[Slot]]:
    """Slots of each layer from top to bottom, long arrows included, ordered to have few crossings."""
    columns: list[list[Slot]] = [[] for _ in range(max(layers.values()) + 1)]
    for node, layer in layers.items():
        columns[layer].append(node)
    before: dict[Slot, list[Slot]] = {}
    after: dict[Slot, list[Slot]] = {}
    for start, end in edges:
        inner: list[Slot] = [(start, end, layer) for layer in range(layers[start] + 1, layers[end])]
        for slot, layer in zip(inner, range(layers[start] + 1, layers[end]), strict=True):
            columns[layer].append(slot)
        chain: list[Slot] = [start, *inner, end]
        for a, b in pairwise(chain):
            before.setdefault(b, []).append(a)
            after.setdefault(a, []).append(b)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for index in range(1, len(columns)) if forward else range(len(columns) - 2, -1, -1):
            fixed = columns[index - 1 if forward else index + 1]
            columns[index] = _by_barycentre(columns[index], fixed, before if forward else after)
    return columns


def _by_barycentre(column: list[Slot], fixed: list[Slot], neighbours: Mapping[Slot, list[Slot]]) -> list[Slot]:
    """The column ordered by the mean place of each slot's neighbours; slots without any keep their own."""
    place = {slot: index / max(1, len(fixed) - 1) for index, slot in enumerate(fixed)}

    def mean_place(item: tuple[int, Slot]) -> float:
        index, slot = item
        near = [place[other] for other in neighbours.get(slot, ()) if other in place]
        return sum(near) / len(near) if near else index / max(1, len(column) - 1)

    return [slot for _, slot in sorted(enumerate(column), key=mean_place)]


def _place(columns: Sequence[Sequence[Slot]], nodes: Mapping[Any, Json]) -> dict[Slot, Box]:
    """Columns as wide as their widest node, each centred on the tallest."""
    boxes: dict[Slot, Box] = {}
    tallest = max(len(column) for column in columns)
    x = 1.0
    for column in columns:
        width = max((_node_width(node) for slot in column if (node := nodes.get(slot))), default=0.0)
        top = 1 + (tallest - len(column)) * ROW / 2
        for row, slot in enumerate(column):
            boxes[slot] = Box(x, top + row * ROW, width)
        x += width + COLUMN_GAP
    return boxes


def _node_width(node: Json) -> float:
    return min(MAX_NODE_W, max(CHAR * len(str(node["stage"])), 6.3 * len(_short_key(node))) + 16)


def _short_key(node: Json) -> str:
    return str(node.get("key") or "")[:12]


def _arrow(start: Id, end: Id, strong: bool, layers: Mapping[Id, int], boxes: Mapping[Slot, Box]) -> ET.Element:
    """A curve from box to box, straight through the slots in between."""
    between = [(start, end, layer) for layer in range(layers[start] + 1, layers[end])] if strong else []
    path = f"M{boxes[start].right:.1f},{boxes[start].middle:.1f}"
    for a, b in pairwise([boxes[start], *(boxes[slot] for slot in between), boxes[end]]):
        half = max(COLUMN_GAP, b.x - a.right) / 2
        path += f" H{a.right:.1f} C{a.right + half:.1f},{a.middle:.1f}"
        path += f" {b.x - half:.1f},{b.middle:.1f} {b.x:.1f},{b.middle:.1f}"
    weak = " implied" if layers[end] - layers[start] <= LONG else " long"
    return element("path", class_="edge" + ("" if strong else weak), d=path)


def _draw_inputs(node: Json, box: Box, arrows: Sequence[ET.Element]) -> ET.Element:
    """The arrows into a node, and where to point to bring them out: below all nodes, which let it through."""
    facts = [f"{node['stage']} {node.get('key') or ''}".strip()]
    facts += [f"{name} {node[name]}" for name in ("digest", "git_commit", "seconds", "tokens") if node.get(name)]
    facts += ["not in the store"] if node.get("missing") else []
    return element(
        "g",
        element("title", ", ".join(facts)),
        *arrows,
        element("rect", class_="hit", x=box.x, y=box.y, width=box.width, height=NODE_H),
        class_="inputs",
    )


def _draw_node(node: Json, box: Box) -> ET.Element:
    kind = "missing" if node.get("missing") else _kind(str(node["stage"]))
    return element(
        "g",
        element("rect", x=box.x, y=box.y, width=box.width, height=NODE_H, rx=4),
        element("text", shortened(str(node["stage"]), box.width - 10), x=box.x + 8, y=box.y + 15),
        element("text", _short_key(node), class_="key", x=box.x + 8, y=box.y + 28),
        class_=f"node {kind}",
    )


def _kind(stage: str) -> str:
    first = stage.split(".", 1)[0]
    return first if first == "source" else "model" if group(stage) != "other" else "step"
