"""Interleaved timing, and the entries of a result's `table` that `docs/performance.md` is made of.

Other work on the machine slows down whatever runs while it does. So each round runs every candidate once, and a ratio
is the median over rounds of the ratio of two times of the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Work = Callable[[], object]


def interleaved(works: Mapping[str, Work], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Name -> seconds of each round. Every second round runs the other way round, so that no one is always first."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(-warm_up, rounds):
        for name in list(works)[:: -1 if i % 2 else 1]:
            started = time.perf_counter()
            works[name]()
            if i >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Of the two times of each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def entry(row: str, values: Sequence[float], unit: str, note: str = "") -> dict[str, Any]:
    """The median of what the rounds found, with the lowest and the highest."""
    spread = {"value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}
    return {"row": row, **spread, "unit": unit, "note": note}
