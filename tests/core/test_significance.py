"""Differences, their intervals and corrections: against classical statistics where those are exact."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from math import exp, inf, isnan, log, nan, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bam_core.errors import InvalidInput
from bam_core.evaluate.intervals import Part, half_width, holm, holm_alphas, p_value
from bam_core.evaluate.perplexity import DomainScore, average_perplexity
from bam_core.evaluate.resample import AVERAGE, TOKEN_AVERAGE, DocumentScores
from bam_core.evaluate.significance import Comparison, compare, compare_all, estimate, verdict
from bam_core.evaluate.student import beyond, quantile

EXACT = 1e-9
OF_DRAWS = 0.08
"""Relative error of a standard error from 2000 draws: 1/sqrt(2 * 2000), five times."""


def scored(tokens: dict[str, Any], **per_token: Any) -> DocumentScores:
    """per_token: model -> domain -> nats per token of each document and seed [R, N] (or what broadcasts to it)."""
    n_seeds = next(np.shape(x)[0] for model in per_token.values() for x in model.values())
    sizes = {domain: np.array(found) for domain, found in tokens.items()}
    nll = {
        model: {
            domain: np.broadcast_to(np.array(x, float), (n_seeds, len(sizes[domain]))) * sizes[domain]
            for domain, x in of.items()
        }
        for model, of in per_token.items()
    }
    documents = {domain: np.arange(len(found)) for domain, found in sizes.items()}
    return DocumentScores(tuple(range(n_seeds)), documents, sizes, nll)


def noisy(n_models: int = 2, n_seeds: int = 3, seed: int = 0, shift: float = 0.0) -> DocumentScores:
    rng = np.random.default_rng(seed)
    tokens = {"law": rng.integers(20, 400, 25), "math": rng.integers(20, 400, 15)}
    per_token = {
        f"m{model}": {
            domain: 2.0 + rng.normal(0, 0.01, (n_seeds, 1)) + rng.normal(0, 0.02, (n_seeds, len(found))) + shift * model
            for domain, found in tokens.items()
        }
        for model in range(n_models)
    }
    return scored(tokens, **per_token)


def same(a: Comparison, b: Comparison) -> bool:
    """Equal in all figures, NaN to NaN."""
    return repr(asdict(a)) == repr(asdict(b))


@pytest.mark.parametrize("df", [1, 1.3, 2, 3.7, 8, 29.5, 400])
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.7, 2.0, 40.0, 1e3])
def test_student_t_is_scipys(t: float, df: float):
    assert beyond(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("df", [1, 1.3, 2, 3.7, 8, 29.5, 400])
@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.05, 0.005, 1e-8, 1e-15])
def test_student_quantile_is_scipys(alpha: float, df: float):
    assert quantile(alpha, df) == pytest.approx(stats.t.isf(alpha / 2, df), rel=1e-9, abs=1e-12)


def test_figures_are_those_of_the_evaluation():
    scores = noisy(n_seeds=1)
    found = {}
    for model in ("m0", "m1"):
        domains = {}
        for domain, tokens in scores.tokens.items():
            domains[domain] = DomainScore(scores.nll[model][domain].sum() / tokens.sum(), int(tokens.sum()), 1)
        in_all = sum(score.nll * score.tokens for score in domains.values()) / sum(s.tokens for s in domains.values())
        found[model] = {
            AVERAGE: average_perplexity(domains),
            TOKEN_AVERAGE: exp(in_all),
            "perplexity.law": domains["law"].perplexity,
        }
    for figure, value in found["m0"].items():
        difference = compare(scores, "m0", "m1", figure=figure).difference
        assert difference == pytest.approx(value / found["m1"][figure] - 1, abs=EXACT)
        assert estimate(scores, "m0", figure=figure).value == pytest.approx(value, rel=EXACT)


def test_identical_models_do_not_differ():
    scores = noisy()
    twins = DocumentScores(scores.seeds, scores.documents, scores.tokens, scores.nll | {"twin": scores.nll["m0"]})
    found = compare(twins, "twin", "m0")
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.word == "not distinguishable"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 3]))
def test_the_other_way_round_is_the_mirror_image(seed: int, n_seeds: int):
    scores = noisy(n_seeds=n_seeds, seed=seed)
    there, back = compare(scores, "m0", "m1", draws=100), compare(scores, "m1", "m0", draws=100)
    assert (1 + there.difference) * (1 + back.difference) == pytest.approx(1, abs=EXACT)
    assert (1 + there.low) * (1 + back.high) == pytest.approx(1, abs=1e-6)
    assert there.p == pytest.approx(back.p, rel=1e-6)


def test_chance_of_seeds_alone_is_the_paired_t_test():
    """All documents agree on the difference: what is left is a classical problem."""
    d_R = np.array([-0.031, -0.012, -0.024, 0.002, -0.019])
    level_R = np.array([2.0, 2.1, 1.9, 2.05, 2.0])
    tokens = {"law": [100, 20, 300, 50]}
    scores = scored(tokens, a={"law": (level_R + d_R)[:, None]}, b={"law": level_R[:, None]})
    found, classical = compare(scores, "a", "b"), stats.ttest_rel(level_R + d_R, level_R)
    ends = classical.confidence_interval(0.95)
    assert found.p == pytest.approx(classical.pvalue, rel=1e-6)
    assert (log(1 + found.low), log(1 + found.high)) == pytest.approx((ends.low, ends.high), abs=EXACT)


def test_chance_of_documents_alone_is_the_paired_t_test():
    """One seed and documents of one length: a mean of n differences. Its degrees of freedom are estimated."""
    rng = np.random.default_rng(1)
    level_N, d_N = rng.normal(3, 0.4, 200), rng.normal(-0.01, 0.05, 200)
    scores = scored({"law": [64] * 200}, a={"law": [level_N + d_N]}, b={"law": [level_N]})
    found, classical = compare(scores, "a", "b"), stats.ttest_rel(level_N + d_N, level_N)
    ends = classical.confidence_interval(0.95)
    assert log(1 + found.difference) == pytest.approx(d_N.mean(), abs=EXACT)
    assert found.documents_se == pytest.approx(d_N.std(ddof=1) / sqrt(200), rel=OF_DRAWS)
    assert log(1 + found.high) - log(1 + found.low) == pytest.approx(ends.high - ends.low, rel=OF_DRAWS)
    assert found.notes == ("over documents only: one seed",)


def test_what_documents_do_under_one_seed_is_counted_once():
    """All chance is of documents under seeds: the variance over seeds has it, the documents' part has none."""
    rng = np.random.default_rng(2)
    x_RN = 2 + rng.normal(0, 0.05, (40, 60))
    scores = scored({"law": [64] * 60}, a={"law": x_RN}, b={"law": np.full((40, 60), 2.0)})
    found = compare(scores, "a", "b")
    assert found.seeds_se == pytest.approx(0.05 / sqrt(60 * 40), rel=0.3)
    assert found.documents_se < found.seeds_se


