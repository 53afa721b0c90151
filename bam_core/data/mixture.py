"""Which row comes next when domains are mixed by shares: a pure function of the seed and the row's number.

Shares become whole weights w over a common period Q (share = w/Q), and the domains of one period are a table.
Row k, and how many rows of each domain came before it, follow by division: no replay, and no state but how
many were seen.

The table is an earliest-deadline schedule. Row j of a domain may come once Q*j/w rows (rounded down) have
gone by, and must come within Q*(j+1)/w rows (rounded up), which keeps each domain less than one row from its
exact share after every row. All deadlines can be met: of a stretch of T rows, the windows inside it claim at
most T*w/Q for a domain and T in all. (Always taking the largest deficit, the obvious rule, gives no such
bound.) Source: G. Steiner, S. Yeomans, "Level schedules for mixed-model, just-in-time processes", Management
Science 39, 1993.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bam_core.errors import InvalidInput, Problem, nearest

LONGEST_PERIOD = 10_000
"""Shares of a common denominator up to this are exact, so all of four decimals; others are rounded to it."""

SHARE_TOLERANCE = 1e-9
"""How far a share may be from w/Q and still be that share: far above float rounding, one row in 10^9."""

SUM_TOLERANCE = 1e-6
"""How far the sum of shares may be from 1, so that 0.333333 three times will do."""


class RowSet(Protocol):
    """Rows of one domain: `rows[indices] -> tokens [n, row_len]`."""

    row_len: int

    def __len__(self) -> int: ...
    def __getitem__(self, indices: ArrayLike, /) -> NDArray[np.int64]: ...


class Epochs:
    """The rows of each domain in the order in which they come: every epoch is a fresh permutation of all of them."""

    def __init__(self, rows: Mapping[str, RowSet], domains: Sequence[str], seed: int) -> None:
        self._domains, self._seed = tuple(domains), seed
        self._rows = [rows[domain] for domain in domains]
        self._permutation = lru_cache(maxsize=2 * len(self._domains))(self._shuffled)

    def indices(self, domains: NDArray[np.int64], nth: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the nth [n] row to come of each of these domains [n] lies among its domain's rows [n]."""
        indices = np.empty(len(domains), dtype=np.int64)
        for domain in np.unique(domains):
            here = domains == domain
            epochs, positions = np.divmod(nth[here], len(self._rows[domain]))
            found = [self._permutation(int(domain), int(e))[p] for e, p in zip(epochs, positions, strict=True)]
            indices[here] = found
        return indices

    def tokens(self, domains: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """tokens [n, row_len] of the rows that lie there."""
        tokens = np.empty((len(domains), self._rows[0].row_len), dtype=np.int64)
        for domain in np.unique(domains):
            tokens[domains == domain] = self._rows[domain][indices[domains == domain]]
        return tokens

    def _shuffled(self, domain: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of the domain's rows, from bits that numpy keeps across versions (NEP 19)."""
        name = f"{self._seed}/{self._domains[domain]}/{epoch}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        bits = np.random.Philox(key=key).random_raw(len(self._rows[domain]))
        order: NDArray[np.int64] = np.argsort(bits, kind="stable")
        return order


class DomainMixture:
    """Rows of several domains by shares that stay."""

    def __init__(self, rows: Mapping[str, RowSet], shares: Mapping[str, float], seed: int) -> None:
        """Domains whose share is 0 need no rows. Raises InvalidInput with everything wrong."""
        problems = list(_share_problems(rows, shares))
        if problems:
            raise InvalidInput("mixture", problems)
        self.domains = tuple(sorted(domain for domain, share in shares.items() if share > 0))
        self._epochs = Epochs(rows, self.domains, seed)
        self._weights = period_weights([shares[domain] for domain in self.domains])
        self._period = int(self._weights.sum())
        self._table = period_table(self._weights)
        taken = np.eye(len(self.domains), dtype=np.int64)[self._table]
        self._before = np.concatenate([np.zeros_like(taken[:1]), taken.cumsum(axis=0)])

    def locate(self, start: int, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where rows start to start + n_rows are: index into `domains` [n_rows], row within it [n_rows]."""
        periods, places = np.divmod(np.arange(start, start + n_rows), self._period)
        domains = self._table[places]
        nth = periods * self._weights[domains] + self._before[places, domains]
        return domains, self._epochs.indices(domains, nth)

    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        """tokens [rows_per_batch, row_len] of step 0, 1, ..., whatever was asked before."""
        return self._epochs.tokens(*self.locate(step * rows_per_batch, rows_per_batch))

    def domain_counts(self, n_rows: int) -> dict[str, int]:
        """How many of the first n_rows come from each domain."""
        periods, place = divmod(n_rows, self._period)
        counts = periods * self._weights + self._before[place]
        return dict(zip(self.domains, counts.tolist(), strict=True))


def period_weights(shares: Sequence[float]) -> NDArray[np.int64]:
    """Whole weights w with w / sum(w) equal to the shares, or nearest to them at the longest period."""
    exact = np.asarray(shares, dtype=np.float64) / sum(shares)
    periods = np.arange(1, LONGEST_PERIOD + 1)[:, None]
    errors = np.abs(np.round(exact * periods) / periods - exact).max(axis=1)
    exact_periods = np.flatnonzero(errors <= SHARE_TOLERANCE)
    if len(exact_periods):
        return np.asarray(np.round(exact * (exact_periods[0] + 1)), dtype=np.int64)
    weights = np.asarray(np.floor(exact * LONGEST_PERIOD), dtype=np.int64)
    largest_remainders = np.argsort(weights - exact * LONGEST_PERIOD, kind="stable")
    weights[largest_remainders[: LONGEST_PERIOD - weights.sum()]] += 1
    return weights


def period_table(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """table [Q]: the domain of each row of one period, for whole weights that sum to Q."""
    weight = [int(w) for w in weights]
    period = sum(weight)
    count = [0] * len(weight)
    table = np.empty(period, dtype=np.int64)
    for place in range(period):
        released = [d for d, w in enumerate(weight) if w * (place + 1) > count[d] * period]
        chosen = min(released, key=lambda d: -(-(count[d] + 1) * period // weight[d]))
        table[place] = chosen
        count[chosen] += 1
    assert count == weight, f"one period took {count}, expected {weight}"
    return table


def _share_problems(rows: Mapping[str, RowSet], shares: Mapping[str, float]) -> Iterator[Problem]:
    if not all(np.isfinite(share) and (share == 0 or share >= 1 / LONGEST_PERIOD) for share in shares.values()):
        yield Problem("", dict(shares), f"each share must be 0 or at least {1 / LONGEST_PERIOD:g}")
    elif abs(sum(shares.values()) - 1) > SUM_TOLERANCE:
        yield Problem("", dict(shares), f"shares must sum to 1, not {sum(shares.values()):g}")
    needed = [domain for domain, share in shares.items() if share != 0]
    for domain in needed:
        if domain not in rows:
            yield Problem(domain, shares[domain], "no such domain", nearest(domain, rows))
    lengths = {domain: rows[domain].row_len for domain in needed if domain in rows}
    if len(set(lengths.values())) > 1:
        yield Problem("", lengths, "rows of all domains must have the same length")
