"""Each text once: documents that differ in case and white space only are copies of each other.

Invariant: what is kept is a function of the set of texts, in no order: of copies the one whose sha256 is smallest, of
equal texts the one of the source that is named first.

Where only so many bytes are wanted, of the smallest sha256 first, what surely comes after them is not kept in memory.
Surely, because a copy that is still to come may stand in the place of a kept document and be shorter: only a third of
the normal form's bytes is counted on, since no folding of case makes a character's bytes more than three times as many.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import NamedTuple

from bam_core.protocols import Document

LONGEST_FOLD = 3
"""Bytes of a case-folded character over its own, at most."""


def content_digest(text: str) -> bytes:
    """Equal for texts that differ in case and white space only, which are copies."""
    return hashlib.sha256(_normal(text)).digest()


def _normal(text: str) -> bytes:
    return " ".join(text.casefold().split()).encode()


class _Order(NamedTuple):
    """By which documents are sorted: content first."""

    sha256: bytes
    part: int
    source: str


@dataclass
class _Kept:
    order: _Order
    document: Document
    least_bytes: int
    """Of it or of any copy of it."""


class Distinct:
    """Takes documents one by one. enough_bytes: how much text of the smallest sha256 is wanted; None: all.

    n_empty, n_copies: what was left out, or with `keep_copies` kept beside the first.
    """

    def __init__(self, enough_bytes: int | None = None, *, keep_copies: bool = False) -> None:
        assert enough_bytes is None or not keep_copies, "copies count too"
        self.n_empty = 0
        self._n = 0
        self._enough = enough_bytes
        self._kept: dict[bytes, _Kept] = {}
        self._copies: dict[bytes, list[tuple[_Order, Document]]] = {}
        self._keeps_copies = keep_copies
        self._seen: set[bytes] = set()
        """All contents, where not all are kept."""
        self._largest: list[tuple[int, bytes]] = []
        """Kept contents by falling sha256, and former ones: a heap."""
        self._least_bytes = 0
        self._evicted: bytes | None = None
        """The smallest sha256 that was not kept."""

    @property
    def n_contents(self) -> int:
        return len(self._kept) if self._enough is None else len(self._seen)

    @property
    def n_copies(self) -> int:
        return self._n - self.n_contents

    def add(self, document: Document) -> None:
        if not document.text.strip():
            self.n_empty += 1
            return
        self._n += 1
        normal = _normal(document.text)
        content = hashlib.sha256(normal).digest()
        order = _Order(hashlib.sha256(document.text.encode()).digest(), document.part, document.source)
        if self._keeps_copies:
            self._copies.setdefault(content, []).append((order, document))
        if self._enough is not None:
            self._seen.add(content)
            if self._evicted is not None and order.sha256 >= self._evicted:
                return
        known = self._kept.get(content)
        if known is not None and known.order <= order:
            return
        self._kept[content] = _Kept(order, document, len(normal) // LONGEST_FOLD)
        if self._enough is not None:
            self._least_bytes += 0 if known else self._kept[content].least_bytes
            heapq.heappush(self._largest, (-int.from_bytes(order.sha256), content))
            self._evict(self._enough)

    def _evict(self, enough: int) -> None:
        while self._largest:
            negative, content = self._largest[0]
            kept = self._kept.get(content)
            if kept is not None and int.from_bytes(kept.order.sha256) == -negative:
                if self._least_bytes - kept.least_bytes < enough:
                    return
                del self._kept[content]
                self._least_bytes -= kept.least_bytes
                self._evicted = kept.order.sha256
            heapq.heappop(self._largest)

    def documents(self) -> list[list[Document]]:
        """By sha256, each with its copies behind it, which are none unless they are kept."""
        groups = []
        for content, kept in sorted(self._kept.items(), key=lambda item: item[1].order):
            copies = sorted(self._copies.get(content, ()), key=lambda item: item[0])
            groups.append([kept.document, *(document for order, document in copies if order != kept.order)])
        return groups
