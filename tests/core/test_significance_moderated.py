"""What one pair of several learns of the chance of seeds: against scipy's F distribution, and what must hold of it."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log, nan, sqrt

import numpy as np
import pytest
from scipy import optimize, stats

from bam_core.evaluate.intervals import Chance, Part
from bam_core.evaluate.moderated import COMPATIBLE, OUTLIER, PRIOR_DF, moderate, prior
from bam_core.evaluate.significance import compare_all
from tests.benchmarks.significance import World


def chances(own: list[float], drawn: list[float], df: int = 2) -> list[Chance]:
    return [Chance(Part("documents", v / 2, 30), Part("seeds", s, df), v) for s, v in zip(own, drawn, strict=True)]


@pytest.mark.parametrize("df", [1, 2, 4])
def test_prior_is_that_of_scipys_f_distribution(df: int):
    """The same search with scipy's density and its optimiser."""
    ratio_P = 0.3 * stats.f(df, 3).rvs(12, random_state=df)

    def worst(log_c: float, d0: float) -> float:
        return -float(stats.f.logpdf(ratio_P / np.exp(log_c), df, d0).sum() - len(ratio_P) * log_c)

    ends = (log(ratio_P.min()), log(ratio_P.max()))
    best = [optimize.minimize_scalar(worst, bounds=ends, method="bounded", args=(d0,)) for d0 in PRIOR_DF]
    likelihood = np.array([-one.fun for one in best])
    place = int(np.argmax(likelihood >= likelihood.max() - COMPATIBLE))
    prior_df, ratio = prior(ratio_P, df)
    assert prior_df == PRIOR_DF[place]
    assert log(ratio) == pytest.approx(best[place].x, abs=1e-3)


@pytest.mark.parametrize(("df", "true_df"), [(1, 1), (1, 8), (2, 2), (2, 16), (4, 4)])
def test_prior_of_many_pairs_is_found(df: int, true_df: float):
    ratio_P = 2.5 * stats.f(df, true_df).rvs(4000, random_state=1)
    prior_df, ratio = prior(ratio_P, df)
    assert ratio == pytest.approx(2.5, rel=0.15)
    assert true_df / 2 <= prior_df <= true_df * 1.5


def test_seeds_part_is_between_the_own_and_that_of_its_like():
    own, drawn = [1e-6, 4e-6, 2.5e-6, 9e-6, 3e-6], [1e-6, 2e-6, 3e-6, 4e-6, 5e-6]
    prior_df, ratio = prior(np.array(own) / np.array(drawn), 2)
    for given_, found in zip(chances(own, drawn), moderate(chances(own, drawn)), strict=True):
        assert found.documents == given_.documents
        both = (prior_df * ratio * given_.drawn + 2 * given_.seeds.variance) / (prior_df + 2)
        assert found.seeds.variance == pytest.approx(max(both, given_.seeds.variance))
        assert found.seeds.df == prior_df + 2


def test_a_pair_that_seeds_move_much_further_counts_by_itself():
    its = chances([1e-6, 1.2e-6, 0.8e-6, 1.1e-6, 0.9e-6, 1e-6, 4e-4], [1e-6] * 7)
    *quiet, far = moderate(its)
    assert far.seeds.variance == its[-1].seeds.variance > OUTLIER * quiet[0].seeds.variance
    assert 2 < far.seeds.df < 2.2 < min(one.seeds.df for one in quiet)


def test_what_is_not_known_is_left_alone():
    usable = chances([1e-6, 2e-6, 3e-6, 4e-6], [1e-6] * 4)
    odd = [
        replace(usable[0], seeds=None),
        replace(usable[0], drawn=0.0),
        *(replace(usable[0], seeds=Part("seeds", v, 2)) for v in (0.0, nan, inf)),
    ]
    assert moderate([*usable, *odd])[:4] == moderate(usable)
    assert repr(moderate([*usable, *odd])[4:]) == repr(odd)
    assert moderate(usable[:3]) == usable[:3]
    assert moderate([]) == []


@pytest.mark.parametrize("factor", [0.01, 7.0, 1000.0])
def test_the_scale_of_perplexity_makes_no_difference(factor: float):
    rng = np.random.default_rng(0)
    for _ in range(20):
        own, drawn = (list(np.exp(rng.normal(-12, 1.5, 6))) for _ in range(2))
        scaled = chances([factor * s for s in own], [factor * v for v in drawn])
        for one, other in zip(moderate(chances(own, drawn)), moderate(scaled), strict=True):
            assert other.seeds.variance == pytest.approx(factor * one.seeds.variance, rel=1e-9)
            assert other.seeds.df == pytest.approx(one.seeds.df)


def test_a_noisy_model_among_many_does_not_widen_the_intervals_of_others():
    """A dense model among mixtures: as far off by documents as under seeds. Its own interval is wide, no other's."""
    rng = np.random.default_rng(0)
    scores = World(models=9).draw(rng)
    pairs = [(str(model), "8") for model in range(7)]
    for domain, nll_RN in scores.nll["7"].items():
        tokens = scores.tokens[domain]
        nll_RN += tokens * (rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.4, (1, len(tokens))))
    without, (*others, dense) = compare_all(scores, pairs), compare_all(scores, [*pairs, ("7", "8")])
    assert dense.seeds_se > 4 * max(one.seeds_se for one in others)
    width = [sqrt(np.mean([(one.high - one.low) ** 2 for one in found])) for found in (without, others)]
    assert width[1] == pytest.approx(width[0], rel=0.15)
