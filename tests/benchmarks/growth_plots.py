"""Growth as one drawing for each row: seconds over size, both logarithmic, and the algorithm's order dashed beside."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from pipelines.report.svg import Panel, element, row_of

WIDTH, HEIGHT = 400.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 44.0, 42.0
Curve = Mapping[str, Any]
"""One of `curves` of tests/benchmarks/growth.py."""


def drawing(curves: Sequence[Curve], titles: Sequence[str]) -> str:
    """One panel for each curve, side by side, as a whole SVG file."""
    return row_of([_panel(curve, title) for curve, title in zip(curves, titles, strict=True)]).standalone()


def _panel(curve: Curve, title: str) -> Panel:
    axes = _Axes(curve)
    fitted = f"exponent {curve['exponent']:.2f} ± {2 * curve['standard_error']:.2f}"
    order = f"order {curve['exponents']['order']:.2f}"
    children = [
        element("text", title, x=0, y=14, class_="title"),
        element("text", f"{fitted}; {order} (dashed)", x=0, y=31, class_="dim small"),
        *axes.draw(),
        axes.line(curve["order"], "s0 dash"),
        axes.line(curve["seconds"], "s1"),
        *axes.points(curve),
    ]
    return Panel(WIDTH, HEIGHT, f"{title}: {fitted}, {order}", tuple(children))


class _Axes:
    def __init__(self, curve: Curve) -> None:
        self.sizes, self.unit = curve["sizes"], curve["unit"]
        shown = [*curve["low"], *curve["high"], *curve["order"]]
        self.low, self.high = floor(log10(min(shown)) * 2) / 2, ceil(log10(max(shown)) * 2) / 2
        self.first, self.last = log10(self.sizes[0]), log10(self.sizes[-1])

    def x(self, size: float) -> float:
        return LEFT + (log10(size) - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, seconds: float) -> float:
        return TOP + (self.high - log10(seconds)) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def draw(self) -> Iterator[ET.Element]:
        """Lines at 1, 2 and 5 of each power of ten, sizes below, and the units."""
        for power in range(floor(self.low), ceil(self.high) + 1):
            for seconds in (10.0**power, 2 * 10.0**power, 5 * 10.0**power):
                if self.low <= log10(seconds) <= self.high:
                    y = self.y(seconds)
                    yield element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
                    yield element("text", f"{seconds:g}", class_="dim small end", x=LEFT - 7, y=y + 4)
        floor_y = HEIGHT - BOTTOM
        yield element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=floor_y, y2=floor_y)
        for size in self.sizes:
            yield element("text", f"{size:g}", class_="dim small mid", x=self.x(size), y=floor_y + 16)
        yield element("text", self.unit, class_="dim small end", x=WIDTH - RIGHT, y=floor_y + 34)
        yield element("text", "seconds", class_="dim small", x=0, y=floor_y + 34)

    def line(self, seconds: Sequence[float], colour: str) -> ET.Element:
        places = " ".join(f"{self.x(n):.1f},{self.y(s):.1f}" for n, s in zip(self.sizes, seconds, strict=True))
        return element("polyline", class_=f"curve {colour}", points=places)

    def points(self, curve: Curve) -> Iterator[ET.Element]:
        """A dot at each median, and a bar from the fastest round to the slowest."""
        for size, median, low, high in zip(self.sizes, curve["seconds"], curve["low"], curve["high"], strict=True):
            x = self.x(size)
            yield element("line", class_="s1", x1=x, x2=x, y1=self.y(low), y2=self.y(high))
            yield element("circle", class_="dot f1", cx=x, cy=self.y(median), r=3.0)