def test_a_few_long_documents_count_for_few():
    rng = np.random.default_rng(3)
    d_N = rng.normal(0, 0.05, 40)
    even = scored({"law": [100] * 40}, a={"law": [2 + d_N]}, b={"law": [[2.0] * 40]})
    uneven = scored({"law": [1000, 1000] + [1] * 38}, a={"law": [2 + d_N]}, b={"law": [[2.0] * 40]})
    ratio = {}
    for name, scores in {"even": even, "uneven": uneven}.items():
        found = compare(scores, "a", "b")
        ratio[name] = log((1 + found.high) / (1 + found.low)) / 2 / found.documents_se
    assert ratio["even"] == pytest.approx(stats.t.isf(0.025, 39), rel=0.15)
    assert ratio["uneven"] > 4


def test_fewer_than_four_pairs_count_by_themselves():
    scores = noisy(4)
    pairs = [(f"m{m}", "m0") for m in range(1, 4)]
    for one, alone in zip(compare_all(scores, pairs), (compare(scores, *pair) for pair in pairs), strict=True):
        assert (one.low, one.high, one.seeds_se) == pytest.approx((alone.low, alone.high, alone.seeds_se), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-8, 1e-2), st.floats(1, 60), st.floats(0, 1e-2), st.sampled_from([1, 2, 4, 14]), st.floats(1e-6, 0.3)
)
def test_the_interval_at_level_p_just_reaches_zero(v: float, df: float, seeds_v: float, seeds_df: int, distance: float):
    parts = [Part("documents", v, df), Part("seeds", seeds_v, seeds_df)]
    p = p_value(parts, distance)
    if p > 1e-15:
        assert half_width(parts, p) == pytest.approx(distance, rel=1e-6)


