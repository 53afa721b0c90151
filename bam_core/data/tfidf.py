"""Documents as points: tf-idf of their words, in the few directions in which they differ most.

Words are letters without a break, case folded; all numbers are one word. A word counts if it is in two documents or
more and in at most half of them: that leaves out the commonest words of any language. tf is 1 + ln(count), idf is
1 + ln((1 + D) / (1 + documents with the word)), rows have length 1. The directions are the first singular vectors, by
random projection with power iterations. Sources: c-BTM (arXiv 2303.14177): tf-idf, numbers as one word, 100 directions;
N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", SIAM Review 53, 2011, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from bam_core.errors import InvalidInput, Problem

NUMBER = "0"
FEWEST_DOCUMENTS = 2
MOST_DOCUMENTS_FRAC = 0.5
POWER_ITERATIONS = 2
OVERSAMPLING = 10
"""Random directions beyond those that are wanted."""

Floats = NDArray[np.float64]
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class Rows:
    """A sparse matrix, [D, V]. Row i has `values[starts[i]:starts[i + 1]]` in the columns of the same places."""

    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats
    n_columns: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def row_of(self) -> NDArray[np.int64]:
        """The row of every value."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def times(self, right_VR: Floats) -> Floats:
        """The product with a dense matrix, [D, R]."""
        product_DR = np.empty((len(self), right_VR.shape[1]))
        for row, (start, end) in enumerate(pairwise(self.starts.tolist())):
            product_DR[row] = self.values[start:end] @ right_VR[self.columns[start:end]]
        return product_DR

    def transposed(self) -> Rows:
        order = np.argsort(self.columns, kind="stable")
        counts = np.bincount(self.columns, minlength=self.n_columns)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return Rows(starts, self.row_of[order], self.values[order], len(self))


@dataclass(frozen=True)
class TfIdf:
    """rows: of documents, [D, V]. words: of the columns."""

    rows: Rows
    words: tuple[str, ...]


def tf_idf(texts: Iterable[str], n_features: int, enough: Callable[[int], None] = lambda n_documents: None) -> TfIdf:
    """Of the `n_features` words that most documents have. Texts are read once and not kept.

    enough: may raise for a number of documents. Raises InvalidInput if no word counts.
    """
    numbers: dict[str, int] = {}
    columns, counts, lengths = [np.zeros(0, np.int64)], [np.zeros(0)], [0]
    for text in texts:
        found = Counter(NUMBER if word[0].isdecimal() else word for word in _WORD.findall(text.casefold()))
        columns.append(np.array([numbers.setdefault(word, len(numbers)) for word in found], np.int64))
        counts.append(np.array(list(found.values()), np.float64))
        lengths.append(len(found))
    rows = Rows(np.cumsum(lengths), np.concatenate(columns), np.concatenate(counts), len(numbers))
    enough(len(rows))
    frequency = np.bincount(rows.columns, minlength=len(numbers))
    kept = _features(list(numbers), frequency, len(rows), n_features)
    if not len(kept):
        expected = f"no word is in {FEWEST_DOCUMENTS} documents and at most half of them"
        raise InvalidInput("text", [Problem("documents", len(rows), expected, "give it more and longer documents")])
    idf = 1 + np.log((1 + len(rows)) / (1 + frequency[kept]))
    words = list(numbers)
    return TfIdf(_weighted(rows, kept, idf), tuple(words[column] for column in kept))


def _features(words: list[str], frequency: NDArray[np.int64], n_documents: int, most: int) -> NDArray[np.int64]:
    """Numbers of the words that count, alphabetically: which word was met first decides nothing."""
    fits = np.flatnonzero((frequency >= FEWEST_DOCUMENTS) & (frequency <= MOST_DOCUMENTS_FRAC * n_documents))
    best = sorted(fits.tolist(), key=lambda column: (-frequency[column], words[column]))[:most]
    return np.array(sorted(best, key=words.__getitem__), np.int64)


def _weighted(rows: Rows, kept: NDArray[np.int64], idf: Floats) -> Rows:
    """The columns that are kept, of counts made tf-idf, in rows of length 1 (0 where a row has none of them)."""
    place = np.full(rows.n_columns, -1)
    place[kept] = np.arange(len(kept))
    columns = place[rows.columns]
    row_of, values = rows.row_of[columns >= 0], rows.values[columns >= 0]
    columns = columns[columns >= 0]
    values = (1 + np.log(values)) * idf[columns]
    norms = np.sqrt(np.bincount(row_of, values**2, minlength=len(rows)))
    starts = np.searchsorted(row_of, np.arange(len(rows) + 1))
    return Rows(starts, columns, values / norms[row_of], len(kept))


def principal(rows: Rows, dims: int, seed: int) -> Floats:
    """Each row in the coordinates of the first `dims` singular vectors, made of length 1 again, [D, dims or fewer].

    A row of zeros stays one.
    """
    n_random = min(dims + OVERSAMPLING, len(rows), rows.n_columns)
    columns = rows.transposed()
    basis_DR = _orthonormal(rows.times(_signs(rows.n_columns, n_random, seed)))
    for _ in range(POWER_ITERATIONS):
        basis_DR = _orthonormal(rows.times(_orthonormal(columns.times(basis_DR))))
    left_RR, sizes, _ = np.linalg.svd(columns.times(basis_DR).T, full_matrices=False)
    points = (basis_DR @ (left_RR * sizes))[:, : min(dims, n_random)]
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    unit: Floats = np.divide(points, norms, out=np.zeros_like(points), where=norms > sqrt(np.finfo(np.float64).eps))
    return unit


def _orthonormal(matrix: Floats) -> Floats:
    q: Floats = np.linalg.qr(matrix)[0]
    return q


def _signs(n_rows: int, n_columns: int, seed: int) -> Floats:
    """Random 1 and -1, from bits that numpy keeps across versions (NEP 19)."""
    bits = np.random.Philox(key=seed).random_raw(n_rows * n_columns)
    return np.where(bits >> np.uint64(63), 1.0, -1.0).reshape(n_rows, n_columns)
