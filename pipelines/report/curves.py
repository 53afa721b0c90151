"""Training curves: the seed and its branches on one time line, and the models of the mixture phase overlaid.

Each curve is drawn twice: faint as logged, and over it a centred moving mean. A step whose value is not a
finite number leaves a gap. The value axis is logarithmic, so that nothing has to be cut off.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor, log, log10
from typing import Any

from pipelines.report.formats import is_number, tick
from pipelines.report.inputs import ReportInputs, group, in_order
from pipelines.report.svg import CHAR, Panel, element, shortened

WIDTH, HEIGHT = 430.0, 270.0
LEFT, TOP, BOTTOM = 44.0, 30.0, 40.0
MAX_POINTS = 300
N_COLOURS = 5
READING = {
    "training-branches": "The seed up to its dot, then a branch for each expert, on text of its own.",
    "training-mixtures": "The lower a curve ends, the better its model knows its training text. Grey and dashed: the"
    " baseline without experts.",
    "training-balance": "At 1 every expert gets an equal share of the tokens; the higher, the more goes to a few.",
}
"""File name -> how to read the panel."""
LINE = 14.0

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Curve:
    """points: (x, y), in the order of x; y is None where there was no finite value."""

    name: str
    colour: int
    dashed: bool
    points: tuple[Point, ...]

    @property
    def runs(self) -> list[list[tuple[float, float]]]:
        """The points between gaps, as logged."""
        parts = ([(x, y) for x, y in run if y is not None] for _, run in groupby(self.points, lambda p: p[1] is None))
        return [part for part in parts if part]

    @property
    def smooth_runs(self) -> list[list[tuple[float, float]]]:
        """The same points under a moving mean."""
        radius = len(self.points) // 40
        means = [moving_mean([y for _, y in run], radius) for run in self.runs]
        return [
            [(x, y) for (x, _), y in zip(run, mean, strict=True)] for run, mean in zip(self.runs, means, strict=True)
        ]

    @property
    def last(self) -> float:
        """The last finite value, as logged."""
        return self.runs[-1][-1][1]

    @property
    def end(self) -> tuple[float, float]:
        """Where the smooth curve ends."""
        return self.smooth_runs[-1][-1]


def training_panels(inputs: ReportInputs) -> dict[str, Panel]:
    """File name -> panel, for each phase that has a history."""
    histories = {name: inputs.training[name] for name in in_order(inputs.training, inputs.domain_names)}
    looks = _looks(histories)
    seed_end = max((row["tokens"] for row in histories.get("seed", ()) if is_number(row.get("tokens"))), default=0)
    branches = [name for name in histories if group(name) in ("seed", "expert")]
    mixtures = [name for name in histories if name not in branches]

    def curves(names: Sequence[str], field: str) -> list[Curve]:
        shift = {name: seed_end if group(name) == "expert" else 0 for name in names}
        made = [Curve(name, *looks[name], points_of(histories[name], field, shift[name])) for name in names]
        return [curve for curve in made if any(y is not None for _, y in curve.points)]

    balancing = [name for name in mixtures if group(name) in ("train", "distil")]
    panels = {
        "training-branches": curve_panel("Seed, then one branch per domain: training loss", curves(branches, "loss")),
        "training-mixtures": curve_panel("Mixture phase: training loss", curves(mixtures, "loss")),
        "training-balance": curve_panel(
            "Mixture phase: load balancing loss (1 = balanced)", curves(balancing, "load_balancing_loss")
        ),
    }
    return {name: panel for name, panel in panels.items() if panel is not None}


def moving_mean(values: Sequence[float], radius: int) -> list[float]:
    """Mean over `radius` neighbours on each side; near an end over those that exist.

    At the start, where a loss falls fast, the window stays symmetric, so that the first value is kept.
    """
    means = []
    for i in range(len(values)):
        window = values[max(0, i - radius) : i + min(radius, i) + 1]
        means.append(sum(window) / len(window))
    return means


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values from `low` to `high`, about `wanted` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    size = 10.0 ** floor(log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    return [round(i * step, 12) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _looks(names: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """(colour, dashed) per model. Seed and dense are grey; the others of a phase take turns."""
    looks: dict[str, tuple[int, bool]] = {}
    taken: dict[str, int] = {}
    for name in names:
        kind = group(name)
        if kind in ("seed", "dense"):
            looks[name] = (0, kind == "dense")
            continue
        place = taken.get(kind, 0)
        taken[kind] = place + 1
        first = 2 if kind == "expert" else 0
        looks[name] = ((first + place) % N_COLOURS + 1, place >= N_COLOURS)
    return looks


def points_of(history: Sequence[Mapping[str, Any]], field: str, shift: float) -> tuple[Point, ...]:
    rows = [row for row in history if is_number(row.get("tokens"))]
    valid = [is_number(row.get(field)) and row[field] > 0 for row in rows]
    return tuple((row["tokens"] + shift, row[field] if ok else None) for row, ok in zip(rows, valid, strict=True))


def curve_panel(title: str, curves: Sequence[Curve]) -> Panel | None:
    """One chart with tokens across and a logarithmic y axis; None without curves."""
    if not curves:
        return None
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points if y is not None]
    right = WIDTH - min(120.0, 10 + CHAR * max(len(curve.name) for curve in curves))
    axes = _Axes(min(0.0, min(xs)), max(xs) or 1.0, min(ys), max(ys), right)
    children = [element("text", title, x=0, y=14, class_="title"), *axes.draw()]
    for curve in curves:
        children.append(_draw_curve(curve, axes))
    children += _labels(curves, axes)
    ends = ", ".join(f"{curve.name} ends at {curve.last:.3f}" for curve in curves)
    return Panel(WIDTH, HEIGHT, f"{title}. {ends}.", tuple(children))


class _Axes:
    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float, right: float) -> None:
        pad = max(0.02, 0.04 * log(y_high / y_low))
        self.x_low, self.x_high, self.right = x_low, x_high, right
        self.y_low, self.y_high = log(y_low) - pad, log(y_high) + pad
        self.y_ticks = [t for t in nice_ticks(y_low * 0.98, y_high * 1.02) if t > 0]

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - LEFT)

    def y(self, value: float) -> float:
        return TOP + (self.y_high - log(value)) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def draw(self) -> Iterator[ET.Element]:
        floor_y = HEIGHT - BOTTOM
        for value in self.y_ticks:
            y = self.y(value)
            if TOP <= y <= floor_y:
                yield element("line", class_="grid", x1=LEFT, x2=self.right, y1=y, y2=y)
                yield element("text", tick(value), class_="dim small end", x=LEFT - 7, y=y + 4)
        for value in nice_ticks(self.x_low, self.x_high, 4):
            yield element("text", tick(value), class_="dim small mid", x=self.x(value), y=floor_y + 16)
        yield element("line", class_="axis", x1=LEFT, x2=self.right, y1=floor_y, y2=floor_y)
        yield element("text", "tokens", class_="dim small end", x=self.right, y=floor_y + 32)


def _draw_curve(curve: Curve, axes: _Axes) -> ET.Element:
    stroke = f"s{curve.colour}" + (" dash" if curve.dashed else "")
    drawn = element("g", element("title", f"{curve.name}: {curve.last:.4g} at the end"))
    smooth = curve.smooth_runs
    if smooth != curve.runs:
        for run in curve.runs:
            drawn.append(element("polyline", class_=f"curve raw s{curve.colour}", points=_path(run, axes)))
    for run in smooth:
        drawn.append(element("polyline", class_=f"curve {stroke}", points=_path(run, axes)))
    return drawn


def _path(points: Sequence[tuple[float, float]], axes: _Axes) -> str:
    every = ceil(len(points) / MAX_POINTS)
    kept = [*points[:-1][::every], points[-1]]
    return " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in kept)


def _labels(curves: Sequence[Curve], axes: _Axes) -> Iterator[ET.Element]:
    """Names beside the ends of the curves: to their right at the edge of the plot, above them elsewhere."""
    at_edge = [curve for curve in curves if axes.x(curve.end[0]) > axes.right - 20]
    places = spread([axes.y(curve.end[1]) + 4 for curve in at_edge])
    for curve, y in zip(at_edge, places, strict=True):
        name = shortened(curve.name, WIDTH - axes.right - 6)
        yield element("text", name, class_=f"f{curve.colour}", x=axes.right + 6, y=y)
    for curve in curves:
        if curve not in at_edge:
            x, y = axes.x(curve.end[0]), axes.y(curve.end[1])
            yield element("circle", class_=f"dot f{curve.colour}", cx=x, cy=y, r=3.0)
            yield element("text", shortened(curve.name, x - LEFT), class_=f"f{curve.colour} end", x=x, y=y - 10)


def spread(heights: Sequence[float]) -> list[float]:
    """The heights, moved apart to at least a line each and kept inside the chart; their order stays."""
    placed = dict.fromkeys(range(len(heights)), 0.0)
    previous = TOP - LINE
    for i in sorted(placed, key=lambda i: heights[i]):
        previous = placed[i] = max(heights[i], previous + LINE)
    overflow = previous - (HEIGHT - BOTTOM + 4)
    if overflow > 0:
        lowest = HEIGHT - BOTTOM + 4
        for i in sorted(placed, key=lambda i: -placed[i]):
            lowest = placed[i] = min(placed[i], lowest)
            lowest -= LINE
    return list(placed.values())
