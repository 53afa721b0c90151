"""How sure an estimate is that rests on documents and seeds: the parts of its variance, intervals, p-values.

The estimate is a mean over seeds of the logarithm of a figure, or of the difference of two. Two things are chance in
it, each with its own variance and degrees of freedom:

    documents   variance of the mean over seeds when documents are drawn anew (`resample`), less what the seeds' part
                has of it already; degrees of freedom by how evenly documents contribute (a few long ones count for few)
    seeds       variance over seeds, divided by their number R; R - 1 degrees of freedom

The interval is d +- sqrt(sum of t^2 * variance), with each part's own Student's t. Why not a plain bootstrap of both:
of 2 to 5 seeds it is far too narrow, and so is one common t with Satterthwaite's degrees of freedom where seeds matter
most (`python -m tests.benchmarks.significance` measures all three). Source of the form: Howe (1974), "Approximate
confidence limits on the mean of X + Y where X and Y are two tabled independent random variables".

Several pairs together tell more of the seeds' part than each by itself: `moderated`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log, log1p, sqrt
from typing import Literal

import numpy as np

from bam_core.evaluate.resample import Floats
from bam_core.evaluate.student import beyond, quantile

LEAST_P = 1e-15


@dataclass(frozen=True)
class Part:
    """A part of the variance of an estimate, and on how many degrees of freedom it is known."""

    chance: Literal["documents", "seeds"]
    variance: float
    df: float


@dataclass(frozen=True)
class Chance:
    """What is chance in an estimate; a part is None where nothing is known of it.

    drawn: variance when documents are drawn anew, that under single seeds included; 0 where not known.
    """

    documents: Part | None
    seeds: Part | None
    drawn: float = 0.0

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.documents, self.seeds) if part is not None]


def chance_in(d_R: Floats, drawn_RB: Floats, left_out: Sequence[Floats]) -> Chance:
    """Of one estimate by itself. left_out: d without one document [R, N], of each domain."""
    documents, seeds, drawn = None, None, 0.0
    if left_out:
        drawn = float(drawn_RB.mean(0).var(ddof=1))
        moved = np.concatenate([log_RN.mean(0) - log_RN.mean() for log_RN in left_out])
        of_seeds = _of_both(drawn_RB) if len(d_R) > 1 else 0.0
        documents = Part("documents", max(0.0, drawn - of_seeds), _df_of_documents(moved))
    if len(d_R) > 1:
        seeds = Part("seeds", float(d_R.var(ddof=1)) / len(d_R), len(d_R) - 1)
    return Chance(documents, seeds, drawn)


def _of_both(drawn_RB: Floats) -> float:
    """The variance of documents that differs from seed to seed: the variance over seeds has it already."""
    n_seeds = len(drawn_RB)
    return float((drawn_RB - drawn_RB.mean(0)).var(axis=1, ddof=1).sum()) / ((n_seeds - 1) * n_seeds)


def _df_of_documents(moved: Floats) -> float:
    """The number of documents that would say as much if all said the same: (sum x^2)^2 / sum x^4, at least 1.

    A third of them where contributions are normal. With three times as many less 2, exact for equal normal ones,
    intervals of few and unequal documents were too narrow (6 to 8% missed the truth, here 4 to 5%).
    Source: after Lipsitz, Ibrahim and Parzen (1999), "A degrees-of-freedom approximation for a t-statistic with
    heterogeneous variance".
    """
    fourth = float((moved**4).sum())
    return max(1.0, float((moved**2).sum()) ** 2 / fourth) if fourth > 0 else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the given order: the largest of (m - rank) * p so far, at most 1."""
    corrected, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(_by_size(p_values)):
        highest = max(highest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, highest)
    return corrected


def holm_alphas(p_values: Sequence[float], alpha: float) -> list[float]:
    """The probability at which Holm's procedure tests each: from the first that does not pass, all share its own."""
    n_passed = sum(p < alpha for p in holm(p_values))
    ranks = {place: rank for rank, place in enumerate(_by_size(p_values))}
    return [alpha / (len(p_values) - min(ranks[i], n_passed)) for i in range(len(p_values))]


def half_width(parts: Sequence[Part], alpha: float) -> float:
    """Of the interval with error `alpha`; infinite where no part of the variance is known."""
    if not parts:
        return inf
    return sqrt(sum(part.variance * quantile(alpha, part.df) ** 2 for part in parts))


def p_value(parts: Sequence[Part], distance: float) -> float:
    """The alpha whose interval just reaches `distance`, two-sided; at least LEAST_P."""
    if not parts or distance == 0:
        return 1.0
    if len(parts) == 1 and parts[0].variance > 0:
        return max(LEAST_P, beyond(distance / sqrt(parts[0].variance), parts[0].df))
    if half_width(parts, LEAST_P) <= distance:
        return LEAST_P
    return exp(_falls_to_zero(lambda log_p: log(half_width(parts, exp(log_p)) / distance)))


def _falls_to_zero(of: Callable[[float], float]) -> float:
    """The log of p at which `of` is zero, by regula falsi (Illinois): a dozen calls, where halving takes fifty."""
    low, high, side = log(LEAST_P), log1p(-1e-12), 0
    above, below = of(low), of(high)
    if below >= 0:
        return 0.0
    for _ in range(200):
        middle = low + (high - low) * above / (above - below)
        value = of(middle)
        if abs(value) < 1e-12 or high - low < 1e-14:
            break
        if value > 0:
            low, above, below, side = middle, value, below / (2 if side > 0 else 1), 1
        else:
            high, below, above, side = middle, value, above / (2 if side < 0 else 1), -1
    return middle


def _by_size(p_values: Sequence[float]) -> list[int]:
    return sorted(range(len(p_values)), key=p_values.__getitem__)
