"""Numbers, times and tables as people read them; colours are dropped where there is no terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import isfinite
from textwrap import fill, wrap
from typing import Any

import click

from bam_core.graph.words import count, duration, size

__all__ = [
    "COLOURS",
    "DIM",
    "columns",
    "count",
    "duration",
    "metrics",
    "number",
    "pairs",
    "prose",
    "size",
    "styled",
    "table",
]

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
FEWEST = 12
"""Columns that a column of words keeps."""
RESET = "\033[0m"


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


def columns() -> int | None:
    """Of the terminal that standard output is; None where it is none: what reads a pipe gets whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), width: int | None = None
) -> str:
    """Aligned columns, two spaces apart; `right` are the columns of numbers. Cells may be styled.

    width: columns at most, by default those of the terminal. Words go on in the next line then, numbers never do: a
    table of too many of them is cut into several below each other, each with the first column.
    """
    lines = [[click.style(header, dim=True) for header in headers], *[list(row) for row in rows]]
    most = columns() if width is None else width
    return "\n\n".join(_block(lines, chosen, right, most) for chosen in _blocks(lines, right, most))


def prose(words: str) -> str:
    """Sentences, in lines that fit the terminal."""
    most = columns()
    return words if most is None or len(words) <= most else fill(words, most, break_on_hyphens=False)


def pairs(found: Iterable[tuple[str, str]], indent: int = 0) -> str:
    """`name  value` below each other; a value that is too long for the terminal goes on beside its name."""
    rows = [(" " * indent + click.style(name, dim=True), value) for name, value in found]
    most = columns()
    first = max((_width(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        parts = value.splitlines() if most is None else _wrapped(value, max(FEWEST, most - first - 2))
        lines += [f"{_padded(name if n == 0 else '', first, False)}  {part}" for n, part in enumerate(parts or [""])]
    return "\n".join(lines)


def _blocks(lines: Sequence[Sequence[str]], right: Sequence[int], most: int | None) -> list[list[int]]:
    """The columns of each table, as many as fit: words may be narrowed, numbers and the first column may not."""
    full = _widths(lines)
    if most is None:
        return [list(range(len(full)))]
    needed = [wide if n in right or n == 0 else min(wide, FEWEST) for n, wide in enumerate(full)]
    blocks, taken = [[0]], needed[0]
    for column in range(1, len(needed)):
        if len(blocks[-1]) > 1 and taken + 2 + needed[column] > most:
            blocks.append([0])
            taken = needed[0]
        blocks[-1].append(column)
        taken += 2 + needed[column]
    return blocks


def _block(lines: Sequence[Sequence[str]], chosen: Sequence[int], right: Sequence[int], most: int | None) -> str:
    chosen_lines = [[line[column] for column in chosen] for line in lines]
    numbers = [place for place, column in enumerate(chosen) if column in right]
    widths = _widths(chosen_lines)
    if most is not None:
        widths = _narrowed(widths, numbers, most)
    return "\n".join(
        "  ".join(_padded(cell, widths[n], n in numbers) for n, cell in enumerate(part)).rstrip()
        for line in chosen_lines
        for part in _parts(line, widths)
    )


def _narrowed(widths: Sequence[int], numbers: Sequence[int], most: int) -> list[int]:
    """The widest columns of words lose the most; the first one only if nothing else helps."""
    widths = list(widths)
    for places in (range(1, len(widths)), range(len(widths))):
        words = [place for place in places if place not in numbers]
        while sum(widths) + 2 * (len(widths) - 1) > most:
            widest = max(words, key=lambda place: widths[place], default=None)
            if widest is None or widths[widest] <= FEWEST:
                break
            widths[widest] -= 1
    return widths


def _parts(line: Sequence[str], widths: Sequence[int]) -> Iterator[list[str]]:
    """The lines that a row takes."""
    yield from map(list, zip_longest(*(_wrapped(cell, widths[n]) for n, cell in enumerate(line)), fillvalue=""))


def _wrapped(cell: str, width: int) -> list[str]:
    """Cut between words, each part in the cell's style."""
    if _width(cell) <= width:
        return [cell]
    plain = click.unstyle(cell)
    style, _, _ = cell.partition(plain[:1])
    parts = wrap(plain, width, break_on_hyphens=False) or [""]
    return [f"{style}{part}{RESET}" for part in parts] if style else parts


def _padded(cell: str, width: int, to_right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if to_right else cell + space


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_width, column)) for column in zip(*lines, strict=True)]


def _width(cell: str) -> int:
    return len(click.unstyle(cell))
