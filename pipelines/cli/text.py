"""Numbers, times and tables as people read them. Pure; colours are dropped where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import click

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


def count(number: float) -> str:
    """1234567 -> `1.23M`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.9995:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}" if isinstance(number, float) and not number.is_integer() else str(int(number))


def size(n_bytes: int) -> str:
    """1536 -> `1.5 KiB`."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """75.2 -> `1m 15s`; under ten seconds with one decimal."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


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
