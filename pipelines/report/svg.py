"""Figures as small SVG trees: built with ElementTree, which escapes every text, and coloured by figure.css.

The same panel is shown inline in the report, where the page's style sheet colours it, and written as a file
of its own, which carries the style sheet. Numbers are rounded to a tenth of a pixel, so that equal inputs
give equal bytes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from markupsafe import Markup

from pipelines.report.formats import clean

TEMPLATES = Path(__file__).parent / "templates"
CHAR = 6.7
"""Width to reserve for one character of 12 px text, in px: wide enough for the widest common system fonts."""
MARGIN = 12
"""Paper around a drawing in a file of its own, in px."""


@dataclass(frozen=True)
class Panel:
    """One drawing of `width` x `height` px. label: what it shows, in words, for those who do not see it."""

    width: float
    height: float
    label: str
    children: tuple[ET.Element, ...]

    def inline(self) -> Markup:
        """The `<svg>` for an HTML page that includes figure.css."""
        return Markup(ET.tostring(self._root(), encoding="unicode"))

    def standalone(self) -> str:
        """A whole SVG file, with its own colours for light and dark."""
        root = self._root()
        width, height = self.width + 2 * MARGIN, self.height + 2 * MARGIN
        root.set("width", _text(width))
        root.set("height", _text(height))
        root.set("viewBox", f"{-MARGIN} {-MARGIN} {_text(width)} {_text(height)}")
        root.insert(0, element("title", self.label))
        root.insert(1, element("style", style_sheet()))
        root.insert(2, element("rect", class_="paper", x=-MARGIN, y=-MARGIN, width=width, height=height))
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"

    def _root(self) -> ET.Element:
        root = element(
            "svg",
            *self.children,
            xmlns="http://www.w3.org/2000/svg",
            class_="figure",
            viewBox=f"0 0 {_text(self.width)} {_text(self.height)}",
            role="img",
        )
        root.set("aria-label", clean(self.label))
        return root


def element(tag: str, *children: ET.Element | str, **attributes: object) -> ET.Element:
    """`<tag>` with children; text is escaped. `class_`, `stroke_width` become `class`, `stroke-width`."""
    made = ET.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), _text(value))
    for child in children:
        if isinstance(child, str):
            made.text = clean(child) if tag != "style" else child
        else:
            made.append(child)
    return made


def row_of(panels: Sequence[Panel], gap: float = 16, title: str = "") -> Panel:
    """Panels side by side as one drawing, below a title."""
    top = 26 if title else 0
    children = [element("text", title, x=0, y=14, class_="title")] if title else []
    x = 0.0
    for panel in panels:
        children.append(element("g", *panel.children, transform=f"translate({_text(x)} {top})"))
        x += panel.width + gap
    height = top + max(panel.height for panel in panels)
    return Panel(max(x - gap, CHAR * len(title)), height, title or panels[0].label, tuple(children))


def equally_wide(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The panels with room on the right of all but the widest: in a grid they are drawn at one scale."""
    widest = max((panel.width for panel in panels), default=0.0)
    return tuple(replace(panel, width=widest) for panel in panels)


def shortened(text: str, width: float) -> str:
    """The text, cut with an ellipsis where it would be wider than `width` px."""
    text = clean(text)
    room = max(1, int(width / CHAR))
    return text if len(text) <= room else text[: room - 1] + "…"


@cache
def style_sheet() -> str:
    return (TEMPLATES / "figure.css").read_text(encoding="utf-8")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{round(value, 1) + 0.0:.10g}"
    return clean(value)
