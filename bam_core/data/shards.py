"""Rows in Arrow IPC files: written once, then memory-mapped, so that only the pages in use take memory.

A folder holds `00000.arrow`, `00001.arrow`, ...; each is one record batch of `tokens` (fixed_size_list of
uint16 or uint32) and `n_bytes` (int32). Equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from bam_core.data.packing import Rows
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem

ROWS_PER_SHARD = 16_384


def write_shards(folder: Path, rows: Iterable[Rows], rows_per_shard: int = ROWS_PER_SHARD) -> int:
    """Write the rows as shards into `folder`, which is made, and return how many there are.

    Raises InvalidInput when there is not one row.
    """
    assert rows_per_shard >= 1, rows_per_shard
    folder.mkdir(parents=True, exist_ok=True)
    n_rows = 0
    for index, shard in enumerate(_shards(rows, rows_per_shard)):
        _write_shard(folder / f"{index:05d}.arrow", shard)
        n_rows += len(shard)
    if not n_rows:
        raise InvalidInput(folder.name, [Problem("rows", 0, "the text must fill at least one row", "give it more")])
    return n_rows


def _shards(rows: Iterable[Rows], rows_per_shard: int) -> Iterator[Rows]:
    """The same rows in blocks of `rows_per_shard`; the last one is shorter."""
    waiting: list[Rows] = []
    n_waiting = 0
    for block in rows:
        while n_waiting + len(block) >= rows_per_shard:
            needed = rows_per_shard - n_waiting
            yield _join([*waiting, block[:needed]])
            waiting, n_waiting, block = [], 0, block[needed:]
        waiting.append(block)
        n_waiting += len(block)
    if n_waiting:
        yield _join(waiting)


def _join(blocks: Sequence[Rows]) -> Rows:
    return Rows(np.concatenate([b.tokens for b in blocks]), np.concatenate([b.n_bytes for b in blocks]))


def _write_shard(path: Path, rows: Rows) -> None:
    values = pa.array(rows.tokens.reshape(-1))
    tokens = pa.FixedSizeListArray.from_arrays(values, rows.tokens.shape[1])
    batch = pa.record_batch({"tokens": tokens, "n_bytes": pa.array(rows.n_bytes, pa.int32())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


class ShardedRows:
    """The rows of a folder of shards, memory-mapped. row_len: tokens in a row, seq_len + 1."""

    def __init__(self, folder: Path) -> None:
        """Open every shard. Raises ArtifactDamaged, naming a file that is missing, truncated or no shard."""
        paths = sorted(folder.glob("*.arrow"))
        if not paths:
            raise ArtifactDamaged(f"{folder}: holds no shards")
        for index, path in enumerate(paths):
            if path.name != f"{index:05d}.arrow":
                raise ArtifactDamaged(f"{folder / f'{index:05d}.arrow'}: is missing")
        shards = [_open_shard(path) for path in paths]
        self._tokens = [tokens for tokens, _ in shards]
        self._n_bytes = [n_bytes for _, n_bytes in shards]
        self.row_len = self._tokens[0].shape[1]
        for path, tokens in zip(paths, self._tokens, strict=True):
            if tokens.shape[1] != self.row_len:
                raise ArtifactDamaged(
                    f"{path}: rows of {tokens.shape[1]} tokens, but {self.row_len} in {paths[0].name}"
                )
        self._ends = np.cumsum([len(tokens) for tokens in self._tokens])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: ArrayLike) -> NDArray[np.int64]:
        """tokens [n, row_len] of the rows with these indices, in this order."""
        wanted = np.asarray(indices, dtype=np.int64)
        assert wanted.ndim == 1, f"indices of shape {wanted.shape}, expected one dimension"
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        tokens = np.empty((len(wanted), self.row_len), dtype=np.int64)
        shards = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            stored = self._tokens[shard]
            tokens[here] = stored[wanted[here] - (self._ends[shard] - len(stored))]
        return tokens

    @cached_property
    def n_bytes(self) -> NDArray[np.int64]:
        """n_bytes [len]: UTF-8 bytes of each row's predicted tokens."""
        return np.concatenate(self._n_bytes).astype(np.int64)


def _open_shard(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """tokens [n, row_len] and n_bytes [n] as views of the mapped file."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            assert reader.num_record_batches == 1, f"{reader.num_record_batches} record batches"
            batch = reader.get_batch(0)
        tokens, n_bytes = batch.column("tokens"), batch.column("n_bytes")
        flat = tokens.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(len(batch), tokens.type.list_size), n_bytes.to_numpy(zero_copy_only=True)
    except (pa.ArrowException, OSError, KeyError, AttributeError, AssertionError) as error:
        raise ArtifactDamaged(f"{path}: not a whole shard of rows ({error})") from error
