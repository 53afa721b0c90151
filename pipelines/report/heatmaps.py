"""Routing heat maps: a panel per domain, a row per layer, a column per expert, the domain's own outlined.

Layers in which the branch has no experts have no row; soft layers are marked.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.formats import MISSING, is_number
from pipelines.report.inputs import Json, ReportInputs, expert_labels, in_order, is_of, soft_layers
from pipelines.report.svg import CHAR, Panel, element, row_of, shortened

ROUTERS = {
    "attention": ("mean_gate", "attention router: mean gate, in percent"),
    "ffn": ("fraction", "FFN router: share of tokens, in percent"),
}
"""router -> (the figure shown, what it is). A soft attention router sends every token to every expert."""
SOFT = "; * soft layer: mean gate"

LEFT, TOP = 26.0, 44.0
CELL_W, CELL_H, GAP = 43.0, 23.0, 2.0
ENTROPY_W = 44.0


@dataclass(frozen=True)
class HeatMap:
    """The panels of one router of one model, a domain each."""

    model: str
    router: str
    caption: str
    panels: tuple[Panel, ...]

    def figure(self) -> Panel:
        return row_of(self.panels, title=f"{self.model}, {self.caption}")


def heat_maps(inputs: ReportInputs) -> list[HeatMap]:
    """Every router that `routing.json` has figures of, in the order of the models."""
    models = (inputs.routing or {}).get("models", {})
    made = []
    for model in in_order(models, inputs.domain_names):
        for router, (figure, caption) in ROUTERS.items():
            panels = tuple(_panels(model, models[model], router, figure, inputs.domain_names))
            if panels:
                note = SOFT if soft_layers(models[model], router) else ""
                made.append(HeatMap(model, router, caption + note, panels))
    return made


@dataclass(frozen=True)
class _Row:
    """One layer's figures as drawn."""

    label: str
    layer: int
    values: Sequence[Any]
    entropy: Any


def _panels(model: str, routing: Json, router: str, figure: str, domains: Sequence[str]) -> Iterator[Panel]:
    found = routing.get("domains", {})
    order = [domain for domain in domains if domain in found] + [d for d in found if d not in domains]
    experts, soft = expert_labels(routing, router), soft_layers(routing, router)
    for domain in order:
        shown = found[domain].get(router)
        if shown:
            rows = list(_rows(shown, figure, soft))
            yield _panel(f"{model}, {router} router, {domain}", domain, experts, rows)


def _rows(shown: Json, figure: str, soft: Sequence[int]) -> Iterator[_Row]:
    """Of the layers that have experts. In a soft layer all experts get every token: its gates say more."""
    entropy_L = shown.get("entropy", ())
    for layer in range(len(shown[figure])):
        is_soft = layer in soft
        values = shown["mean_gate" if is_soft else figure][layer]
        if values is not None:
            entropy = entropy_L[layer] if layer < len(entropy_L) else None
            yield _Row(f"{layer}*" if is_soft else str(layer), layer, values, entropy)


def _panel(what: str, domain: str, experts: Sequence[str], rows: Sequence[_Row]) -> Panel:
    width = LEFT + len(experts) * (CELL_W + GAP) + ENTROPY_W
    children = [element("text", shortened(domain, width - LEFT), class_="title", x=LEFT, y=14)]
    children += heads([column_name(expert) for expert in experts])
    children.append(element("text", "entropy", class_="dim small end", x=width, y=36))
    for place, row in enumerate(rows):
        children.append(row_name(place, row.label))
        for column, value in enumerate(row.values):
            told = f"{domain}, layer {row.layer}, expert {experts[column]}: {value}"
            text = f"{100 * value:.0f}" if is_number(value) else MISSING
            children += cell(place, column, value, text, told)
        if is_number(row.entropy):
            children.append(element("text", f"{row.entropy:.2f}", class_="dim small end", x=width, y=_y(place) + 16))
    for column, expert in enumerate(experts):
        if is_of(expert, domain):
            box = {"x": _x(column) - 1, "y": TOP - 1, "width": CELL_W + 2, "height": _y(len(rows)) - GAP - TOP + 2}
            children.append(element("rect", class_="own", rx=3, **box))
    label = f"{what}. {_in_words(experts, [row.values for row in rows])}"
    return Panel(width, _y(len(rows)), label, tuple(children))


def heads(names: Sequence[str]) -> Iterator[ET.Element]:
    """The names above the columns."""
    for column, name in enumerate(names):
        text = shortened(name, CELL_W + 4)
        yield element("text", text, class_="dim small mid", x=_x(column) + CELL_W / 2, y=36)


def row_name(place: int, name: str) -> ET.Element:
    return element("text", name, class_="dim small end", x=LEFT - 8, y=_y(place) + 16)


def cell(place: int, column: int, shade: Any, text: str, told: str) -> Iterator[ET.Element]:
    """One figure. shade: from 0 to 1; told: what it is, for the pointer."""
    x, y = _x(column), _y(place)
    box = {"x": x, "y": y, "width": CELL_W, "height": CELL_H, "rx": 2}
    yield element("rect", class_="blank", **box)
    opacity = f"{min(1.0, max(0.0, shade)):.3f}" if is_number(shade) else "0"
    yield element("rect", element("title", told), class_="cell", fill_opacity=opacity, **box)
    yield element("text", text, class_="small mid", x=x + CELL_W / 2, y=y + 16, pointer_events="none")


def own(place: int, column: int) -> ET.Element:
    """The outline of a cell that is of an expert and its own domain."""
    box = {"x": _x(column) - 1, "y": _y(place) - 1, "width": CELL_W + 2, "height": CELL_H + 2}
    return element("rect", class_="own", rx=3, **box)


def size(n_rows: int, n_columns: int) -> tuple[float, float]:
    """Width and height of a map without entropies."""
    return _x(n_columns), _y(n_rows)


def column_name(expert: str) -> str:
    """A label that keeps, when it is cut, what tells a copy or a column group from the others."""
    name, mark, number = expert, "", ""
    for sign in "#/":
        head, found, tail = expert.rpartition(sign)
        if found and tail.isdigit() and len(tail) <= 3:
            name, mark, number = head, sign, tail
    if not mark:
        return name
    wide = CHAR * (len(mark + number) + (0.5 if mark == "#" else 0))
    return shortened(name, CELL_W - wide) + mark + number


def _in_words(experts: Sequence[str], rows_LE: Sequence[Sequence[Any]]) -> str:
    """The mean over layers for each expert, for those who do not see the drawing."""
    parts = []
    for column, expert in enumerate(experts):
        values = [row[column] for row in rows_LE if is_number(row[column])]
        parts.append(f"{expert} {100 * sum(values) / len(values):.0f}%" if values else f"{expert} unknown")
    return "Mean over layers: " + ", ".join(parts) + "."


def _x(column: int) -> float:
    return LEFT + column * (CELL_W + GAP)


def _y(layer: int) -> float:
    return TOP + layer * (CELL_H + GAP)
