"""Where the boxes and arrows of a lineage drawing lie: a column per level, parents on the left.

Longest-path levels, barycentre order, then the least-squares heights that keep that order. An arrow that others imply
(A to C where A leads to B and B to C) is drawn straight and faint; any other that passes a column has a lane there,
shared by all arrows of its parent, so that no box lies on it. Linear in nodes, edges and lanes, but for the bit sets of
ancestors.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bam_core.graph.lineage import Edge, Graph, NodeId, levels

BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN = 158, 66, 46, 16, 20
LANE_H = 10
_SWEEPS = 8
_MOST_LANES = 20_000

Lane = tuple[NodeId, int]
"""(parent, level): where the arrows of a parent pass a column."""
Slot = NodeId | Lane
Point = tuple[float, float]


@dataclass(frozen=True)
class Arrow:
    """way: from the parent's right edge over its lanes to the child's left edge. implied: others lead there too."""

    edge: Edge
    way: tuple[Point, ...]
    implied: bool


@dataclass(frozen=True)
class Layout:
    """boxes: left upper corners."""

    width: float
    height: float
    boxes: Mapping[NodeId, Point]
    arrows: tuple[Arrow, ...]


def layout(graph: Graph) -> Layout:
    level = levels((node.id for node in graph.nodes), graph.edges)
    implied = _implied(graph)
    through = _lanes([edge for edge in graph.edges if edge not in implied], level)
    is_lane = dict.fromkeys(lane for lanes in through.values() for lane in lanes)
    columns: list[list[Slot]] = [[] for _ in range(max(level.values()) + 1)]
    for node in graph.nodes:
        columns[level[node.id]].append(node.id)
    for lane in is_lane:
        columns[lane[1]].append(lane)
    before, after = _neighbours(graph.edges, implied, through)
    middle = _settle(columns, is_lane, before, after)
    top = min(y - _height(slot, is_lane) / 2 for slot, y in middle.items())
    bottom = max(y + _height(slot, is_lane) / 2 for slot, y in middle.items())

    def x(column: int) -> float:
        return MARGIN + column * (BOX_W + GAP_X)

    def at(slot: Slot) -> float:
        return round(middle[slot] - top + MARGIN, 1)

    arrows = []
    for edge in graph.edges:
        way: list[Point] = [(x(level[edge.parent]) + BOX_W, at(edge.parent))]
        for lane in through.get(edge, ()):
            way += [(x(lane[1]), at(lane)), (x(lane[1]) + BOX_W, at(lane))]
        arrows.append(Arrow(edge, (*way, (x(level[edge.child]), at(edge.child))), edge in implied))
    boxes = {node.id: (x(level[node.id]), at(node.id) - BOX_H / 2) for node in graph.nodes}
    return Layout(x(len(columns)) - GAP_X + MARGIN, bottom - top + 2 * MARGIN, boxes, tuple(arrows))


def _implied(graph: Graph) -> set[Edge]:
    """Edges from a node that is an ancestor of another parent of the same child."""
    parents: dict[NodeId, list[Edge]] = {}
    for edge in graph.edges:
        parents.setdefault(edge.child, []).append(edge)
    bit = {node.id: 1 << number for number, node in enumerate(graph.nodes)}
    ancestors: dict[NodeId, int] = {}
    implied = set()
    for node in graph.nodes:  # parents first
        edges, behind, direct = parents.get(node.id, []), 0, 0
        for edge in edges:
            behind |= ancestors[edge.parent]
            direct |= bit[edge.parent]
        implied |= {edge for edge in edges if behind & bit[edge.parent]}
        ancestors[node.id] = behind | direct
    return implied


def _lanes(edges: Sequence[Edge], level: Mapping[NodeId, int]) -> dict[Edge, list[Lane]]:
    """The lanes that each long edge takes; none at all when there would be too many to draw."""
    lanes = {
        edge: [(edge.parent, column) for column in range(level[edge.parent] + 1, level[edge.child])] for edge in edges
    }
    return lanes if sum(map(len, lanes.values())) <= _MOST_LANES else {}


_Near = Mapping[Slot, Sequence[Slot]]


def _neighbours(edges: Iterable[Edge], implied: set[Edge], through: Mapping[Edge, list[Lane]]) -> tuple[_Near, _Near]:
    """Slot -> its neighbours on the left, and on the right."""
    before: dict[Slot, list[Slot]] = {}
    after: dict[Slot, list[Slot]] = {}
    for edge in edges:
        if edge in implied:
            continue
        way = [edge.parent, *through.get(edge, ()), edge.child]
        for left, right in pairwise(way):
            if left not in before.setdefault(right, []):
                before[right].append(left)
                after.setdefault(left, []).append(right)
    return before, after


def _settle(columns: list[list[Slot]], is_lane: Container[Slot], before: _Near, after: _Near) -> dict[Slot, float]:
    """The middle of each slot. Orders each column by where its neighbours are, to and fro."""
    middle: dict[Slot, float] = {}
    for sweep in range(_SWEEPS):
        near, ways = (before, columns) if sweep % 2 == 0 else (after, columns[::-1])
        for column in ways:
            wish: dict[Slot, float] = {}
            for number, slot in enumerate(column):
                ends = [middle[end] for end in near.get(slot, ()) if end in middle]
                wish[slot] = sum(ends) / len(ends) if ends else middle.get(slot, number * (BOX_H + GAP_Y))
            column.sort(key=wish.__getitem__)
            middle |= zip(column, _spread(column, [wish[slot] for slot in column], is_lane), strict=True)
    return middle


def _spread(column: Sequence[Slot], wishes: Sequence[float], is_lane: Container[Slot]) -> list[float]:
    """Middles as near to the wishes as can be, in order and without overlap (pool adjacent violators)."""
    offsets, at = [], 0.0
    for number, slot in enumerate(column):
        if number:
            at += (_height(column[number - 1], is_lane) + _height(slot, is_lane)) / 2 + GAP_Y
        offsets.append(at)
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for wish, offset in zip(wishes, offsets, strict=True):
        mean, size = wish - offset, 1
        while pools and pools[-1][0] >= mean:
            left, n = pools.pop()
            mean, size = (mean * size + left * n) / (size + n), size + n
        pools.append((mean, size))
    shifts = [mean for mean, size in pools for _ in range(size)]
    return [shift + offset for shift, offset in zip(shifts, offsets, strict=True)]


def _height(slot: Slot, is_lane: Container[Slot]) -> float:
    return LANE_H if slot in is_lane else BOX_H
