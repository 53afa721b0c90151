"""Documents to rows of equal length, without padding and without losing a token.

The stream is `eos doc eos doc eos ...`; row i is `stream[i*S : i*S + S + 1]` for S = seq_len. Neighbours
share one token: the last of a row is only predicted there, and only conditioned on in the next, so each token
after the first `eos` is predicted exactly once. That first `eos` makes the first document's first token a
prediction like any other. What does not fill a row at the end of the stream is dropped, in training and in
validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROWS_PER_BLOCK = 1024
"""How many rows are made at a time: bounds the memory, does not change the rows."""


@dataclass(frozen=True)
class Rows:
    """tokens [n, seq_len + 1], uint16 or uint32. n_bytes [n]: UTF-8 bytes of each row's predicted tokens."""

    tokens: NDArray[Any]
    n_bytes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.tokens[part], self.n_bytes[part])


def pack(documents: Iterable[ArrayLike], seq_len: int, eos_id: int, token_bytes: NDArray[np.int32]) -> Iterator[Rows]:
    """Pack tokenised documents into blocks of rows. token_bytes [vocab_size]: UTF-8 bytes of each id."""
    dtype = token_dtype(len(token_bytes))
    end = np.array([eos_id], dtype)
    stream = [end]
    n_tokens = 1
    for document in documents:
        ids = np.asarray(document, dtype)
        stream += [ids, end]
        n_tokens += len(ids) + 1
        if n_tokens > seq_len * ROWS_PER_BLOCK:
            rows, rest = _rows(np.concatenate(stream), seq_len, token_bytes)
            stream, n_tokens = [rest], len(rest)
            yield rows
    rows, _ = _rows(np.concatenate(stream), seq_len, token_bytes)
    if len(rows):
        yield rows


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The narrowest of the two stored types that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _rows(stream: NDArray[Any], seq_len: int, token_bytes: NDArray[np.int32]) -> tuple[Rows, NDArray[Any]]:
    """The whole rows of the stream, and what goes before the next document (at least one token)."""
    n_rows = (len(stream) - 1) // seq_len
    starts = np.arange(n_rows)[:, None] * seq_len
    tokens = stream[starts + np.arange(seq_len + 1)]
    n_bytes = token_bytes[tokens[:, 1:]].sum(axis=1, dtype=np.int32)
    return Rows(tokens, n_bytes), stream[n_rows * seq_len :]
