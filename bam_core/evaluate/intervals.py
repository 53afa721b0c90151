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

Several models together also tell how much seeds matter in general: the residual variance of models by seeds, pooled as
in Dunnett's comparison with a control. The larger of a pair's own and the pooled variance is used, with the degrees of
freedom of the latter, so that a pair that happened to agree under all seeds gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log, sqrt
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


def variance_parts(d_R: Floats, drawn_RB: Floats, left_out: Sequence[Floats], pooled: Part | None) -> list[Part]:
    """Variance from documents and from seeds. left_out: d without one document [R, N], of each domain."""
    parts = []
    if left_out:
        documents = float(drawn_RB.mean(0).var(ddof=1))
        documents -= _of_both(drawn_RB) if len(d_R) > 1 else 0.0
        moved = np.concatenate([log_RN.mean(0) - log_RN.mean() for log_RN in left_out])
        parts.append(Part("documents", max(0.0, documents), _df_of_documents(moved)))
    if len(d_R) > 1:
        own = Part("seeds", float(d_R.var(ddof=1)) / len(d_R), len(d_R) - 1)
        parts.append(replace(pooled, variance=max(own.variance, pooled.variance)) if pooled else own)
    return parts


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


def pooled_over_models(log_MR: Floats) -> Part | None:
    """The variance that seeds give to the mean difference of any two of three or more models; None of fewer.

    The residual of models by seeds: what all models have in common under a seed goes, as it does in a pair.
    """
    finite_MR = log_MR[np.isfinite(log_MR).all(-1)]
    n_models, n_seeds = finite_MR.shape
    if n_models < 3 or n_seeds < 2:
        return None
    df = (n_models - 1) * (n_seeds - 1)
    residual = finite_MR - finite_MR.mean(0) - finite_MR.mean(1, keepdims=True) + finite_MR.mean()
    return Part("seeds", 2 * float((residual**2).sum()) / df / n_seeds, df)


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
    low, high = log(LEAST_P), 0.0  # half_width falls from the one to the other
    if half_width(parts, LEAST_P) <= distance:
        return LEAST_P
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if half_width(parts, exp(middle)) > distance else (low, middle)
    return exp(high)


def _by_size(p_values: Sequence[float]) -> list[int]:
    return sorted(range(len(p_values)), key=p_values.__getitem__)
