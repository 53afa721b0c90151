"""Numbers, times and tables as people read them. Pure; colours are dropped where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import click

from bam_core.graph.words import count, duration, size

__all__ = ["COLOURS", "DIM", "count", "duration", "metrics", "number", "size", "styled", "table"]

COLOURS = {
    "run": "cyan",
    "running": "cyan",
    "done": "green",
    "wait": "yellow",
    "interrupted": "yellow",
    "blocked": "red",
    "failed": "red",
    "damaged": "red",
    "missing": "yellow",
}
DIM = ("reuse", "reused", "skipped", "pending")


def number(value: Any) -> str:
    """A metric: four significant digits, counts with their unit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not isfinite(value):
        return str(value)
    return count(value) if abs(value) >= 10_000 or isinstance(value, int) else f"{value:.4g}"


_FIRST = ("loss", "train_tokens", "params_total", "train_documents")


def metrics(values: Mapping[str, Any], limit: int = 3) -> str:
    """A few figures on one line, those that people look for first."""
    names = [name for name in _FIRST if name in values] + [name for name in values if name not in _FIRST]
    plain = [name for name in names if isinstance(values[name], int | float)]
    return "  ".join(f"{name} {number(values[name])}" for name in plain[:limit])


def styled(word: str) -> str:
    """A state or an action in its colour."""
    return click.style(word, dim=True) if word in DIM else click.style(word, fg=COLOURS.get(word))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns, two spaces apart; `right` are the columns of numbers. Cells may be styled."""
    lines = [[click.style(header, dim=True) for header in headers], *rows]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(_padded(cell, widths[column], column in right) for column, cell in enumerate(line)).rstrip()
        for line in lines
    )


def _padded(cell: str, width: int, to_right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if to_right else cell + space


def _width(cell: str) -> int:
    return len(click.unstyle(cell))
