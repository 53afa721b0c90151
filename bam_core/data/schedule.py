"""Which rows come next when the shares change: so many of each domain in every batch, spread over it.

Within a batch shares are constant. Over the whole run each domain stays less than one row from its exact share after
every batch. Row j of a domain (counted from 0) may come in the first batch after which the exact count is above j, and
must have come in the first after which it is j + 1 or more; each batch takes the rows that must come now, then those
that must come soonest. All deadlines can be met: of batches a to b, the windows inside claim at most as many rows as
the exact counts grow by, which for all domains together is the rows of these batches. This needs to know later shares:
who does not can be led a row away or more, once there are four domains (two of them half a row ahead and two half a row
behind; then the latter get all). So shares that follow the losses are whole rows of each segment: at its end nobody is
owed any. Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import cos, floor, pi

import numpy as np
from numpy.typing import NDArray

from bam_core.config import TrainConfig
from bam_core.data.mixture import Epochs, RowSet, period_table
from bam_core.errors import InvalidInput, Problem, nearest

WHOLE = 10**9
"""Planned shares are whole multiples of 1 / WHOLE, so that exact counts are whole numbers too."""


class CountedMixture:
    """Rows of several domains, so many of each in every batch. In a domain they come as in `DomainMixture`."""

    def __init__(self, rows: Mapping[str, RowSet], domains: Sequence[str], seed: int, rows_per_batch: int) -> None:
        """Knows of no batch yet. Raises InvalidInput for a domain that has no rows."""
        missing = [Problem(name, name, "no such domain", nearest(name, rows)) for name in domains if name not in rows]
        if missing:
            raise InvalidInput("mixture", missing)
        self.domains, self.rows_per_batch = tuple(domains), rows_per_batch
        self._epochs = Epochs(rows, self.domains, seed)
        self._before = np.zeros((1, len(self.domains)), dtype=np.int64)
        self._shares = np.zeros((0, len(self.domains)))
        self._order = lru_cache(maxsize=64)(_spread)

    @property
    def n_steps(self) -> int:
        """Batches that are known."""
        return len(self._shares)

    def append(self, weights_TD: NDArray[np.int64]) -> None:
        """The next T batches. weights_TD: of the domains D, of one sum in every batch."""
        counts_TD = rows_by_step(weights_TD, self.rows_per_batch)
        self._before = np.concatenate([self._before, self._before[-1] + counts_TD.cumsum(axis=0)])
        self._shares = np.concatenate([self._shares, weights_TD / weights_TD.sum(axis=1, keepdims=True)])

    def shares(self, step: int) -> dict[str, float]:
        """The exact shares of a step."""
        return dict(zip(self.domains, self._shares[step].tolist(), strict=True))

    def locate(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the rows of a batch are: index into `domains` [R], row within it [R]."""
        assert 0 <= step < self.n_steps, f"step {step} of {self.n_steps} that are known"
        counts = self._before[step + 1] - self._before[step]
        domains, nth = self._order(tuple(counts.tolist()))
        return domains, self._epochs.indices(domains, self._before[step][domains] + nth)

    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        """tokens [rows_per_batch, row_len] of a step that is known."""
        assert rows_per_batch == self.rows_per_batch, f"{rows_per_batch} rows, planned for {self.rows_per_batch}"
        return self._epochs.tokens(*self.locate(step))


def annealed(rows: Mapping[str, RowSet], config: TrainConfig) -> CountedMixture:
    """The batches of a run whose shares change by a plan."""
    made = CountedMixture(rows, config.domains, config.seed, config.rows_per_batch)
    made.append(planned_weights(config))
    return made


def planned_shares(config: TrainConfig, step: int) -> dict[str, float]:
    """The share of each of `config.domains` at a step. 0 is the first step's fraction of the way and 1 the last's."""
    plan = config.anneal
    assert plan is not None, "the shares of this phase stay"
    way = step / (config.n_steps - 1) if config.n_steps > 1 else 0.0
    part = min(1.0, max(0.0, (way - plan.begin) / (plan.until - plan.begin)))
    if plan.shape == "cosine":
        part = (1 - cos(pi * part)) / 2
    elif plan.shape == "step":
        part = float(part >= 0.5)
    return {name: (1 - part) * config.shares.get(name, 0.0) + part * plan.end.get(name, 0.0) for name in config.domains}


def planned_weights(config: TrainConfig) -> NDArray[np.int64]:
    """weights [n_steps, D] that sum to WHOLE: the planned shares in whole numbers."""
    shares = [planned_shares(config, step) for step in range(config.n_steps)]
    return np.array([whole_parts(WHOLE, list(each.values())) for each in shares], dtype=np.int64)


def whole_parts(total: int, shares: Sequence[float], owed: Sequence[float] | None = None) -> list[int]:
    """`total` in whole parts nearest to the shares (largest remainders; the first of equals).

    owed: added to the exact parts, and 0 on the whole: what an earlier rounding left.
    """
    exact = np.asarray(shares, dtype=np.float64) / sum(shares) * total
    exact += 0.0 if owed is None else np.asarray(owed)
    parts = [max(0, floor(part)) for part in exact.tolist()]
    while (left := total - sum(parts)) != 0:
        behind = exact - parts
        if left > 0:
            for place in np.argsort(-behind, kind="stable")[:left].tolist():
                parts[place] += 1
        else:  # a part below 0 was raised to 0
            parts[min((p for p in range(len(parts)) if parts[p] > 0), key=lambda p: behind[p])] -= 1
    return parts


def rows_by_step(weights_TD: NDArray[np.int64], rows_per_batch: int) -> NDArray[np.int64]:
    """counts [T, D], rows_per_batch in each of T batches: after each, less than one row from the exact counts."""
    total = int(weights_TD[0].sum())
    assert (weights_TD.sum(axis=1) == total).all(), "weights of all batches must have one sum"
    assert rows_per_batch * total * len(weights_TD) < 2**63, "more rows than whole numbers of 64 bits can count"
    due = (weights_TD.cumsum(axis=0) * rows_per_batch).T.tolist()  # exact counts so far, times `total`
    taken, counts = [0] * len(due), []
    for step in range(len(weights_TD)):
        now = [max(0, due[d][step] // total - taken[d]) for d in range(len(due))]
        may = [d for d in range(len(due)) if -(-due[d][step] // total) > taken[d] + now[d]]
        may.sort(key=lambda d: bisect_left(due[d], (taken[d] + now[d] + 1) * total))
        for d in may[: rows_per_batch - sum(now)]:
            now[d] += 1
        assert sum(now) == rows_per_batch, f"batch {step} takes {now}, not {rows_per_batch} rows"
        taken = [before + more for before, more in zip(taken, now, strict=True)]
        counts.append(now)
    return np.array(counts, dtype=np.int64)


def _spread(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A batch with so many rows of each domain: the domain of each row [R], and the how-many-eth of it it is [R]."""
    domains = period_table(np.asarray(counts, dtype=np.int64))
    taken = np.eye(len(counts), dtype=np.int64)[domains].cumsum(axis=0)
    return domains, taken[np.arange(len(domains)), domains] - 1
