"""Text to token ids, each distinct piece once: text repeats its words, and the tokenizer's work on a piece is the same
wherever it stands.

Text is cut where GPT-2's pattern, which byte-level tokenizers cut by, always cuts, whatever comes before and after:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

Of its alternatives none holds a white space behind something else, and none a mark behind a letter but for the letter
before an apostrophe's; nothing looks back. So a cut between a character that is no white space and one that is, or
between an ASCII letter and an ASCII mark other than the apostrophe, changes no token: the ids of a text are those of
its pieces, one after another. Python and the tokenizer may differ about a few control characters (`UNSURE`); a text
with one of them is not cut. A tokenizer with another pattern or a normaliser is asked for whole texts.
Invariant: the ids are those of `Tokenizer.encode_batch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bam_core.data.packing import token_dtype
from bam_core.data.tokenize import Tokenizer

SPACE = "\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space in every version of Unicode."""
UNSURE = re.compile("[\x1c-\x1f\x85\u180e\u200b]")
MARK = r"!-&(-/:-@\[-`{-~"
"""ASCII that is neither letter, digit, white space nor apostrophe."""
PIECE = re.compile(f"[{SPACE}]*+[^{SPACE}A-Za-z]*+[A-Za-z]++(?=[{MARK}])|[{SPACE}]*+[^{SPACE}]++|[{SPACE}]++")
STARTS_WITH_SPACE, ENDS_WITH_SPACE = re.compile(f"[{SPACE}]"), re.compile(f"[{SPACE}]\\Z")

BATCH_CHARS = 1 << 20
"""Text that is cut at a time: its pieces take some 15 bytes for a character."""
PIECES_PER_CALL = 1024
"""New pieces that a thread of the tokenizer gets together."""
KEPT_BYTES = 1 << 27
ENTRY_BYTES = 150
"""Of what is kept: at most so much, where each piece takes so much beside its characters."""


def encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[NDArray[Any]]:
    """The ids of each text [n], in the type that is stored. Memory: of BATCH_CHARS, or of the longest text."""
    pieces = Pieces(tokenizer) if tokenizer.cuts_like_gpt2 else None
    for batch in _batches(texts):
        yield from pieces.encode(batch) if pieces else _whole(batch, tokenizer)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    n_chars = 0
    for text in texts:
        batch.append(text)
        n_chars += len(text)
        if n_chars >= BATCH_CHARS:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


def _whole(texts: Sequence[str], tokenizer: Tokenizer) -> list[NDArray[Any]]:
    dtype = token_dtype(tokenizer.vocab_size)
    return [np.asarray(ids, dtype) for ids in tokenizer.encode_batch(texts)]


class Pieces:
    """Knows the ids of the pieces that it met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.cuts_like_gpt2, "its text cannot be cut here"
        self._tokenizer = tokenizer
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._known: dict[str, bytes] = {}
        """piece -> its ids as they are stored"""
        self._n_bytes = 0

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        sure = [not UNSURE.search(text) for text in texts]
        cut = [PIECE.findall(text) if cuts else [] for text, cuts in zip(texts, sure, strict=True)]
        if self._n_bytes > KEPT_BYTES:
            self._known.clear()
            self._n_bytes = 0
        self._learn([piece for piece in set().union(*cut) if piece not in self._known])
        ids_of = self._known.__getitem__
        found = [np.frombuffer(b"".join(map(ids_of, pieces)), self._dtype) for pieces in cut]
        others = iter(_whole([text for text, cuts in zip(texts, sure, strict=True) if not cuts], self._tokenizer))
        return [ids if cuts else next(others) for ids, cuts in zip(found, sure, strict=True)]

    def _learn(self, pieces: Sequence[str]) -> None:
        """Many pieces in one call, which are cut apart again by their bytes: calls cost more than most pieces."""
        last = [piece for piece in pieces if ENDS_WITH_SPACE.search(piece)]  # of a text; nothing may follow them
        for piece, ids in zip(last, _whole(last, self._tokenizer), strict=True):
            self._known[piece] = ids.tobytes()
        inner = [piece for piece in pieces if piece not in self._known]
        parts = [inner[start : start + PIECES_PER_CALL] for start in range(0, len(inner), PIECES_PER_CALL)]
        # A piece that starts with no space comes behind a line break, whose token is one.
        breaks = [[not STARTS_WITH_SPACE.match(piece) for piece in part] for part in parts]
        joined = [
            "".join(f"\n{piece}" if breaks_first else piece for piece, breaks_first in zip(part, broken, strict=True))
            for part, broken in zip(parts, breaks, strict=True)
        ]
        for part, broken, ids in zip(parts, breaks, _whole(joined, self._tokenizer), strict=True):
            ends = np.cumsum([len(p.encode()) + b for p, b in zip(part, broken, strict=True)])
            behind = np.searchsorted(np.cumsum(self._tokenizer.token_bytes[ids]), ends) + 1
            starts = np.concatenate([[0], behind[:-1]]) + np.asarray(broken)
            for piece, start, end in zip(part, starts.tolist(), behind.tolist(), strict=True):
                self._known[piece] = ids[start:end].tobytes()
        self._n_bytes += sum(map(len, pieces)) + ENTRY_BYTES * len(pieces)
