"""What forms of a model cost against what they are worth: a panel for each kind of cost, and the rows as a table.

Forms that are optimal in all together are filled, the others hollow; a line joins those that are optimal in what the
panel shows. A number beside each is that of its row.
"""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report import formats
from pipelines.report.curves import nice_ticks
from pipelines.report.svg import CHAR, Panel, element, row_of, shortened

WIDTH, HEIGHT = 300.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 18.0, 30.0, 40.0
LINE = 16.0
COSTS = {
    "flops_per_token": ("FLOPs per token", formats.flops),
    "cache_bytes_per_token": ("cache bytes per token", formats.count),
    "tokens_per_s": ("new tokens per second", formats.count),
}
SPEED = "tokens_per_s"
"""Of the costs the one that is better when it is greater."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        room = 0.08 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
        return cls(min(values) - room, max(values) + room, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def pareto_panel(rows: Sequence[Row]) -> Panel:
    """rows: as `Row.to_json` of `bam_core.evaluate.pareto` gives them, with `optimal`."""
    costs = [name for name in COSTS if all(formats.is_number(row.get(name)) for row in rows)]
    drawn = row_of([_panel(rows, name) for name in costs], title="Average perplexity against what a token costs")
    top = drawn.height + LINE
    names = [
        element("text", f"{place + 1}. {shortened(row['name'], drawn.width - 4 * CHAR)}", x=0, y=top + LINE * place)
        for place, row in enumerate(rows)
    ]
    told = "; ".join(f"{row['name']} {row['average_perplexity']:.2f}" for row in rows if row["optimal"])
    label = f"Average perplexity against what a token costs. Optimal: {told}."
    return Panel(drawn.width, top + LINE * len(rows), label, (*drawn.children, *names))


def pareto_csv(rows: Sequence[Row]) -> str:
    """With the inputs' own digits; a column for each domain."""
    domains = list(dict.fromkeys(domain for row in rows for domain in row["perplexity"]))
    plain = [name for name in rows[0] if name not in ("perplexity", "tokens_per_s_of_rounds")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain, *(f"perplexity_{domain}" for domain in domains)])
    for row in rows:
        values = [row[name] for name in plain]
        writer.writerow([*("" if value is None else value for value in values), *map(row["perplexity"].get, domains)])
    return out.getvalue()


def front(xs: Sequence[float], ys: Sequence[float], *, rising: bool) -> list[tuple[float, float]]:
    """The points that no other one is as good as in both, from the cheapest on; rising: a greater x is cheaper."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(zip(xs, ys, strict=True), key=lambda point: (-point[0] if rising else point[0], point[1])):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def _panel(rows: Sequence[Row], cost: str) -> Panel:
    title, shown = COSTS[cost]
    xs, ys = [float(row[cost]) for row in rows], [float(row["average_perplexity"]) for row in rows]
    across, up = _Axis.of(xs, LEFT, WIDTH - RIGHT), _Axis.of(ys, HEIGHT - BOTTOM, TOP)
    children = [*_scales(across, up, shown), element("text", title, class_="dim small end", x=WIDTH - RIGHT, y=HEIGHT)]
    line = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in front(xs, ys, rising=cost == SPEED))
    children.append(element("polyline", class_="curve raw s1", points=line))
    for number, (row, x, y) in enumerate(zip(rows, xs, ys, strict=True), 1):
        children += _mark(row, str(number), across.at(x), up.at(y))
    return Panel(WIDTH, HEIGHT + 4, title, tuple(children))


def _scales(across: _Axis, up: _Axis, shown: Any) -> Iterator[ET.Element]:
    floor = HEIGHT - BOTTOM
    for value in nice_ticks(up.low, up.high):
        if up.low <= value <= up.high:
            yield element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up.at(value), y2=up.at(value))
            yield element("text", formats.tick(value), class_="dim small end", x=LEFT - 6, y=up.at(value) + 4)
    for value in nice_ticks(across.low, across.high, 4):
        if across.low <= value <= across.high:
            yield element("text", shown(value), class_="dim small mid", x=across.at(value), y=floor + 16)
    yield element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor)


def _mark(row: Row, number: str, x: float, y: float) -> Iterator[ET.Element]:
    look = "dot f1" if row["optimal"] else "paper s0"
    dot = element("circle", class_=look, stroke_width=1.4, cx=x, cy=y, r=3.6)
    dot.append(element("title", f"{row['name']}: {row['average_perplexity']:.2f}"))
    yield dot
    yield element("text", number, class_="small f1" if row["optimal"] else "small dim", x=x + 5, y=y - 5)
