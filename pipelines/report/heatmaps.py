"""Routing heat maps: a panel per domain, a row per layer, a column per expert, the domain's own outlined."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.formats import MISSING, is_number
from pipelines.report.inputs import Json, ReportInputs, in_order
from pipelines.report.svg import Panel, element, row_of, shortened

ROUTERS = {
    "attention": ("mean_gate", "attention router: mean gate, in percent"),
    "ffn": ("fraction", "FFN router: share of tokens, in percent"),
}
"""router -> (the figure shown, what it is). A soft attention router sends every token to every expert."""

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
                made.append(HeatMap(model, router, caption, panels))
    return made


def _panels(model: str, routing: Json, router: str, figure: str, domains: Sequence[str]) -> Iterator[Panel]:
    found = routing.get("domains", {})
    order = [domain for domain in domains if domain in found] + [d for d in found if d not in domains]
    for domain in order:
        shown = found[domain].get(router)
        if shown:
            yield _panel(f"{model}, {router} router, {domain}", domain, routing["experts"], shown, figure)


def _panel(what: str, domain: str, experts: Sequence[str], shown: Json, figure: str) -> Panel:
    rows_LE, entropy_L = shown[figure], shown.get("entropy", ())
    width = LEFT + len(experts) * (CELL_W + GAP) + ENTROPY_W
    children = [element("text", shortened(domain, width - LEFT), class_="title", x=LEFT, y=14)]
    for column, expert in enumerate(experts):
        x = _x(column) + CELL_W / 2
        children.append(element("text", shortened(expert, CELL_W + 4), class_="dim small mid", x=x, y=36))
    children.append(element("text", "entropy", class_="dim small end", x=width, y=36))
    for layer, row_E in enumerate(rows_LE):
        children.append(element("text", str(layer), class_="dim small end", x=LEFT - 8, y=_y(layer) + 16))
        for column, value in enumerate(row_E):
            children += _cell(layer, column, value, f"{domain}, layer {layer}, expert {experts[column]}")
        if layer < len(entropy_L) and is_number(entropy_L[layer]):
            text = f"{entropy_L[layer]:.2f}"
            children.append(element("text", text, class_="dim small end", x=width, y=_y(layer) + 16))
    if domain in experts:
        x, height = _x(list(experts).index(domain)), _y(len(rows_LE)) - GAP - TOP
        children.append(element("rect", class_="own", x=x - 1, y=TOP - 1, width=CELL_W + 2, height=height + 2, rx=3))
    label = f"{what}. {_in_words(experts, rows_LE)}"
    return Panel(width, _y(len(rows_LE)), label, tuple(children))


def _cell(layer: int, column: int, value: Any, what: str) -> Iterator[ET.Element]:
    x, y = _x(column), _y(layer)
    box = {"x": x, "y": y, "width": CELL_W, "height": CELL_H, "rx": 2}
    yield element("rect", class_="blank", **box)
    opacity = f"{min(1.0, max(0.0, value)):.3f}" if is_number(value) else "0"
    title = element("title", f"{what}: {value}")
    yield element("rect", title, class_="cell", fill_opacity=opacity, **box)
    text = f"{100 * value:.0f}" if is_number(value) else MISSING
    yield element("text", text, class_="small mid", x=x + CELL_W / 2, y=y + 16, pointer_events="none")


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
