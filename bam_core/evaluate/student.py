"""Student's t distribution, two-sided: the probability beyond a value, and its inverse.

By the continued fraction of the incomplete beta function, in float64: relative error below 1e-10 also far out in the
tails, where a p-value corrected for many comparisons is read. Source: Abramowitz and Stegun, 26.5.8 and 26.7.1.
"""

from __future__ import annotations

from math import exp, inf, lgamma, log, log1p, pi, sqrt
from statistics import NormalDist

MAX_DF = 1e4
"""More degrees of freedom are taken for this many: the quantiles differ by less than 1 in 1000."""
_TINY = 1e-300
_MAX_TERMS = 10_000


def beyond(t: float, df: float) -> float:
    """P(|T| > t) of `df` degrees of freedom, at least 1 (need not be whole)."""
    assert t >= 0, f"needs a distance, got {t}"
    assert df >= 1, f"needs at least one degree of freedom, got {df}"
    df = min(df, MAX_DF)
    if t == 0 or t == inf:
        return 1.0 if t == 0 else 0.0
    a, b, log_x, log_y = df / 2, 0.5, -log1p(t * t / df), -log1p(df / (t * t))
    scale = lgamma(a + b) - lgamma(a) - lgamma(b) + a * log_x + b * log_y
    if exp(log_x) < (a + 1) / (a + b + 2):
        return exp(scale) * _fraction(a, b, exp(log_x)) / a
    return 1 - exp(scale) * _fraction(b, a, exp(log_y)) / b


def quantile(alpha: float, df: float) -> float:
    """The t with P(|T| > t) = alpha, for 0 < alpha <= 1."""
    assert 0 < alpha <= 1, f"needs a probability above 0, got {alpha}"
    df = min(df, MAX_DF)
    if alpha == 1:
        return 0.0
    # ln P as a function of ln t is concave and falls, so that after its first step Newton comes from the right.
    u = log(max(NormalDist().inv_cdf(1 - alpha / 2) if alpha > 1e-15 else 8.0, 1e-12))
    for _ in range(100):
        t = exp(u)
        p = beyond(t, df)
        step = log(p / alpha) * p / (2 * t * _density(t, df))
        u += min(step, 5.0)
        if abs(step) < 1e-12:
            break
    return exp(u)


def _density(t: float, df: float) -> float:
    return exp(lgamma((df + 1) / 2) - lgamma(df / 2) - (df + 1) / 2 * log1p(t * t / df)) / sqrt(df * pi)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away(value: float) -> float:
    """Not zero, as a divisor."""
    return value if abs(value) > _TINY else _TINY
