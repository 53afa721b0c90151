"""Rows from files: a text as one, JSON lines, Parquet. What a row has to be is for `bam_core.data.picking` to say.

Every way in which a file can disappoint is an InvalidInput that names the file and, within it, the line or row. A file
streams by: of one that is packed too, no more is in memory than one document, or of Parquet one group of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bam_core.data.picking import Picker, Placed
from bam_core.errors import InvalidInput, Problem
from infra.text_files import CHUNK_BYTES, Damaged, Stream, TextFile

PARQUET_ROWS = 1024
BYTES_PER_BYTE = 32
"""Memory that a document takes while it is tokenised, for each of its own: text, ids and what the tokenizer keeps."""


def read_text(file: TextFile, picker: Picker) -> Iterator[Placed]:
    """The whole file as one row."""
    with file.open_unpacked() as stream:
        parts, room = list[bytes](), _Room(file.path)
        try:
            while chunk := stream.read(CHUNK_BYTES):
                room.take(len(chunk))
                parts.append(chunk)
        except Damaged as error:
            raise _damaged(file.path, error) from error
        yield Placed({"text": _decoded(b"".join(parts), file.path)}, file.path, file.name)


def read_json_lines(file: TextFile, picker: Picker) -> Iterator[Placed]:
    """One row per line: the object there. Empty lines are skipped."""
    with file.open_unpacked() as stream:
        for number, line in enumerate(_lines(file, stream), start=1):
            where = file.where(number)
            text = _decoded(line, where)
            if text.strip():
                yield Placed(_object(text, where), where, f"{file.name}:{number}")


def _object(line: str, where: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _invalid(where, f"must be one JSON object per line: {error}") from error
    if not isinstance(value, dict):
        raise _invalid(where, f"must be a JSON object, not {type(value).__name__}")
    return value


def _lines(file: TextFile, stream: Stream) -> Iterator[bytes]:
    """Lines without their ends, none of them longer than there is room for."""
    parts, number, room = list[bytes](), 1, _Room(file.where(1))
    try:
        while chunk := stream.read(CHUNK_BYTES):
            *ended, rest = chunk.split(b"\n")
            for piece in ended:
                yield b"".join([*parts, piece])
                parts, number = [], number + 1
                room = _Room(file.where(number))
            room.take(len(rest))
            parts.append(rest)
    except Damaged as error:
        raise _damaged(file.where(number), error) from error
    if any(parts):
        yield b"".join(parts)


def _damaged(where: str, error: Damaged) -> InvalidInput:
    expected = f"is cut or damaged, here or soon after: {error}"
    return InvalidInput("source", [Problem("path", where, expected, "copy it again")])


@dataclass
class _Room:
    """How much of one document has been read. where: the document, for an error."""

    where: str
    n_bytes: int = 0

    def take(self, n_bytes: int) -> None:
        """Raises InvalidInput before there is more than memory has room for."""
        self.n_bytes += n_bytes
        if self.n_bytes > CHUNK_BYTES and self.n_bytes * BYTES_PER_BYTE > (free := psutil.virtual_memory().available):
            raise _too_long(self.where, f"has {self.n_bytes / 1e9:.1f} GB or more, and {free / 1e9:.1f} GB are free")


def _too_long(where: str, facts: str) -> InvalidInput:
    expected = f"is one document that is longer than memory has room for: {facts}"
    return InvalidInput("source", [Problem("path", where, expected, "split it into several documents")])


def read_parquet(file: TextFile, picker: Picker) -> Iterator[Placed]:
    """One row per row, of the columns that are asked for."""
    number = 0
    with file.open_data() as stream:
        try:
            table = pq.ParquetFile(stream)
            columns = picker.columns(table.schema_arrow.names, file.path)
            for batch in table.iter_batches(PARQUET_ROWS, columns=columns):
                for values in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    row = dict(zip(columns, values, strict=True))
                    yield Placed(row, file.where(f"row {number}"), f"{file.name}:{number}")
                    number += 1
        except MemoryError as error:  # Arrow's too
            raise _too_long(file.where(f"rows from {number}"), str(error) or "reading it failed") from error
        except (pa.ArrowException, OSError) as error:
            raise _invalid(file.path, f"must be a Parquet file: {error}") from error


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(where, f"must be UTF-8: {error.reason} at byte {error.start}") from error


def _invalid(where: str, expected: str) -> InvalidInput:
    return InvalidInput("source", [Problem("path", where, expected)])
