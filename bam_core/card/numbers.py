"""Numbers as cards show them; `-` for one that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

MISSING = "-"


def figure(value: Any, decimals: int = 2) -> str:
    """A perplexity or the like: fewer digits where it is large."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return MISSING
    return f"{value:.{decimals}f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.2e}"


def bold_best(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The least of each column but the first is bold."""

    def number(cell: str) -> float:
        return float("inf") if cell == MISSING else float(cell.replace(",", ""))

    best = [min((number(row[column]) for row in rows), default=0.0) for column in range(1, len(rows[0]) if rows else 1)]
    return [
        [row[0], *(f"**{c}**" if c != MISSING and number(c) == best[i] else c for i, c in enumerate(row[1:]))]
        for row in rows
    ]


def count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else MISSING


def power(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, int | float) else MISSING


def loss(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else MISSING


def setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else MISSING
