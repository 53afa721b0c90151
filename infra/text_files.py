"""Documents from files at any place fsspec knows: plain text, JSON lines, Parquet.

Every way in which a file can disappoint is an InvalidInput that names the file and, within it, the line or
row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document
from infra.patience import Patience, open_for_reading
from infra.provenance import mask_text
from infra.storage import LOOK_PATIENCE_S, PATIENCE_S, open_filesystem

CHUNK_BYTES = 1 << 20
PARQUET_ROWS = 1024
BYTES_PER_BYTE = 32
"""Memory that a document takes while it is tokenised, for each of its own: text, ids and what the tokenizer keeps."""


@dataclass(frozen=True)
class TextFile:
    """One file: where it is, as errors name it. fs: of fsspec."""

    fs: Any
    path: str
    patience: Patience

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Raises InvalidInput if it cannot be read, now or later: a network may be lost in the middle of a file."""
        try:
            with open_for_reading(self.fs, self.path, self.patience) as file:
                yield file
        except InvalidInput:
            raise
        except Exception as error:  # each storage library has its own
            raise _unreadable(self.path, error) from error

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with self.open() as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def where(self, place: int | str) -> str:
        return f"{self.path}:{place}"

    def document(self, text: str, place: int | None = None) -> Document:
        name = self.path.rsplit("/", 1)[-1]
        return Document(text, name if place is None else f"{name}:{place}")


def find_files(path: Any, *, looking: bool = False) -> list[TextFile]:
    """The file at this path or URI, or all that match it as a glob. Raises InvalidInput if there are none.

    looking: somebody waits to hear whether they can be read, so a storage that is away is not waited for as long.
    """
    if not isinstance(path, str) or not path:
        raise InvalidInput("source", [Problem("path", path, "must be a path, a URI or a glob")])
    try:
        fs, place = open_filesystem(path)
        patience = Patience(0 if isinstance(fs, LocalFileSystem) else LOOK_PATIENCE_S if looking else PATIENCE_S)
        if patience.call(lambda: fs.isdir(place)):
            remedy = f"name the files: {path.rstrip('/')}/*"
            raise InvalidInput("source", [Problem("path", path, "is a folder, not a file", remedy)])
        found = patience.call(lambda: _matches(fs, place))
    except InvalidInput:
        raise
    except Exception as error:  # each storage library has its own errors for a wrong name or missing rights
        raise _unreadable(path, error) from error
    if not found:
        is_glob = any(character in path for character in "*?[")
        raise InvalidInput("source", [Problem("path", path, "matches no file" if is_glob else "no such file")])
    return [TextFile(fs, match, patience) for match in found]


def _matches(fs: Any, place: str) -> list[str]:
    return [place] if fs.exists(place) else sorted(match for match in fs.glob(place) if fs.isfile(match))


def read_text(file: TextFile, column: str) -> Iterator[Document]:
    """The whole file as one document."""
    with file.open() as stream:
        parts, room = [], _Room(file.path)
        while chunk := stream.read(CHUNK_BYTES):
            room.take(len(chunk))
            parts.append(chunk)
        yield file.document(_decoded(b"".join(parts), file.path))


def read_json_lines(file: TextFile, column: str) -> Iterator[Document]:
    """One document per line: the string under `column` of the object there. Empty lines are skipped."""
    with file.open() as stream:
        for number, line in enumerate(_lines(file, stream), start=1):
            text = _decoded(line, file.where(number))
            if text.strip():
                yield file.document(_column_of(text, column, file.where(number)), number)


def _lines(file: TextFile, stream: IO[bytes]) -> Iterator[bytes]:
    """Lines without their ends, none of them longer than there is room for."""
    parts, number, room = [], 1, _Room(file.where(1))
    while chunk := stream.read(CHUNK_BYTES):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield b"".join([*parts, piece])
            parts, number = [], number + 1
            room = _Room(file.where(number))
        room.take(len(rest))
        parts.append(rest)
    if any(parts):
        yield b"".join(parts)


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


def _column_of(line: str, column: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _invalid("path", where, f"must be one JSON object per line: {error}") from error
    if not isinstance(value, dict):
        raise _invalid("path", where, f"must be a JSON object, not {type(value).__name__}")
    if column not in value:
        raise _no_column(column, list(value), where)
    return _checked_text(value[column], column, where)


def read_parquet(file: TextFile, column: str) -> Iterator[Document]:
    """One document per row: the string in `column`."""
    number = 0
    with file.open() as stream:
        try:
            table = pq.ParquetFile(stream)
            if column not in table.schema_arrow.names:
                raise _no_column(column, table.schema_arrow.names, file.path)
            for batch in table.iter_batches(PARQUET_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield file.document(_checked_text(value, column, file.where(f"row {number}")), number)
                    number += 1
        except MemoryError as error:  # Arrow's too
            raise _too_long(file.where(f"rows from {number}"), str(error) or "reading it failed") from error
        except (pa.ArrowException, OSError) as error:
            raise _invalid("path", file.path, f"must be a Parquet file: {error}") from error


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid("path", where, f"must be UTF-8: {error.reason} at byte {error.start}") from error


def _checked_text(value: Any, column: str, where: str) -> str:
    """The value if it is text. JSON can spell half a surrogate pair, which no encoding of Unicode allows."""
    if not isinstance(value, str):
        raise _invalid("path", where, f"{column!r} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid("path", where, f"{column!r} must be valid Unicode: {error.reason}") from error
    return value


def _invalid(key: str, value: Any, expected: str) -> InvalidInput:
    return InvalidInput("source", [Problem(key, value, expected)])


def _no_column(column: str, columns: list[str], where: str) -> InvalidInput:
    return _invalid("column", column, f"{where} has no such column; it has {', '.join(columns) or 'none'}")


def _unreadable(path: str, error: Exception) -> InvalidInput:
    return _invalid("path", path, f"cannot be read: {mask_text(str(error)) or type(error).__name__}")
