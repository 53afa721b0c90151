"""How much of the held-out text occurs in training text: whole documents, and runs of 13 words.

A text is compared as its words: unbroken letters and digits, case folded. White space and punctuation do not count, in
code and formulas neither. Two documents are duplicates if they have the same words, and at least one. A document has a
run of 13 words at each of its words but the last 12; its share is that of the runs that occur in training text. A
duplicate has share 1, any other document of fewer words share 0. Source: GPT-3 (arXiv 2005.14165), appendix C: n-grams
of lower-cased words without punctuation, at most 13 of them.

The held-out text is small and is indexed: memory is some 40 bytes for each of its words. Training text streams by
once. Runs are compared by 64-bit hashes: among 10^7 held-out and 10^10 training runs, some 0.005 are taken for equal
that are not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

RUN = 13
"""Words of a run (GPT-3, appendix C)."""
SHOWN_WORDS = 12
"""Of a document in an example."""
TABLE_PER_RUN = 16
"""Entries of the table that most runs of training text are turned away by, for each held-out run."""

Hashes = NDArray[np.uint64]
_WORD = re.compile(r"[^\W_]+")
_POWERS = tuple(np.uint64(pow(0x9E3779B97F4A7C15, power, 2**64)) for power in (1, 2, 4))
"""Of an odd number: multiplying by it loses no bit."""


@dataclass(frozen=True)
class Overlap:
    """Of the held-out documents of one domain, D of them. n_runs, share: of each, [D].

    duplicate: the training domain that has the same document, or None, [D]. by_training: training domain -> share of
    all runs of the domain that occur in it. start: the first words of each document.
    """

    n_runs: NDArray[np.int64]
    share: NDArray[np.float64]
    duplicate: tuple[str | None, ...]
    by_training: Mapping[str, float]
    start: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.n_runs)

    @property
    def mean_share(self) -> float:
        """Over documents; 0 without any."""
        return float(self.share.mean()) if len(self) else 0.0

    def above(self, limit: float) -> list[int]:
        """Numbers of the documents whose share is above `limit`, and of duplicates, the largest share first."""
        found = [i for i in range(len(self)) if self.share[i] > limit or self.duplicate[i] is not None]
        return sorted(found, key=lambda i: (-self.share[i], i))


def words_of(text: str) -> list[str]:
    """The words by which a text is compared."""
    return _WORD.findall(text.casefold())


class HeldOut:
    """The held-out documents of every domain, ready to be compared with training text."""

    def __init__(self, texts: Mapping[str, Iterable[str]]) -> None:
        """texts: domain -> its documents."""
        self._vocabulary: dict[str, int] = {}  # word -> number from 1; 0 is any other word
        self._start: dict[str, list[str]] = {}
        self._same: dict[bytes, list[tuple[str, int]]] = {}  # digest of the words -> documents
        self._lengths: set[int] = set()  # numbers of words that a document has
        self._counts: dict[str, NDArray[np.int64]] = {}
        runs = {domain: self._index(domain, documents) for domain, documents in texts.items()}
        joined = np.concatenate([*runs.values(), np.zeros(0, np.uint64)])
        self._runs, places = np.unique(joined, return_inverse=True)
        ends = np.cumsum([len(hashes) for hashes in runs.values()], dtype=np.int64)
        self._places = dict(zip(runs, np.split(places, ends[:-1]), strict=True)) if runs else {}
        self._table, self._shift = _table(self._runs)
        self._seen: dict[str, NDArray[np.bool_]] = {}  # training domain -> which of the runs it has
        self._duplicate: dict[tuple[str, int], str] = {}

    def _index(self, domain: str, texts: Iterable[str]) -> Hashes:
        """Take the documents in. Returns the hashes of all their runs."""
        found, counts, self._start[domain] = [np.zeros(0, np.uint64)], [], []
        for number, text in enumerate(texts):
            words = words_of(text)
            for word in words:
                self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
            hashes, _ = _run_hashes(self._numbers(words))
            found.append(hashes)
            counts.append(len(hashes))
            self._start[domain].append(" ".join(text.split(maxsplit=SHOWN_WORDS)[:SHOWN_WORDS]))
            self._same.setdefault(_digest(words), []).append((domain, number))
            self._lengths.add(len(words))
        self._counts[domain] = np.array(counts, np.int64)
        return np.concatenate(found)

    def compare(self, domain: str, texts: Sequence[str], *, whole: bool = True) -> None:
        """Look for the held-out text in documents of a training domain. Called again, it goes on.

        whole: False for parts of one document, which can be no duplicates; let them overlap by 13 words.
        """
        seen = self._seen.setdefault(domain, np.zeros(len(self._runs), np.bool_))
        apart = np.zeros(1, np.int64)  # no run crosses it
        numbers = []
        for text in texts:
            words = words_of(text)
            if whole and words and len(words) in self._lengths:
                for place in self._same.get(_digest(words), ()):
                    self._duplicate.setdefault(place, domain)
            numbers += [self._numbers(words), apart]
        hashes, known = _run_hashes(np.concatenate([apart, *numbers]))
        hashes = hashes[known]
        hashes = hashes[self._table[hashes >> self._shift]]
        places = np.searchsorted(self._runs, hashes)
        places = np.minimum(places, len(self._runs) - 1)
        seen[places[self._runs[places] == hashes]] = True

    def _numbers(self, words: Sequence[str]) -> NDArray[np.int64]:
        return np.fromiter(map(self._vocabulary.get, words, repeat(0)), np.int64, len(words))

    def found(self, domain: str) -> Overlap:
        """What has been found so far of the held-out documents of a domain."""
        counts, places = self._counts[domain], self._places[domain]
        anywhere = np.any([np.zeros(len(self._runs), np.bool_), *self._seen.values()], axis=0)[places]
        ends = np.cumsum(counts)
        hits = np.concatenate([np.zeros(1), np.cumsum(anywhere)])
        shares = (hits[ends] - hits[ends - counts]) / np.maximum(counts, 1)
        duplicate = tuple(self._duplicate.get((domain, number)) for number in range(len(counts)))
        shares[[number for number, copied in enumerate(duplicate) if copied is not None]] = 1.0
        by_training = {
            training: float(seen[places].mean()) if len(places) else 0.0 for training, seen in self._seen.items()
        }
        return Overlap(counts, shares, duplicate, by_training, tuple(self._start[domain]))


def _digest(words: Sequence[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


def _run_hashes(numbers: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.bool_]]:
    """The hash of the run that begins at each word but the last 12, and whether all of its words are known."""
    if len(numbers) < RUN:
        return np.zeros(0, np.uint64), np.zeros(0, np.bool_)
    unknown = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers == 0)])
    known = unknown[RUN:] == unknown[:-RUN]
    one = _mixed(numbers.astype(np.uint64))
    m, m2, m4 = _POWERS
    two = one[:-1] * m + one[1:]
    four = two[:-2] * m2 + two[2:]
    eight = four[:-4] * m4 + four[4:]
    twelve = eight[:-4] * m4 + four[8:]
    return twelve[:-1] * m + one[12:], known


def _mixed(values: Hashes) -> Hashes:
    """64 bits that look random, another for each value (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _table(runs: Hashes) -> tuple[NDArray[np.bool_], np.uint64]:
    """Which highest bits of a hash some run has, and by how much a hash is shifted to get them."""
    bits = max(1, (TABLE_PER_RUN * len(runs)).bit_length())
    shift = np.uint64(64 - bits)
    table = np.zeros(2**bits, np.bool_)
    table[runs >> shift] = True
    return table, shift