def test_holm_is_the_closed_test_of_bonferroni():
    """The corrected p of a hypothesis is the largest Bonferroni p over all intersections that it is in."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        p = [float(x) for x in rng.beta(0.3, 2, 5)]
        for i, corrected in enumerate(holm(p)):
            sets = [s for size in range(1, 6) for s in combinations(range(5), size) if i in s]
            assert corrected == pytest.approx(max(min(1, len(s) * min(p[j] for j in s)) for s in sets))
    assert holm([]) == []
    assert holm([0.01, 0.01, 0.03]) == pytest.approx([0.03, 0.03, 0.03])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.05, 0.2]))
def test_the_level_of_each_test_decides_as_its_corrected_p_does(p_values: list[float], alpha: float):
    tested = zip(p_values, holm_alphas(p_values, alpha), holm(p_values), strict=True)
    for p, level, corrected in tested:
        assert (p < level) == (corrected < alpha) or p == pytest.approx(level)


def test_distinguishable_means_that_the_corrected_interval_is_clear_of_zero():
    words = set()
    for seed in range(6):
        scores = noisy(5, seed=seed, shift=0.012)
        for found in compare_all(scores, [(f"m{m}", "m0") for m in range(1, 5)], draws=300):
            clear = found.corrected_low > 0 or found.corrected_high < 0
            assert clear == found.is_distinguishable
            assert found.corrected_low <= found.low < found.high <= found.corrected_high
            assert found.n_comparisons == 4
            words.add(found.word)
    assert words == {"worse", "not distinguishable"}


def test_verdict_on_a_claim_of_order():
    scores = noisy(2, shift=0.2)
    lower, higher = compare(scores, "m0", "m1"), compare(scores, "m1", "m0")
    assert (lower.word, higher.word) == ("better", "worse")
    assert [verdict(lower), verdict(higher), verdict(lower, "above"), verdict(higher, "above")] == [
        *("confirmed", "refuted", "refuted", "confirmed")
    ]
    twin = DocumentScores(scores.seeds, scores.documents, scores.tokens, scores.nll | {"twin": scores.nll["m0"]})
    assert verdict(compare(twin, "twin", "m0")) == "not distinguishable"


def test_a_domain_of_one_document_is_named():
    rng = np.random.default_rng(6)
    x_N = rng.normal(2, 0.05, (1, 12))
    scores = scored(
        {"law": [30] * 12, "math": [500]}, a={"law": x_N, "math": [[1.9]]}, b={"law": [[2.0]], "math": [[2.0]]}
    )
    found = compare(scores, "a", "b")
    assert found.notes[1:] == ("math has one document: how much another would differ is not known",)
    assert found.documents_se > 0
    assert compare(scores, "a", "b", figure="perplexity.law").notes == ("over documents only: one seed",)


def test_where_nothing_is_known_of_chance_nothing_is_distinguishable():
    scores = scored({"law": [30], "math": [50]}, a={"law": [[1]], "math": [[1]]}, b={"law": [[2]], "math": [[2]]})
    found = compare(scores, "a", "b")
    assert found.difference == pytest.approx(exp(-1) - 1)
    assert (found.low, found.high, found.p, found.word) == (-1, inf, 1, "not distinguishable")
    assert len(found.notes) == 3


def test_one_document_in_each_domain_leaves_the_chance_of_seeds():
    d_R = [0.1, 0.12, 0.11]
    scores = scored({"law": [30]}, a={"law": [[2 + d] for d in d_R]}, b={"law": [[2.0]] * 3})
    assert compare(scores, "a", "b").p == pytest.approx(stats.ttest_1samp(d_R, 0).pvalue, rel=1e-6)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_loss_that_is_not_finite_is_never_distinguishable(value: float):
    scores = noisy(4, shift=0.2)
    broken = {domain: nll.copy() for domain, nll in scores.nll["m1"].items()}
    broken["law"][1, 3] = value
    spoiled = DocumentScores(scores.seeds, scores.documents, scores.tokens, scores.nll | {"m1": broken})
    pairs = [("m1", "m0"), ("m2", "m0"), ("m3", "m0")]
    found, *others = compare_all(spoiled, pairs)
    assert isnan(found.difference)
    assert isnan(found.low)
    assert (found.p, found.word) == (1, "not distinguishable")
    assert "a loss is not finite: nothing can be told apart" in found.notes
    assert [one.word for one in others] == ["worse", "worse"]
    assert isnan(estimate(spoiled, "m1").value)


def test_documents_without_tokens_change_nothing():
    scores = noisy()
    longer = DocumentScores(
        scores.seeds,
        {d: np.append(x, 999) for d, x in scores.documents.items()},
        {d: np.append(x, 0) for d, x in scores.tokens.items()},
        {m: {d: np.pad(x, ((0, 0), (0, 1))) for d, x in of.items()} for m, of in scores.nll.items()},
    )
    assert same(compare(longer, "m0", "m1"), compare(scores, "m0", "m1"))


def test_documents_of_a_token_or_two_are_fine():
    rng = np.random.default_rng(7)
    tokens = {"law": [1, 2, 1, 900, 3, 2]}
    found = compare(scored(tokens, a={"law": rng.normal(2, 1, (3, 6))}, b={"law": rng.normal(2, 1, (3, 6))}), "a", "b")
    assert found.low < found.difference < found.high


def test_equal_seeds_give_equal_intervals_and_a_further_domain_moves_no_draw():
    scores = noisy()
    assert same(compare(scores, "m0", "m1"), compare(scores, "m0", "m1"))
    assert compare(scores, "m0", "m1", seed=1).documents_se != compare(scores, "m0", "m1").documents_se
    alone = DocumentScores(
        scores.seeds,
        {"law": scores.documents["law"]},
        {"law": scores.tokens["law"]},
        {model: {"law": of["law"]} for model, of in scores.nll.items()},
    )
    law = {"figure": "perplexity.law"}
    assert compare(scores, "m0", "m1", **law).low == pytest.approx(compare(alone, "m0", "m1", **law).low, rel=EXACT)


def test_what_was_not_scored_is_named():
    scores = noisy()
    with pytest.raises(InvalidInput, match=r"models: 'm7': has no scored documents"):
        compare(scores, "m7", "m1")
    with pytest.raises(InvalidInput, match=r"figure: 'perplexity.law2': is not a figure.*perplexity.law"):
        compare(scores, "m0", "m1", figure="perplexity.law2")
    empty = scored({"law": [0, 0]}, a={"law": [[2.0, 2.0]]}, b={"law": [[2.0, 2.0]]})
    with pytest.raises(InvalidInput, match=r"domains.law: 0: has no tokens"):
        compare(empty, "a", "b")
    assert compare_all(scores, []) == []


def test_an_interval_of_a_models_own_figure_holds_its_documents():
    scores = noisy()
    found = estimate(scores, "m0")
    assert found.low < found.value < found.high
    assert found.n_documents == 40
    once = estimate(noisy(n_seeds=1), "m0")
    assert once.notes == ("over documents only: one seed",)
