"""Forest plots: the difference of each model from a baseline with its interval, zero as a line. As wide as a phone.

The thick line is the interval of the comparison by itself, the thin one that corrected for the number of comparisons.
What is better, worse or neither is said in words and by the form of the mark, not by its colour alone.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bam_core.evaluate.significance import Comparison
from pipelines.report.curves import nice_ticks
from pipelines.report.formats import MINUS, gain, is_number
from pipelines.report.svg import CHAR, Panel, element, shortened

WIDTH, TOP, ROW, BOTTOM = 376.0, 30.0, 38.0, 26.0
EDGE = 8.0
COLOURS = {"better": 3, "worse": 2, "not distinguishable": 0}
FURTHEST = 0.25
"""How far beyond the outermost differences an interval is drawn: a wider one is cut, so that others can be read."""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    @classmethod
    def of(cls, found: Sequence[Comparison]) -> _Axis:
        """From the ends of the intervals, with zero and some room."""
        middle = [0.0, *(one.difference for one in found if is_number(one.difference))]
        ends = [end for one in found for end in (one.corrected_low, one.corrected_high) if is_number(end)]
        low, high = min([*middle, *ends]), max([*middle, *ends])
        low, high = max(low, min(middle) - FURTHEST), min(high, max(middle) + FURTHEST)
        room = 0.04 * (high - low) or 0.01
        return cls(low - room, high + room)

    def x(self, value: float) -> float:
        """In px; what lies outside is put on the edge."""
        inside = min(max(value, self.low), self.high)
        return EDGE + (inside - self.low) / (self.high - self.low) * (WIDTH - 2 * EDGE)


def forest(baseline: str, found: Sequence[Comparison]) -> Panel:
    axis, height = _Axis.of(found), TOP + ROW * len(found) + BOTTOM
    title = shortened(f"Average perplexity against {baseline}", WIDTH)
    children = [element("text", title, x=0, y=14, class_="title"), *_scale(axis, height)]
    for place, one in enumerate(found):
        children.append(_row(one, axis, TOP + ROW * place))
    return Panel(
        WIDTH, height, f"Average perplexity against {baseline}. {'; '.join(map(in_words, found))}.", tuple(children)
    )


def in_words(one: Comparison) -> str:
    ends = f"{gain(one.corrected_low)} to {gain(one.corrected_high)}"
    return f"{one.model} {gain(one.difference)} ({ends}), {one.word}"


def _scale(axis: _Axis, height: float) -> Iterator[ET.Element]:
    floor = height - BOTTOM
    for value in nice_ticks(axis.low, axis.high, 5):
        x = axis.x(value)
        is_zero = abs(value) < 1e-9
        yield element("line", class_="axis" if is_zero else "grid", x1=x, x2=x, y1=TOP, y2=floor)
        text = "0" if is_zero else f"{100 * value:+.3g}%".replace("-", MINUS)
        place = min(max(x, CHAR * len(text) / 2), WIDTH - CHAR * len(text) / 2)
        yield element("text", text, class_="dim small mid", x=place, y=floor + 16)


def _row(one: Comparison, axis: _Axis, top: float) -> ET.Element:
    """The name and what was found on a line, the interval below."""
    colour, y = COLOURS[one.word], top + 26
    told = f"{gain(one.difference)} {one.word}"
    name = shortened(one.model, WIDTH - CHAR * (len(told) + 1))
    drawn = element("g", element("title", in_words(one)))
    drawn.append(element("text", name, class_="halo", x=0, y=top + 13))
    drawn.append(element("text", told, class_=f"small end halo f{colour}", x=WIDTH, y=top + 13))
    if not is_number(one.difference):
        return drawn
    for low, high, width in ((one.corrected_low, one.corrected_high, 1.2), (one.low, one.high, 3.6)):
        ends = {"x1": axis.x(low), "x2": axis.x(high), "y1": y, "y2": y}
        drawn.append(element("line", class_=f"s{colour}", stroke_width=width, **ends))
    for end in (one.corrected_low, one.corrected_high):
        if axis.low <= end <= axis.high:  # one that is cut has no end to mark
            drawn.append(
                element(
                    "line", class_=f"s{colour}", stroke_width=1.2, x1=axis.x(end), x2=axis.x(end), y1=y - 4, y2=y + 4
                )
            )
    x = axis.x(one.difference)
    if one.is_distinguishable:
        drawn.append(element("rect", class_=f"f{colour}", x=x - 4, y=y - 4, width=8.0, height=8.0))
    else:
        drawn.append(element("circle", class_=f"paper s{colour}", stroke_width=1.6, cx=x, cy=y, r=4.0))
    return drawn
