"""What one device does in a second, as measured there, and the fits that turn measurements into prices.

A price is never negative, and that of a product never below the device's best: least squares of the relative error
within these bounds, so that one fit serves small steps and large ones. It says of itself how far off it is (`worst`):
the largest ratio of a figure and what the fit of the others says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bam_core.errors import InvalidInput, Problem
from bam_core.planner.work import Counts

VERSION = 2
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prices:
    """Seconds, or bytes, for each unit of what is counted. worst: ratio, at least 1, of the fit's worst error."""

    of: Mapping[str, float]
    worst: float = 1.0

    def __call__(self, counts: Counts) -> float:
        return sum(self.of.get(name, 0.0) * count for name, count in counts.items())


@dataclass(frozen=True)
class Calibration:
    """device: its name. kind: `cpu` or `cuda`. cpus: that a process may use there. made: when, and with which versions.

    steps, passes: threads -> prices of a training step, and of a forward pass that scores. crowding: how much longer a
    training takes while all other CPUs work. idle_bytes: executor -> of a training process, beside what is counted.
    peak: prices of memory. text_s_per_byte: kind of stage -> seconds for each byte of text that it goes through.
    fixed_s: executor -> kind of stage -> seconds with next to nothing to do. start_s: of a process that imports what a
    stage needs. write_s_per_byte: to the store's disk, until it is there. bytes_per_token: of text, about.
    """

    device: str
    kind: str
    cpus: int
    made: Mapping[str, Any]
    steps: Mapping[int, Prices]
    passes: Mapping[int, Prices]
    peak: Prices
    idle_bytes: Mapping[str, float]
    crowding: float
    text_s_per_byte: Mapping[str, float]
    fixed_s: Mapping[str, Mapping[str, float]]
    start_s: float
    write_s_per_byte: float
    bytes_per_token: float
    version: int = VERSION

    def step_seconds(self, counts: Counts, threads: int) -> float:
        return _at_threads({n: prices(counts) for n, prices in self.steps.items()}, threads)

    def pass_seconds(self, counts: Counts, threads: int) -> float:
        return _at_threads({n: prices(counts) for n, prices in self.passes.items()}, threads)

    def fixed(self, kind: str, executor: str) -> float:
        """Of a kind of stage; of one that was not measured, as much as of the longest."""
        known = self.fixed_s.get(executor) or self.fixed_s["local"]
        beside = self.start_s if executor not in self.fixed_s else 0.0
        return known.get(kind, max(known.values())) + beside

    def idle(self, executor: str) -> float:
        """Bytes of a training process; under an executor that was not measured, as much as of the largest."""
        return self.idle_bytes.get(executor, max(self.idle_bytes.values()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> Calibration:
        """Raises InvalidInput, naming `where`."""
        try:
            if data["version"] != VERSION:
                raise InvalidInput(where, [Problem("version", data["version"], f"this version of bam reads {VERSION}")])
            values = {entry.name: data[entry.name] for entry in fields(cls)}
            for name in ("steps", "passes"):
                values[name] = {int(threads): Prices(**prices) for threads, prices in data[name].items()}
            values["peak"] = Prices(**data["peak"])
            made = cls(**values)
            made.fixed("seed", "local")
            made.idle("local")
            made.step_seconds({}, 1)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            problem = Problem("", where, f"is no calibration ({error!r})", "make one with `bam doctor --calibrate`")
            raise InvalidInput(where, [problem]) from error
        return made


def _at_threads(seconds: Mapping[int, float], threads: int) -> float:
    """Between the numbers that were measured on a straight line of logarithms; beyond them as at the nearest."""
    known = sorted(seconds)
    if threads in seconds or threads <= known[0]:
        return seconds[max(known[0], threads)]
    if threads >= known[-1]:
        return seconds[known[-1]]
    above = next(n for n in known if n > threads)
    below = known[known.index(above) - 1]
    part = log(threads / below) / log(above / below)
    return seconds[below] ** (1 - part) * seconds[above] ** part if seconds[below] and seconds[above] else 0.0


def fit(
    counts: Sequence[Counts],
    measured: Sequence[float],
    least: Mapping[str, float] | None = None,
) -> Prices:
    """Prices with which `counts` come to what was measured, in relative error. least: below which no price may be."""
    names = list(counts[0])
    rows = np.array([[row[name] for name in names] for row in counts])
    found, floor = np.array(measured), np.array([(least or {}).get(name, 0.0) for name in names])
    assert (found > 0).all(), f"nothing measured: {measured}"
    left = found - rows @ floor

    def prices(of: NDArray[np.bool_]) -> Array:
        return floor + non_negative(rows[of] / found[of, None], left[of] / found[of])

    everything, worst = np.ones(len(found), dtype=bool), 1.0
    if len(found) > len(names):
        for one in range(len(found)):
            told = rows[one] @ prices(np.arange(len(found)) != one) / found[one]
            worst = max(worst, told, 1 / max(told, 1e-9))
    return Prices(dict(zip(names, prices(everything).tolist(), strict=True)), float(worst))


def non_negative(rows_NK: Array, target_N: Array) -> Array:
    """x_K >= 0 that minimises |rows x - target|. Source: Lawson and Hanson, Solving Least Squares Problems, chapter 23.

    Columns are scaled to length 1 first, so that what is counted in billions and in units weighs the same.
    """
    lengths = np.linalg.norm(rows_NK, axis=0)
    unit = rows_NK / np.where(lengths > 0, lengths, 1.0)
    x, free = np.zeros(len(lengths)), np.zeros(len(lengths), dtype=bool)
    for _ in range(10 * len(lengths)):
        slope = unit.T @ (target_N - unit @ x)
        slope[free] = -np.inf
        if slope.max(initial=-np.inf) <= 1e-10 * np.linalg.norm(target_N):
            break
        free[slope.argmax()] = True
        while True:
            best = np.zeros(len(lengths))
            best[free] = np.linalg.lstsq(unit[:, free], target_N, rcond=None)[0]
            if (best[free] > 0).all():
                x = best
                break
            falling = free & (best <= 0)
            part = (x[falling] / (x[falling] - best[falling])).min()
            x = x + part * (best - x)
            free &= x > 1e-12
            x[~free] = 0.0
    return x / np.where(lengths > 0, lengths, 1.0)
