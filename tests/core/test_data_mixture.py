"""Mixing: exact shares after every row, whole epochs, and rows that depend on seed and row number alone."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.data.mixture import LONGEST_PERIOD, DomainMixture, period_table, period_weights
from bam_core.data.packing import Rows
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.errors import InvalidInput

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""

SIZES = {"code": 5, "general": 11, "law": 3, "math": 7}
"""Rows of each domain; small, so that epochs end often and not together."""


def rows_of(folder: Path, tag: int, n_rows: int, row_len: int = 3) -> ShardedRows:
    """Rows whose first token says the domain and whose second says the row."""
    tokens = np.full((n_rows, row_len), 1, dtype=np.uint16)
    tokens[:, 0] = tag
    tokens[:, 1] = np.arange(n_rows)
    write_shards(folder, [Rows(tokens, np.ones(n_rows, dtype=np.int32))], rows_per_shard=4)
    return ShardedRows(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, ShardedRows]:
    folder = tmp_path_factory.mktemp("domains")
    return {name: rows_of(folder / name, tag, size) for tag, (name, size) in enumerate(SIZES.items())}


UNIFORM = dict.fromkeys(SIZES, 0.25)
UNEVEN = {"general": 0.7, "code": 0.1, "law": 0.1, "math": 0.1}


def drawn_shares(weights: list[int]) -> dict[str, float]:
    return {name: weight / sum(weights) for name, weight in zip(SIZES, weights, strict=True)}


shares = st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any).map(drawn_shares)


@CALM
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_no_domain_is_ever_a_whole_row_from_its_exact_share(weights):
    period = sum(weights)
    counts = [0] * len(weights)
    for place, domain in enumerate(period_table(np.array(weights)), start=1):
        counts[domain] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - Fraction(weight * place, period)) < 1
    assert counts == weights


@CALM
@given(shares, st.integers(0, 500))
def test_counts_are_those_of_the_rows_and_within_one_of_the_shares(rows, shares, n_rows):
    mixture = DomainMixture(rows, shares, seed=0)
    domains, _ = mixture.locate(0, n_rows)
    counted = Counter(mixture.domains[domain] for domain in domains)
    counts = mixture.domain_counts(n_rows)
    assert counts == {name: counted[name] for name in counts}
    for name, share in shares.items():
        assert abs(counts.get(name, 0) - share * n_rows) < 1 + 1e-6


@CALM
@given(shares, st.integers(0, 3), st.integers(1, 9), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_batch_depends_on_its_step_alone(rows, shares, seed, size, steps):
    straight = DomainMixture(rows, shares, seed)
    stream = [row for step in range(max(steps) + 1) for row in straight.batch(step, size).tolist()]
    jumping = DomainMixture(rows, dict(reversed(shares.items())), seed)
    for step in steps:
        assert jumping.batch(step, size).tolist() == stream[step * size : (step + 1) * size]


@CALM
@given(shares, st.integers(0, 5))
def test_every_epoch_of_a_domain_visits_each_row_once(rows, shares, seed):
    mixture = DomainMixture(rows, shares, seed)
    visited: dict[int, list[int]] = {}
    for tag, row, _ in mixture.batch(0, 400).tolist():
        visited.setdefault(tag, []).append(row)
    for tag, (name, size) in enumerate(SIZES.items()):
        epochs = [visited.get(tag, [])[start : start + size] for start in range(0, 400, size)]
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch), f"{name} repeats a row within an epoch"
            assert len(epoch) < size or sorted(epoch) == list(range(size))


def test_epochs_domains_and_seeds_are_shuffled_differently(tmp_path):
    rows = {name: rows_of(tmp_path / name, 0, 50) for name in ("a", "b")}
    orders = []
    for seed in (0, 1):
        domains, indices = DomainMixture(rows, {"a": 0.5, "b": 0.5}, seed).locate(0, 200)
        for domain in (0, 1):
            of_domain = indices[domains == domain]
            orders += [tuple(of_domain[:50]), tuple(of_domain[50:])]
    assert len(set(orders)) == 8


def test_the_order_is_pinned_so_that_a_resumed_run_goes_on_after_an_upgrade(rows):
    """Values of the first release; they must not change without a new version of the stages that train."""
    domains, indices = DomainMixture(rows, UNEVEN, seed=0).locate(0, 12)
    assert "".join("cglm"[domain] for domain in domains) == PINNED_DOMAINS
    assert indices.tolist() == PINNED_ROWS


def test_a_late_step_costs_no_replay(rows):
    mixture = DomainMixture(rows, UNEVEN, seed=0)
    n_rows = 10**15
    assert mixture.batch(n_rows // 10, 10).shape == (10, 3)
    assert mixture.domain_counts(n_rows) == {name: int(share * 10) * n_rows // 10 for name, share in UNEVEN.items()}


def test_a_domain_without_a_share_needs_no_rows(rows):
    only_law = DomainMixture({"law": rows["law"]}, {"law": 1.0, "code": 0.0, "nowhere": 0}, seed=0)
    assert only_law.domains == ("law",)
    assert only_law.domain_counts(7) == {"law": 7}


@pytest.mark.parametrize("weights", [[1], [7, 1, 1, 1], [1, 1, 1], [9, 1], [1, 9_999], [3333, 3333, 3334]])
def test_shares_with_a_common_denominator_are_exact(weights):
    shares = [weight / sum(weights) for weight in weights]
    assert period_weights(shares).tolist() == weights


def test_thirds_written_with_six_decimals_are_thirds():
    assert period_weights([0.333333] * 3).tolist() == [1, 1, 1]


@CALM
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
def test_other_shares_are_rounded_to_the_longest_period(numbers):
    shares = np.array(numbers) / sum(numbers)
    weights = period_weights(shares.tolist())
    assert weights.sum() <= LONGEST_PERIOD
    assert np.abs(weights / weights.sum() - shares).max() < 1 / LONGEST_PERIOD


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"general": 0.5, "law": 0.4}, "sum to 1, not 0.9"),
        ({"general": 1.2, "law": -0.2}, "must be 0 or at least"),
        ({"general": float("nan"), "law": 0.5}, "must be 0 or at least"),
        ({"general": 1 - 1e-5, "law": 1e-5}, "must be 0 or at least"),
        ({"general": 0.5, "lew": 0.5}, "lew: 0.5: no such domain .*'law'"),
        ({}, "sum to 1, not 0"),
    ],
)
def test_wrong_shares_are_refused(rows, shares, expected):
    with pytest.raises(InvalidInput, match=expected):
        DomainMixture(rows, shares, seed=0)


def test_everything_wrong_is_said_at_once(rows, tmp_path):
    longer = rows_of(tmp_path, 0, 2, row_len=4)
    with pytest.raises(InvalidInput, match="same length") as caught:
        DomainMixture({"a": rows["law"], "b": longer}, {"a": 0.5, "b": 0.25, "c": 0.5}, seed=0)
    assert len(caught.value.problems) == 3


PINNED_DOMAINS = "gggcgglggmgg"
PINNED_ROWS = [0, 5, 9, 4, 2, 10, 1, 7, 3, 0, 4, 1]
