"""Shares that change: exact counts after every batch, rows that depend on seed, step and shares alone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations, combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_data_mixture import SIZES, UNEVEN, rows_of

from bam_core.config import Anneal, TrainConfig
from bam_core.data.mixture import DomainMixture
from bam_core.data.schedule import (
    WHOLE,
    CountedMixture,
    annealed,
    planned_shares,
    planned_weights,
    rows_by_step,
    whole_parts,
)
from bam_core.data.shards import ShardedRows
from bam_core.data.subset import keep_back
from bam_core.errors import InvalidInput

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = tuple(SIZES)
UNIFORM = dict.fromkeys(NAMES, 0.25)
PLAN = TrainConfig(
    tokens=30 * 20,
    batch_tokens=20,
    lr=1.0,
    shares=UNIFORM,
    seq_len=2,
    seed=4,
    anneal=Anneal({"law": 0.75, "code": 0.25}),
)
"""30 steps of 10 rows."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, ShardedRows]:
    folder = tmp_path_factory.mktemp("domains")
    return {name: rows_of(folder / name, tag, size) for tag, (name, size) in enumerate(SIZES.items())}


@st.composite
def weights(draw, most_domains=6) -> np.ndarray:
    """[T, D] of one sum, changing as they like from batch to batch."""
    n_domains, total = draw(st.integers(1, most_domains)), draw(st.integers(1, 40))
    cuts = st.lists(st.integers(0, total), min_size=n_domains - 1, max_size=n_domains - 1).map(sorted)
    batches = draw(st.lists(cuts, min_size=1, max_size=25))
    return np.array([np.diff([0, *batch, total]) for batch in batches])


@CALM
@given(weights(), st.integers(1, 9))
def test_no_domain_is_ever_a_whole_row_from_its_exact_share(weights_TD, rows_per_batch):
    counts_TD = rows_by_step(weights_TD, rows_per_batch)
    assert (counts_TD >= 0).all()
    assert (counts_TD.sum(axis=1) == rows_per_batch).all()
    total = int(weights_TD[0].sum())
    for domain in range(weights_TD.shape[1]):
        exact, given = Fraction(0), 0
        for weight, count in zip(weights_TD[:, domain].tolist(), counts_TD[:, domain].tolist(), strict=True):
            exact, given = exact + Fraction(rows_per_batch * weight, total), given + count
            assert abs(given - exact) < 1


def test_who_does_not_know_later_shares_can_be_led_a_row_away():
    """The example of the module's docstring, by brute force: whichever two come first, shares of the others follow."""
    for first in combinations(range(4), 2):
        third, fourth = (domain for domain in range(4) if domain not in first)
        weights_TD = np.array([[1, 1, 1, 1], [0, 0, 0, 0]])
        weights_TD[1, [third, fourth]] = [1, 3]
        exact = weights_TD.sum(axis=0) * 2 / 4
        before = np.isin(np.arange(4), first).astype(int)
        after = [before + np.bincount(pair, minlength=4) for pair in combinations_with_replacement(range(4), 2)]
        assert all(np.abs(counts - exact).max() >= 1 for counts in after)
        known = rows_by_step(weights_TD, 2)
        assert np.abs(known.sum(axis=0) - exact).max() < 1


