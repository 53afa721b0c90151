"""Near copies: documents that have most of their runs of five words in common, by MinHash and LSH of datasketch.

Words are unbroken letters and digits, case folded, as where overlap is looked for. Two documents are near copies if the
estimate of the Jaccard index of their sets of runs, from 128 minima, is at least the threshold: its standard deviation
is 0.04 at most. LSH only finds the candidates, at the threshold itself at least 95 % of them. All random choices have
one fixed seed.

Invariant: of a set of texts in a given order, the same are dropped on every machine. A text is dropped if one that was
kept before it is a near copy; two that are dropped need not be alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bam_core.errors import UsageError

RUN = 5
PERMUTATIONS = 128
SEED = 1
LEAST_FOUND = 0.95
"""Of pairs that are as alike as the threshold says, the part that LSH finds; of those that are more alike, more."""
_WORD = re.compile(r"[^\W_]+")


def runs_of(text: str) -> set[str]:
    """Every run of `RUN` words; of a shorter text all words as one. None of a text without words."""
    words = _WORD.findall(text.casefold())
    if not words:
        return set()
    return {" ".join(run) for run in zip(*(islice(words, start, None) for start in range(RUN)), strict=False)} or {
        " ".join(words)
    }


def near_copies(texts: Iterable[str], threshold: float) -> list[int | None]:
    """Of each text, the number of the earlier kept text that it is a near copy of; None where it is kept itself.

    threshold: above 0, at most 1. Raises UsageError where the library is not installed.
    """
    assert 0 < threshold <= 1, threshold
    try:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError("dedup: minhash needs the package datasketch: pip install datasketch") from error

    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    empty = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme="affine32")
    kept: dict[int, NDArray[Any]] = {}
    found: list[int | None] = []
    for number, text in enumerate(texts):
        runs, copied = runs_of(text), None
        if runs:
            sketch = empty.copy()
            sketch.update_batch([run.encode() for run in runs])
            alike = (other for other in index.query(sketch) if _share(kept[other], sketch.hashvalues) >= threshold)
            copied = min(alike, default=None)
            if copied is None:
                index.insert(number, sketch)
                kept[number] = sketch.hashvalues
        found.append(copied)
    return found


def bands(threshold: float) -> tuple[int, int]:
    """(bands, minima of each) of LSH: as many minima as find `LEAST_FOUND`, so that few others are candidates too."""
    shapes = ((PERMUTATIONS // rows, rows) for rows in range(1, PERMUTATIONS // 2 + 1))
    return max(
        ((n, rows) for n, rows in shapes if 1 - (1 - threshold**rows) ** n >= LEAST_FOUND),
        key=lambda shape: shape[1],
        default=(PERMUTATIONS, 1),
    )


def _share(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The estimate of the Jaccard index."""
    return float(np.mean(one == other))
