"""How much seeds matter to one pair of several: its own variance over seeds, moderated by what like pairs have.

Two or three seeds say little of a variance, and pairs differ in it by orders of magnitude: two mixtures of the same
experts part by thousandths of a percent under another seed, a mixture and a dense model by half a percent. So neither
the own variance alone serves (its t on one degree of freedom is 12.7) nor one variance for all pairs, which is too wide
for the quiet ones and too narrow for the others. What two models make of documents tells which pair is which: the ratio
of the variance from seeds to that from documents varies far less from pair to pair than the former itself. Hence

    v_p   the pair's variance when documents are drawn anew        s_p^2   its own variance over R seeds, d = R - 1
    s_p^2 = c v_p F(d, d0)   over pairs: c by maximum likelihood, d0 the fewest prior degrees of freedom that
                             the pairs are compatible with (95%), so that few pairs lend each other little
    (d0 c v_p + d s_p^2) / (d0 + d), on d0 + d degrees of freedom, is what counts; the own s_p^2 where it is larger

A pair that seeds move more than three times as far as its like (s_p^2 > 9 c v_p) is lent fewer degrees of freedom, the
fewer the larger its s_p^2, so that what is quite unlike the others counts by itself. Of pairs that seeds move ten times
as far some happen to look quiet, so that of their intervals at 95% one in ten misses the truth, of two seeds one in
eight (`python -m tests.benchmarks.significance`): where a claim matters, take three seeds or more.
Source: Smyth (2004), "Linear models and empirical Bayes methods for assessing differential expression", section 6, with
the prior in proportion to a covariate; there d0 is by moments, which log s^2 of one degree of freedom makes poor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, lgamma

import numpy as np

from bam_core.evaluate.intervals import Chance, Part
from bam_core.evaluate.resample import Floats

FEWEST_PAIRS = 4
"""Of fewer, each counts by itself: three pairs missed the truth in 7% of intervals at 95%, four in 6%."""
OUTLIER = 9.0
"""Times the variance of its like, from which on a pair is lent less."""
COMPATIBLE = 1.92
"""How far below its maximum a log-likelihood is compatible at 95%: half the quantile of chi-square on one degree."""
PRIOR_DF = 0.5 * 2 ** (np.arange(15) / 2)
"""Those that are tried, 0.5 to 64."""
_NONE = 1e-24
"""Variances below it are rounding: differences of a perplexity by 1e-12."""


def moderate(chances: Sequence[Chance]) -> list[Chance]:
    """The same with the seeds' part as it counts. Pairs without a variance of their own, or of documents, stay."""
    usable = [its for its in chances if _is_usable(its)]
    if len(usable) < FEWEST_PAIRS:
        return list(chances)
    ratio_P = np.array([its.seeds.variance / its.drawn for its in usable if its.seeds])
    df = max(its.seeds.df for its in usable if its.seeds)
    prior_df, ratio = prior(ratio_P, df)
    most = len(usable) * df
    return [replace(its, seeds=_counts(its, prior_df, ratio, most)) if _is_usable(its) else its for its in chances]


def prior(ratio_P: Floats, df: float) -> tuple[float, float]:
    """(d0, c) of variances on `df` degrees of freedom, each over its covariate."""
    log_c = _most_likely(ratio_P, df)
    scaled = df * ratio_P / np.exp(log_c)[:, None] / PRIOR_DF[:, None]  # [d0, P]
    constant = np.array([lgamma((df + d0) / 2) - lgamma(d0 / 2) - df / 2 * np.log(d0) for d0 in PRIOR_DF])
    # The density of F without what depends on neither d0 nor c, and with log r = log(ratio) - log c.
    likelihood = (constant[:, None] - df / 2 * log_c[:, None] - (df + PRIOR_DF[:, None]) / 2 * np.log1p(scaled)).sum(1)
    place = int((likelihood >= likelihood.max() - COMPATIBLE).argmax())
    return float(PRIOR_DF[place]), float(np.exp(log_c[place]))


def _most_likely(ratio_P: Floats, df: float) -> Floats:
    """log c for each of PRIOR_DF, where the mean of df r / (d0 + df r) over r = ratio / c is df / (d0 + df)."""
    low = np.full(len(PRIOR_DF), np.log(ratio_P.min()))
    high = np.full(len(PRIOR_DF), np.log(ratio_P.max()))
    for _ in range(60):
        middle = (low + high) / 2
        r = ratio_P / np.exp(middle)[:, None]
        is_below = (df * r / (PRIOR_DF[:, None] + df * r)).mean(1) > df / (PRIOR_DF + df)
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    found: Floats = (low + high) / 2
    return found


def _counts(its: Chance, prior_df: float, ratio: float, most: float) -> Part | None:
    """most: the degrees of freedom that all pairs have together."""
    own, of_like = its.seeds, ratio * its.drawn
    if own is None:
        return None
    both = (prior_df * of_like + own.df * own.variance) / (prior_df + own.df)
    lent = prior_df * min(1.0, OUTLIER * of_like / own.variance)
    return replace(own, variance=max(own.variance, both), df=min(lent + own.df, most))


def _is_usable(its: Chance) -> bool:
    return its.seeds is not None and _NONE < its.seeds.variance < inf and _NONE < its.drawn < inf
