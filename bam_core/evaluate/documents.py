"""The documents of a domain's held-out rows, found again in the stream that the rows were cut from.

`bam_core.data.packing` cuts `eos doc eos doc eos ...`: a document is what lies between two `eos`. Predicted are its own
tokens, the first one from the `eos` before it, and the `eos` that closes it, a token of 0 bytes. So documents have
together exactly the predicted tokens and bytes of the rows. The end of the stream was dropped: what is left of the last
document is `cut`, unless it happened to end there.

Only where documents begin is held in memory, never a whole document: one may be longer than memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bam_core.data.packing import ROWS_PER_BLOCK
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem

if TYPE_CHECKING:  # a stage that only reads text has no use for torch, which takes a second to import
    from bam_core.evaluate.perplexity import Rows

GOLDEN = (sqrt(5) - 1) / 2
"""The fraction whose multiples spread most evenly over [0, 1), modulo 1."""


@dataclass(frozen=True)
class Documents:
    """D documents. edges: stream position of the `eos` before each one, [D + 1]; the last is where the stream ends.

    bytes_before: UTF-8 bytes of the stream up to there, [D + 1]. token_bytes [vocab_size]: of each id. cut: the last
    document goes on beyond the rows.
    """

    rows: Rows
    token_bytes: NDArray[np.int32]
    edges: NDArray[np.int64]
    bytes_before: NDArray[np.int64]
    cut: bool

    @classmethod
    def of(cls, rows: Rows, token_bytes: NDArray[np.int32]) -> Documents:
        """Read through the rows once. Raises ArtifactDamaged if they are not cut from one stream."""
        assert len(rows) > 0, "a validation set needs at least one row"
        eos_id = last = int(rows[np.arange(1)][0, 0])  # every stream starts with it
        edges, bytes_before = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        n_tokens = n_bytes = 0
        for start in range(0, len(rows), ROWS_PER_BLOCK):
            block = rows[np.arange(start, min(start + ROWS_PER_BLOCK, len(rows)))]
            if block[0, 0] != last or (block[1:, 0] != block[:-1, -1]).any():
                raise ArtifactDamaged(f"rows {start} to {start + len(block)} do not continue each other")
            targets = block[:, 1:].reshape(-1)
            bytes_up_to = n_bytes + token_bytes[targets].cumsum(dtype=np.int64)
            [ends] = np.nonzero(targets == eos_id)
            edges.append(n_tokens + 1 + ends)
            bytes_before.append(bytes_up_to[ends])
            n_tokens, n_bytes, last = n_tokens + len(targets), int(bytes_up_to[-1]), int(targets[-1])
        cut = last != eos_id
        if cut:
            edges.append(np.array([n_tokens]))
            bytes_before.append(np.array([n_bytes]))
        return cls(rows, token_bytes, np.concatenate(edges), np.concatenate(bytes_before), cut)

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Predicted tokens of each document, at least one, [D]."""
        return np.diff(self.edges)

    @property
    def n_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each document, [D]."""
        return np.diff(self.bytes_before)

    def ids(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids `start` to `stop` of `eos doc eos`, document `number` between the two that mark it."""
        low, high = self.edges[number] + start, self.edges[number] + stop
        assert self.edges[number] <= low < high <= self.edges[number + 1] + 1, f"{start} to {stop} of {number}"
        seq_len = int(self.edges[-1]) // len(self.rows)
        first = min(low // seq_len, len(self.rows) - 1)
        last = max(first, (high - 2) // seq_len)  # a row's last token is the next one's first
        tokens = self.rows[np.arange(first, last + 1)]
        stream = np.append(tokens[:, :-1], tokens[-1, -1])
        return stream[low - first * seq_len : high - first * seq_len]


@dataclass(frozen=True)
class Chosen:
    """Documents that are scored, D of them. numbers: which, ascending. tokens, n_bytes: predicted ones of each.

    tokens are a document's first ones where it is longer than it may be.
    """

    documents: Documents
    numbers: NDArray[np.int64]
    tokens: NDArray[np.int64]
    n_bytes: NDArray[np.int64]


def choose(documents: Documents, max_tokens: int, part: tuple[int, int] = (1, 1)) -> Chosen:
    """Documents spread over the whole set, until they have `max_tokens` predicted tokens or there are no more.

    Whole ones, the one that reaches `max_tokens` too: leaving it out would favour short documents. Only of one that
    is longer than `max_tokens` by itself the first `max_tokens` are taken, so there are never twice as many. The cut
    one is left out unless it is the only one. The order is by the number alone, number * GOLDEN modulo 1: a document's
    length does not count, a larger `max_tokens` only adds, and every model is scored on the same.

    part: (i, n), of every n documents that follow each other only the i-th, from 1: what is chosen on one part can be
    judged on another. Raises InvalidInput where that leaves none.
    """
    assert max_tokens > 0, max_tokens
    which, n_parts = part
    assert 1 <= which <= n_parts, part
    numbers = np.arange(max(1, len(documents) - documents.cut))[which - 1 :: n_parts]
    if not len(numbers):
        found = f"part {which} of {n_parts}"
        raise InvalidInput("evaluation", [Problem("part", found, f"the held-out text has {len(documents)} documents")])
    numbers = numbers[np.argsort(numbers * GOLDEN % 1, kind="stable")]
    tokens = np.minimum(documents.tokens[numbers], max_tokens)
    n_chosen = int(np.searchsorted(tokens.cumsum(), max_tokens)) + 1
    numbers = np.sort(numbers[:n_chosen])
    tokens, n_bytes = np.minimum(documents.tokens[numbers], max_tokens), documents.n_bytes[numbers]
    for place in np.flatnonzero(tokens < documents.tokens[numbers]):
        n_bytes[place] = _bytes_of_start(documents, int(numbers[place]), int(tokens[place]))
    return Chosen(documents, numbers, tokens, n_bytes)


def _bytes_of_start(documents: Documents, number: int, n_tokens: int) -> int:
    """UTF-8 bytes of a document's first tokens."""
    starts = range(1, n_tokens + 1, 2**20)
    parts = (documents.ids(number, start, min(start + 2**20, n_tokens + 1)) for start in starts)
    return sum(int(documents.token_bytes[ids].sum()) for ids in parts)
