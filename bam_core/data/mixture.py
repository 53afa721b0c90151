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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bam_core.data.shards import ShardedRows
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem, nearest

LONGEST_PERIOD = 10_000
"""Shares of a common denominator up to this are exact, so all of four decimals; others are rounded to it."""

SHARE_TOLERANCE = 1e-9
"""How far a share may be from w/Q and still be that share: far above float rounding, one row in 10^9."""

SUM_TOLERANCE = 1e-6
"""How far the sum of shares may be from 1, so that 0.333333 three times will do."""


class DomainMixture:
    """Rows of several domains by shares; in a domain, every epoch is a fresh permutation of all its rows."""

    def __init__(self, rows: Mapping[str, ShardedRows], shares: Mapping[str, float], seed: int) -> None:
        """Domains whose share is 0 need no rows. Raises InvalidInput with everything wrong."""
        problems = list(_share_problems(rows, shares))
        if problems:
            raise InvalidInput("mixture", problems)
        self.domains = tuple(sorted(domain for domain, share in shares.items() if share > 0))
        self.seed = seed
        self.rows_seen = 0
        self._rows = [rows[domain] for domain in self.domains]
        self._weights = period_weights([shares[domain] for domain in self.domains])
        self._period = int(self._weights.sum())
        self._table = period_table(self._weights)
        taken = np.eye(len(self.domains), dtype=np.int64)[self._table]
        self._before = np.concatenate([np.zeros_like(taken[:1]), taken.cumsum(axis=0)])
        self._permutation = lru_cache(maxsize=2 * len(self.domains))(self._shuffled)

    def locate(self, start: int, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where rows start to start + n_rows are: index into `domains` [n_rows], row within it [n_rows]."""
        periods, places = np.divmod(np.arange(start, start + n_rows), self._period)
        domains = self._table[places]
        nth = periods * self._weights[domains] + self._before[places, domains]
        indices = np.empty(n_rows, dtype=np.int64)
        for domain in np.unique(domains):
            here = domains == domain
            epochs, positions = np.divmod(nth[here], len(self._rows[domain]))
            found = [self._permutation(int(domain), int(e))[p] for e, p in zip(epochs, positions, strict=True)]
            indices[here] = found
        return domains, indices

    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        """tokens [rows_per_batch, row_len] of step 0, 1, ..., whatever was asked before.

        Moves `rows_seen` behind this batch.
        """
        domains, indices = self.locate(step * rows_per_batch, rows_per_batch)
        tokens = np.empty((rows_per_batch, self._rows[0].row_len), dtype=np.int64)
        for domain in np.unique(domains):
            tokens[domains == domain] = self._rows[domain][indices[domains == domain]]
        self.rows_seen = (step + 1) * rows_per_batch
        return tokens

    def domain_counts(self, n_rows: int) -> dict[str, int]:
        """How many of the first n_rows come from each domain."""
        periods, place = divmod(n_rows, self._period)
        counts = periods * self._weights + self._before[place]
        return dict(zip(self.domains, counts.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """All that a resume needs, as JSON; the rest is there to notice another mixture."""
        return {"rows_seen": self.rows_seen, "mixture": self._identity()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state()` was taken. Raises ArtifactDamaged if it belongs to another mixture."""
        if state.get("mixture") != self._identity() or not isinstance(state.get("rows_seen"), int):
            raise ArtifactDamaged(f"data cursor {dict(state)} does not belong to the mixture {self._identity()}")
        self.rows_seen = state["rows_seen"]

    def _identity(self) -> dict[str, Any]:
        weights = dict(zip(self.domains, self._weights.tolist(), strict=True))
        n_rows = {domain: len(rows) for domain, rows in zip(self.domains, self._rows, strict=True)}
        return {"seed": self.seed, "weights": weights, "n_rows": n_rows}

    def _shuffled(self, domain: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of the domain's rows, from bits that numpy keeps across versions (NEP 19)."""
        name = f"{self.seed}/{self.domains[domain]}/{epoch}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        bits = np.random.Philox(key=key).random_raw(len(self._rows[domain]))
        order: NDArray[np.int64] = np.argsort(bits, kind="stable")
        return order


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


def _share_problems(rows: Mapping[str, ShardedRows], shares: Mapping[str, float]) -> Iterator[Problem]:
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
