"""Texts to packed rows in memory, for a quick look at a model: what `data.<domain>` makes, without files."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bam_core.data.packing import pack
from bam_core.data.tokenize import Tokenizer
from bam_core.errors import InvalidInput, Problem


class TextRows:
    """Rows as `bam_core.evaluate.perplexity.score` reads them. tokens_BT: all of them, predicted tokens and one."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer, seq_len: int) -> None:
        """Raises InvalidInput where the texts fill not one row."""
        ids = tokenizer.encode_batch(list(texts))
        blocks = list(pack(ids, seq_len, tokenizer.eos_id, tokenizer.token_bytes))
        if not blocks:
            n_tokens = sum(len(document) + 1 for document in ids)
            expected = f"must fill at least one row of {seq_len} tokens"
            raise InvalidInput("texts", [Problem("texts", f"{n_tokens} tokens", expected, "give more text")])
        self.tokens_BT: NDArray[np.int64] = np.concatenate([block.tokens for block in blocks]).astype(np.int64)
        self.n_bytes: NDArray[np.int64] = np.concatenate([block.n_bytes for block in blocks]).astype(np.int64)
        self.row_len = seq_len + 1

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def __getitem__(self, indices: ArrayLike, /) -> NDArray[np.int64]:
        return self.tokens_BT[np.asarray(indices, dtype=np.int64)]