@CALM
@given(st.integers(0, 500), st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_whole_parts_are_nearest_and_pay_what_is_owed(total, shares, data):
    assume(sum(shares) > 1e-6)
    owed = np.array(data.draw(st.lists(st.floats(-0.9, 0.9), min_size=len(shares), max_size=len(shares))))
    owed -= owed.mean()
    parts = whole_parts(total, shares, owed.tolist())
    assert sum(parts) == total
    assert min(parts) >= 0
    exact = np.array(shares) / sum(shares) * total + owed
    if (exact >= 0).all():
        assert np.abs(exact - parts).max() < 1 + 1e-9


@pytest.mark.parametrize("shape", ["linear", "cosine", "step"])
def test_a_plan_goes_from_start_to_end(shape):
    plan = replace(PLAN, anneal=Anneal({"law": 0.75, "code": 0.25}, shape))
    path = [planned_shares(plan, step) for step in range(plan.n_steps)]
    assert path[0] == UNIFORM
    assert path[-1] == {"code": 0.25, "general": 0, "law": 0.75, "math": 0}
    for one, other in zip(path, reversed(path), strict=True):  # point symmetric: half of the rows by each end's shares
        assert one["law"] + other["law"] == pytest.approx(1.0)
    assert all(a["law"] <= b["law"] for a, b in pairwise(path))
    assert all(sum(shares.values()) == pytest.approx(1) for shares in path)


def test_a_plan_waits_and_ends_early():
    plan = replace(PLAN, tokens=101 * 20, anneal=Anneal({"law": 1.0}, begin=0.2, until=0.7))
    law = [planned_shares(plan, step)["law"] for step in range(plan.n_steps)]
    assert set(law[:21]) == {0.25}
    assert law[45] == pytest.approx(0.625)
    assert set(law[70:]) == {1.0}
    one_step = replace(PLAN, tokens=20, anneal=Anneal({"law": 1.0}))
    assert planned_shares(one_step, 0) == UNIFORM


def test_the_golden_middle_of_a_cosine():
    plan = replace(PLAN, tokens=5 * 20, anneal=Anneal({"law": 1.0}, "cosine"))
    assert planned_shares(plan, 1)["law"] == pytest.approx(0.25 + 0.75 * (1 - 2**-0.5) / 2)


def test_planned_weights_are_the_shares():
    weights_TD = planned_weights(PLAN)
    assert (weights_TD.sum(axis=1) == WHOLE).all()
    shares = np.array([list(planned_shares(PLAN, step).values()) for step in range(PLAN.n_steps)])
    assert np.abs(weights_TD / WHOLE - shares).max() < 1 / WHOLE


def test_a_planned_batch_depends_on_its_step_alone(rows):
    straight, jumping = annealed(rows, PLAN), annealed(dict(reversed(rows.items())), PLAN)
    batches = [straight.batch(step, 10) for step in range(PLAN.n_steps)]
    for step in (17, 3, 29, 3, 0):
        assert np.array_equal(jumping.batch(step, 10), batches[step])
    assert not np.array_equal(annealed(rows, replace(PLAN, seed=5)).batch(3, 10), batches[3])


def test_every_epoch_of_a_domain_visits_each_row_once_in_the_usual_order(rows):
    """The order of a domain's rows is that of fixed shares; only how many come in each batch is another."""
    mixture = annealed(rows, PLAN)
    found = np.concatenate([mixture.batch(step, 10) for step in range(PLAN.n_steps)])
    fixed = DomainMixture(rows, UNEVEN, PLAN.seed).batch(0, 2000)
    for tag in range(len(NAMES)):
        ours, theirs = (tokens[tokens[:, 0] == tag][:, 1].tolist() for tokens in (found, fixed))
        assert len(ours) >= 10
        assert ours == theirs[: len(ours)]


def test_rows_of_a_batch_are_spread_over_it(rows):
    """So that ranks and micro-batches get like parts: half of the rows, half of each domain, to a row."""
    mixture = CountedMixture(rows, NAMES, 0, rows_per_batch=20)
    mixture.append(np.array([[12, 4, 2, 2]]))
    domains, _ = mixture.locate(0)
    assert np.abs(np.bincount(domains[:10], minlength=4) - np.array([6, 2, 1, 1])).max() < 1


def test_a_mixture_that_is_extended_is_one_that_was_known_at_once(rows):
    weights_TD = np.array([[3, 3, 2, 2]] * 10 + [[7, 1, 1, 1]] * 10)
    grown = CountedMixture(rows, NAMES, 0, rows_per_batch=10)
    for part in (weights_TD[:10], weights_TD[10:]):
        grown.append(part)
    whole = CountedMixture(rows, NAMES, 0, rows_per_batch=10)
    whole.append(weights_TD)
    assert grown.n_steps == whole.n_steps == 20
    drawn = np.bincount(np.concatenate([grown.locate(step)[0] for step in range(20)]))
    assert dict(zip(NAMES, drawn, strict=True)) == {"code": 100, "general": 40, "law": 30, "math": 30}
    assert grown.shares(10) == {"code": 0.7, "general": 0.1, "law": 0.1, "math": 0.1}
    assert all(np.array_equal(grown.batch(step, 10), whole.batch(step, 10)) for step in range(20))


def test_a_domain_that_is_not_there_is_named(rows):
    with pytest.raises(InvalidInput, match=r"lew: 'lew': no such domain .*'law'"):
        CountedMixture(rows, ["code", "lew"], 0, 4)


@CALM
@given(st.integers(2, 60), st.integers(1, 9))
def test_what_is_kept_back_is_not_trained_on(tmp_path_factory, n_rows, wanted):
    rows = rows_of(tmp_path_factory.mktemp("rows"), 0, n_rows)
    kept, judged = keep_back("law", rows, wanted)
    assert len(judged) == max(1, min(wanted, n_rows // 10))
    trained_on = kept[np.arange(len(kept))][:, 1].tolist()
    assert sorted([*trained_on, *judged[:, 1].tolist()]) == list(range(n_rows))
    assert kept.row_len == rows.row_len


def test_a_single_row_cannot_be_kept_back(tmp_path):
    with pytest.raises(InvalidInput, match="law: 1: one row cannot be both"):
        keep_back("law", rows_of(tmp_path, 0, 1), 3)
