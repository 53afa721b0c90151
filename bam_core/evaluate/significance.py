"""Whether two models differ: paired differences with intervals over documents and seeds, corrected for their number.

A difference is that of two perplexities, A / B - 1, worked out as its logarithm d, of every seed and then the mean over
seeds. `intervals` says how its interval is made, of a pair by itself (`compare`), and `moderated` what one of many
(`compare_all`) learns from the others.

Corrected: p by Holm's procedure; the corrected interval is at the level at which Holm tests the comparison, so it is
clear of zero exactly where the corrected p is below 1 - level. That is the one rule of "distinguishable": the
probability that any two equal models of a family are called different is at most 1 - level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np

from bam_core.evaluate.intervals import Part, chance_in, half_width, holm, holm_alphas, p_value
from bam_core.evaluate.moderated import moderate
from bam_core.evaluate.resample import AVERAGE, OF_DOMAIN, DocumentScores, Floats, Resampler, check_figure, over_seeds

LEVEL = 0.95
DRAWS = 2000
Word = Literal["better", "worse", "not distinguishable"]
Verdict = Literal["confirmed", "refuted", "not distinguishable"]


@dataclass(frozen=True)
class Comparison:
    """`model` against `baseline`. difference: A / B - 1 of the figure; low, high: its interval at `level`.

    corrected_*: of the family of `n_comparisons` that it was made in. documents_se, seeds_se: standard errors of the
    logarithm from either part, before the t. notes: what the interval cannot know.
    """

    model: str
    baseline: str
    figure: str
    difference: float
    low: float
    high: float
    p: float
    corrected_low: float
    corrected_high: float
    corrected_p: float
    n_comparisons: int
    level: float
    seeds: tuple[int, ...]
    n_documents: int
    documents_se: float
    seeds_se: float
    notes: tuple[str, ...] = ()

    @property
    def is_distinguishable(self) -> bool:
        return self.corrected_p < 1 - self.level

    @property
    def word(self) -> Word:
        """A lower perplexity is better."""
        if not self.is_distinguishable:
            return "not distinguishable"
        return "better" if self.difference < 0 else "worse"


@dataclass(frozen=True)
class Estimate:
    """A model's own figure and its interval over documents and seeds: of the text, not of a difference."""

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    n_documents: int
    notes: tuple[str, ...] = ()


def compare(
    scores: DocumentScores,
    model: str,
    baseline: str,
    *,
    figure: str = AVERAGE,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """One comparison, by these two models alone. Raises InvalidInput for a model or figure that was not scored."""
    return compare_all(scores, [(model, baseline)], figure=figure, level=level, draws=draws, seed=seed)[0]


def compare_all(
    scores: DocumentScores,
    pairs: Sequence[tuple[str, str]],
    *,
    figure: str = AVERAGE,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Comparison]:
    """A family of (model, baseline), in the given order; what seeds do to one pair is judged by the others too.

    Raises InvalidInput for models or a figure that were not scored.
    """
    check_figure(scores, figure)
    models = list(dict.fromkeys(name for pair in pairs for name in pair))
    if not models:
        return []
    resampler = Resampler(scores, models, draws, seed)
    log_MR, drawn_MRB, without = resampler.figure(figure), resampler.drawn(figure), list(resampler.without(figure))
    places = [(models.index(model), models.index(baseline)) for model, baseline in pairs]
    chances = moderate(
        [
            chance_in(log_MR[a] - log_MR[b], drawn_MRB[a] - drawn_MRB[b], [log[a] - log[b] for log in without])
            for a, b in places
        ]
    )
    found = [
        _Difference(float((log_MR[a] - log_MR[b]).mean()), chance.parts, _notes(resampler, figure, log_MR[[a, b]]))
        for (a, b), chance in zip(places, chances, strict=True)
    ]
    p_values = [one.p for one in found]
    corrected = zip(holm(p_values), holm_alphas(p_values, 1 - level), strict=True)
    return [
        _comparison(scores, pair, figure, level, one, p, alpha, len(pairs))
        for pair, one, (p, alpha) in zip(pairs, found, corrected, strict=True)
    ]


def estimate(
    scores: DocumentScores,
    model: str,
    *,
    figure: str = AVERAGE,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """A model's figure, the geometric mean over seeds. Raises InvalidInput as `compare` does."""
    check_figure(scores, figure)
    resampler = Resampler(scores, [model], draws, seed)
    log_R, left_out = resampler.figure(figure)[0], [log[0] for log in resampler.without(figure)]
    parts = chance_in(log_R, resampler.drawn(figure)[0], left_out).parts
    notes = _notes(resampler, figure, log_R)
    half = half_width(parts, 1 - level)
    value, low, high = over_seeds(log_R), over_seeds(log_R - half), over_seeds(log_R + half)
    return Estimate(value, low, high, scores.seeds, scores.n_documents, notes)


def verdict(comparison: Comparison, claim: Literal["below", "above"] = "below") -> Verdict:
    """On the claim that the model's figure is below (above) the baseline's."""
    if not comparison.is_distinguishable:
        return "not distinguishable"
    return "confirmed" if (comparison.difference < 0) == (claim == "below") else "refuted"


@dataclass(frozen=True)
class _Difference:
    """d: of the logarithms, NaN where a loss is not finite."""

    d: float
    parts: Sequence[Part]
    notes: tuple[str, ...]

    @property
    def p(self) -> float:
        return p_value(self.parts, abs(self.d)) if isfinite(self.d) else 1.0

    def interval(self, alpha: float) -> tuple[float, float]:
        """Of A / B - 1."""
        half = half_width(self.parts, alpha)
        return _exp(self.d - half) - 1, _exp(self.d + half) - 1

    def error_from(self, chance: str) -> float:
        return sqrt(sum(part.variance for part in self.parts if part.chance == chance))


def _comparison(
    scores: DocumentScores,
    pair: tuple[str, str],
    figure: str,
    level: float,
    found: _Difference,
    corrected_p: float,
    alpha: float,
    n_comparisons: int,
) -> Comparison:
    low, high = found.interval(1 - level)
    corrected_low, corrected_high = found.interval(alpha)
    return Comparison(
        model=pair[0],
        baseline=pair[1],
        figure=figure,
        difference=_exp(found.d) - 1,
        low=low,
        high=high,
        p=found.p,
        corrected_low=corrected_low,
        corrected_high=corrected_high,
        corrected_p=corrected_p,
        n_comparisons=n_comparisons,
        level=level,
        seeds=scores.seeds,
        n_documents=scores.n_documents,
        documents_se=found.error_from("documents"),
        seeds_se=found.error_from("seeds"),
        notes=found.notes,
    )


def _notes(resampler: Resampler, figure: str, log_MR: Floats) -> tuple[str, ...]:
    """What the interval cannot know, in words."""
    notes = []
    if not np.isfinite(log_MR).all():
        notes.append("a loss is not finite: nothing can be told apart")
    if len(resampler.scores.seeds) == 1:
        notes.append("over documents only: one seed")
    for domain in resampler.alone:
        if not figure.startswith(OF_DOMAIN) or figure == OF_DOMAIN + domain:
            notes.append(f"{domain} has one document: how much another would differ is not known")
    return tuple(notes)


def _exp(value: float) -> float:
    """NaN stays NaN, and what is too large is infinite."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))
