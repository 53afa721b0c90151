"""Files at any place fsspec knows: which there are, and the bytes in them, unpacked where they are packed.

Whether a file is packed (gzip, zstd) is told by its first bytes and not by its name, as moving a file changes nothing:
no text in UTF-8 begins with these. Every way in which a file can disappoint is an InvalidInput that names the file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from bam_core.documents import LFS_POINTER
from bam_core.errors import InvalidInput, Problem
from infra.patience import Patience, open_for_reading
from infra.provenance import mask_text
from infra.storage import LOOK_PATIENCE_S, PATIENCE_S, missing_library, open_filesystem

CHUNK_BYTES = 1 << 20
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes -> the codec's name in Arrow."""
UNPACKED_BYTES = 1 << 16
"""Unpacked at a time: what comes before the place where a file is cut is lost by so much at most."""


class Damaged(Exception):
    """A packed file cannot be unpacked further."""


class Stream(Protocol):
    """Bytes from the first to the last; there is no way back."""

    def read(self, size: int, /) -> bytes:
        """At most `size` of them, b"" at the end."""


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

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @contextmanager
    def open_data(self) -> Iterator[IO[bytes]]:
        """The same; raises InvalidInput for a pointer of git-LFS, which stands where the data should be."""
        with self.open() as file:
            self._require_data(file.read(len(LFS_POINTER)))
            file.seek(0)
            yield file

    @contextmanager
    def open_unpacked(self) -> Iterator[Stream]:
        """As `open_data`, unpacked where it is packed. Reading raises Damaged where that fails."""
        with self.open() as file:
            again = _Again(file, file.read(len(LFS_POINTER)))
            self._require_data(again.head)
            codec = next((codec for first, codec in PACKED.items() if again.head.startswith(first)), None)
            yield again if codec is None else _Unpacked(again, codec)

    def _require_data(self, head: bytes) -> None:
        if head.startswith(LFS_POINTER):
            expected = "is a pointer of git-LFS: the data itself has not been fetched"
            raise InvalidInput("source", [Problem("path", self.path, expected, "git lfs pull")])


class _Again(io.RawIOBase):
    """A file from its start, of which the head has been read already: not every storage can go back."""

    def __init__(self, file: IO[bytes], head: bytes) -> None:
        self.head, self._left, self._file = head, head, file
        self.failed: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = CHUNK_BYTES) -> bytes:
        """Some of it, b"" at the end."""
        size = CHUNK_BYTES if size is None or size < 0 else size
        if self._left:
            taken, self._left = self._left[:size], self._left[size:]
            return taken
        try:
            return self._file.read(size)
        except Exception as error:
            self.failed = error
            raise


class _Unpacked(io.RawIOBase):
    """What is packed in a file, streamed: `read` gives a part of it."""

    def __init__(self, packed: _Again, codec: str) -> None:
        self._packed, self._codec = packed, codec
        self._stream = pa.CompressedInputStream(pa.PythonFile(packed, "r"), codec)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = UNPACKED_BYTES) -> bytes:
        try:
            data: bytes = self._stream.read(UNPACKED_BYTES if size is None or size < 0 else min(size, UNPACKED_BYTES))
        except (OSError, pa.ArrowException) as error:
            if self._packed.failed is not None:  # the storage's error, not that of what is in the file
                raise
            raise Damaged(f"{self._codec}: {str(error) or type(error).__name__}") from error
        return data


def find_files(path: Any, *, looking: bool = False) -> list[TextFile]:
    """The file at this path or URI, or all that match it as a glob; of a list of such, each file once.

    looking: somebody waits to hear whether they can be read, so a storage that is away is not waited for as long.
    Raises InvalidInput where there are none, with every one of a list that cannot be read.
    """
    if not isinstance(path, list | tuple) or not path:
        return _find(path, looking=looking)
    found, problems = dict[tuple[str, str], TextFile](), list[Problem]()
    for one in path:
        try:
            found |= {(str(file.fs.protocol), file.path): file for file in _find(one, looking=looking)}
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput("source", problems)
    return list(found.values())


def _find(path: Any, *, looking: bool) -> list[TextFile]:
    if not isinstance(path, str) or not path:
        raise InvalidInput("source", [Problem("path", path, "must be a path, a URI or a glob, or a list of them")])
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


def _unreadable(path: str, error: Exception) -> InvalidInput:
    expected = f"cannot be read: {mask_text(str(error)) or type(error).__name__}"
    remedy = missing_library(path) if isinstance(error, ImportError) else ""
    return InvalidInput("source", [Problem("path", path, expected, remedy)])
