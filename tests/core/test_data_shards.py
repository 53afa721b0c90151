"""Shards: rows come back as written, and a damaged file is named rather than read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.data.packing import Rows
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.errors import ArtifactDamaged, InvalidInput

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""


def some_rows(n_rows: int, row_len: int = 5, dtype: type = np.uint16) -> Rows:
    numbers = np.random.default_rng(n_rows).integers(0, 60_000, (n_rows, row_len))
    return Rows(numbers.astype(dtype), np.arange(n_rows, dtype=np.int32) * 3)


@CALM
@given(
    blocks=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(sum),
    rows_per_shard=st.integers(1, 9),
    dtype=st.sampled_from([np.uint16, np.uint32]),
    data=st.data(),
)
def test_rows_come_back_in_any_order_whatever_the_blocks_and_shards(
    tmp_path_factory, blocks, rows_per_shard, dtype, data
):
    folder = tmp_path_factory.mktemp("shards")
    rows = some_rows(sum(blocks), dtype=dtype)
    ends = np.cumsum(blocks)
    parts = [rows[end - size : end] for end, size in zip(ends, blocks, strict=True)]

    assert write_shards(folder, parts, rows_per_shard) == len(rows)

    stored = ShardedRows(folder)
    assert len(stored) == len(rows)
    assert stored.row_len == 5
    assert len(list(folder.iterdir())) == -(-len(rows) // rows_per_shard)
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    assert np.array_equal(stored[indices], rows.tokens[np.array(indices, dtype=int)])
    assert np.array_equal(stored.n_bytes, rows.n_bytes)


def test_ids_that_need_32_bits_survive(tmp_path):
    rows = Rows(np.array([[2**31, 70_000]], dtype=np.uint32), np.array([9], dtype=np.int32))
    write_shards(tmp_path, [rows])
    assert ShardedRows(tmp_path)[[0]].tolist() == [[2**31, 70_000]]


def test_equal_rows_give_equal_bytes(tmp_path):
    for name, blocks in (("one", [some_rows(10)]), ("two", [some_rows(10)[:3], some_rows(10)[3:]])):
        write_shards(tmp_path / name, blocks, rows_per_shard=4)
    for shard in ("00000.arrow", "00001.arrow", "00002.arrow"):
        assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()


def test_the_files_are_arrow_that_others_can_read(tmp_path):
    write_shards(tmp_path, [some_rows(3)])
    with pa.ipc.open_file(tmp_path / "00000.arrow") as reader:
        table = reader.read_all()
    assert table.schema.field("tokens").type == pa.list_(pa.uint16(), 5)
    assert table.schema.field("n_bytes").type == pa.int32()
    assert table["tokens"].to_pylist() == some_rows(3).tokens.tolist()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -100, -8, -1])
def test_a_truncated_shard_is_named(tmp_path, kept):
    write_shards(tmp_path, [some_rows(10)], rows_per_shard=5)
    damaged = tmp_path / "00001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    with pytest.raises(ArtifactDamaged, match=r"00001\.arrow"):
        ShardedRows(tmp_path)


@pytest.mark.parametrize("missing", ["00000.arrow", "00001.arrow"])
def test_a_missing_shard_is_named(tmp_path, missing):
    write_shards(tmp_path, [some_rows(9)], rows_per_shard=3)
    (tmp_path / missing).unlink()
    with pytest.raises(ArtifactDamaged, match=rf"{missing}.*is missing"):
        ShardedRows(tmp_path)


@pytest.mark.parametrize("blocks", [[], [some_rows(0)]])
def test_text_too_short_for_a_row_is_refused(tmp_path, blocks):
    with pytest.raises(InvalidInput, match="at least one row"):
        write_shards(tmp_path / "train", blocks)


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(ArtifactDamaged, match="holds no shards"):
        ShardedRows(tmp_path / "nowhere")


def test_a_shard_of_something_else_is_named(tmp_path):
    batch = pa.record_batch({"tokens": pa.array([1, 2]), "n_bytes": pa.array([1, 2])})
    with (
        pa.OSFile(str(tmp_path / "00000.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    with pytest.raises(ArtifactDamaged, match=r"00000\.arrow"):
        ShardedRows(tmp_path)


def test_shards_of_different_row_lengths_are_named(tmp_path):
    write_shards(tmp_path, [some_rows(2)])
    write_shards(tmp_path / "other", [some_rows(2, row_len=4)])
    (tmp_path / "other" / "00000.arrow").rename(tmp_path / "00001.arrow")
    with pytest.raises(ArtifactDamaged, match=r"00001\.arrow: rows of 4 tokens, but 5"):
        ShardedRows(tmp_path)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_row_that_does_not_exist_is_an_error(tmp_path, index):
    write_shards(tmp_path, [some_rows(3)])
    with pytest.raises(IndexError):
        ShardedRows(tmp_path)[[0, index]]
