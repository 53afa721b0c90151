"""Which documents a domain has, in which order, and which of them are kept for validation.

Invariant: the result is a function of the texts alone - not of their order, names or a random generator.
Sorting by sha256 shuffles, and is stable: a new document does not change the order of the others. All is held
in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document

FEWEST_VALID = 0.5
"""If whole documents fill less than this part of the validation share, one document is cut to fill it."""


@dataclass(frozen=True)
class Split:
    """Documents in the order of their sha256. n_duplicates: how many were dropped as equal to another."""

    train: tuple[Document, ...]
    valid: tuple[Document, ...]
    n_duplicates: int


def content_digest(text: str) -> bytes:
    """Equal for texts that differ in case and white space only, which are duplicates."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()


def size_bytes(documents: Iterable[Document]) -> int:
    """UTF-8 bytes of the texts."""
    return sum(len(document.text.encode()) for document in documents)


def split(documents: Iterable[Document], valid_frac: float | None, max_bytes: int | None = None) -> Split:
    """Drop duplicates, sort by content, keep `max_bytes`, and set `valid_frac` of the bytes apart.

    Two texts are duplicates when they differ in case and white space only. Validation takes whole documents,
    in order, that fit into its share; where they are too few or too large for that, one is cut at the end of
    a line. None sets nothing apart: what is held out comes from elsewhere.

    Raises InvalidInput when there is no text, or too little to give both parts some.
    """
    if valid_frac is None:
        return _all_for_training(documents, max_bytes)
    if not 0 < valid_frac < 1:
        raise InvalidInput("split", [Problem("valid_frac", valid_frac, "must lie between 0 and 1")])
    kept, n_duplicates = _distinct(documents)
    if max_bytes is not None:
        kept = _take(kept, max_bytes)
    target = int(valid_frac * size_bytes(kept))
    train: list[Document] = []
    valid: list[Document] = []
    filled = 0
    for document in kept:
        size = size_bytes([document])
        fits = filled + size <= target
        (valid if fits else train).append(document)
        filled += size * fits
    if filled < FEWEST_VALID * target:
        # Each document of train is longer than what is left to fill, or it would have fitted.
        shortest = min(range(len(train)), key=lambda i: size_bytes([train[i]]))
        head, train[shortest] = _cut(train[shortest], target - filled)
        valid.append(head)
    train, valid = [[document for document in part if document.text] for part in (train, valid)]
    if not (train and valid):
        expected = "must hold enough text for training and validation; a few lines are too little"
        raise InvalidInput("split", [Problem("documents", len(kept), expected)])
    return Split(tuple(train), tuple(valid), n_duplicates)


def _all_for_training(documents: Iterable[Document], max_bytes: int | None) -> Split:
    kept, n_duplicates = _distinct(documents)
    train = kept if max_bytes is None else _take(kept, max_bytes)
    if not train:
        raise InvalidInput("split", [Problem("documents", len(kept), "must hold text")])
    return Split(tuple(train), (), n_duplicates)


def _distinct(documents: Iterable[Document]) -> tuple[list[Document], int]:
    """Documents with text, sorted by sha256; of equal ones the first. Then how many were dropped."""
    present = [(hashlib.sha256(d.text.encode()).digest(), d.source, d) for d in documents if d.text.strip()]
    present.sort(key=lambda item: item[:2])
    distinct: dict[bytes, Document] = {}
    for _, _, document in present:
        distinct.setdefault(content_digest(document.text), document)
    return list(distinct.values()), len(present) - len(distinct)


def _take(documents: list[Document], max_bytes: int) -> list[Document]:
    """The first documents, `max_bytes` in all; the last of them is cut."""
    taken: list[Document] = []
    left = max_bytes
    for document in documents:
        size = size_bytes([document])
        taken.append(document if size <= left else _cut(document, left)[0])
        left -= size
        if left <= 0:
            break
    return [document for document in taken if document.text]


def _cut(document: Document, n_bytes: int) -> tuple[Document, Document]:
    """Two documents: whole lines within the first `n_bytes`, or whole characters if no line ends there."""
    text = document.text
    head = text.encode()[:n_bytes].decode(errors="ignore")
    end = head.rfind("\n") + 1 or len(head)
    return Document(text[:end], document.source), Document(text[end:], document.source)
