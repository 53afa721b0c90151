"""Some rows of a domain, and all others: what is kept from training to judge it on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bam_core.data.mixture import RowSet
from bam_core.errors import InvalidInput, Problem

MOST_KEPT_BACK = 10
"""At most every tenth row of a domain is kept back, and at least one."""


class Subset:
    """The rows of a set that have these indices, numbered anew."""

    def __init__(self, rows: RowSet, indices: NDArray[np.int64]) -> None:
        self._rows, self._indices = rows, indices
        self.row_len = rows.row_len

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, indices: ArrayLike, /) -> NDArray[np.int64]:
        return self._rows[self._indices[np.asarray(indices, dtype=np.int64)]]


def keep_back(domain: str, rows: RowSet, n_wanted: int) -> tuple[Subset, NDArray[np.int64]]:
    """The rows to train on, and the others: n_wanted at most, spread evenly over the text, as tokens [n, row_len].

    Raises InvalidInput for a domain of a single row.
    """
    if len(rows) < 2:
        expected = "one row cannot be both trained on and kept back to judge on"
        raise InvalidInput("adaptive shares", [Problem(domain, len(rows), expected, "give the domain more text")])
    n_kept = max(1, min(n_wanted, len(rows) // MOST_KEPT_BACK))
    kept = (np.arange(n_kept) * 2 + 1) * len(rows) // (2 * n_kept)
    return Subset(rows, np.delete(np.arange(len(rows)), kept)), rows[kept]
