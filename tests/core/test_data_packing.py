"""Packing: every token is predicted exactly once, and the bytes add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.data import packing
from bam_core.data.packing import Rows, pack, token_dtype

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""

EOS = 0
TOKEN_BYTES = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32)

documents = st.lists(st.lists(st.integers(1, 9), max_size=30), max_size=20)


def packed(documents: list[list[int]], seq_len: int, rows_per_block: int) -> list[Rows]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "ROWS_PER_BLOCK", rows_per_block)
        return list(pack(documents, seq_len, EOS, TOKEN_BYTES))


@CALM
@given(documents, st.integers(1, 12), st.integers(1, 4))
def test_every_token_is_predicted_exactly_once_and_bytes_add_up(documents, seq_len, rows_per_block):
    stream = [EOS]
    for document in documents:
        stream += [*document, EOS]
    n_rows = (len(stream) - 1) // seq_len

    blocks = packed(documents, seq_len, rows_per_block)

    rows = [row for block in blocks for row in block.tokens.tolist()]
    assert len(rows) == n_rows
    assert all(len(row) == seq_len + 1 for row in rows)
    predicted = [token for row in rows for token in row[1:]]
    assert predicted == stream[1 : 1 + n_rows * seq_len]
    inputs = [token for row in rows for token in row[:-1]]
    assert inputs == stream[: n_rows * seq_len], "each token is predicted from the one before it"
    n_bytes = [int(size) for block in blocks for size in block.n_bytes]
    assert n_bytes == [sum(row[1:]) for row in rows], "token t has t bytes here"
    assert sum(n_bytes) == sum(map(sum, documents)) - sum(stream[1 + n_rows * seq_len :])


def test_an_example_by_hand():
    (block,) = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9]], 4, EOS, TOKEN_BYTES)
    assert block.tokens.tolist() == [[0, 1, 2, 3, 0], [0, 4, 5, 0, 6], [6, 7, 8, 9, 0]]
    assert block.n_bytes.tolist() == [6, 15, 24]
    assert block.tokens.dtype == np.uint16


def test_too_little_text_for_a_row_gives_no_block():
    assert list(pack([[1, 2]], 8, EOS, TOKEN_BYTES)) == []


def test_ids_beyond_16_bits_are_kept_whole():
    assert token_dtype(2**16) == np.uint16
    token_bytes = np.ones(2**16 + 1, dtype=np.int32)
    (block,) = pack([[2**16, 1]], 2, EOS, token_bytes)
    assert block.tokens.tolist() == [[0, 2**16, 1]]
