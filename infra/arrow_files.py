"""A remote folder as Ray and Arrow want it: fsspec's file systems with the storage's patience.

Ray Train's own retries know the words of Arrow's S3 client only, so without this one answer of 503 inside an upload
would end a training. What is written is kept here until it is closed, and then sent whole: a retry has all of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from pyarrow import PythonFile
from pyarrow.fs import FileInfo, FileSelector, FSSpecHandler

from infra.patience import Patience, open_for_reading

T = TypeVar("T")


class PatientHandler(FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """fs: of fsspec. Picklable: Ray sends it to its controllers and workers."""

    def __init__(self, fs: Any, patience: Patience) -> None:
        super().__init__(fs)
        self.patience = patience

    def __reduce__(self) -> tuple[type[PatientHandler], tuple[Any, Patience]]:
        return type(self), (self.fs, self.patience)

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        found: list[FileInfo] = self._do(lambda: FSSpecHandler.get_file_info(self, paths))
        return found

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        found: list[FileInfo] = self._do(lambda: FSSpecHandler.get_file_info_selector(self, selector))
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        self._do(lambda: FSSpecHandler.create_dir(self, path, recursive))

    def delete_dir(self, path: str) -> None:
        self._do(lambda: _there_or_not(lambda: FSSpecHandler.delete_dir(self, path)))

    def delete_file(self, path: str) -> None:
        self._do(lambda: _there_or_not(lambda: FSSpecHandler.delete_file(self, path)))

    def open_input_stream(self, path: str) -> PythonFile:
        return PythonFile(open_for_reading(self.fs, path, self.patience), mode="r")

    def open_input_file(self, path: str) -> PythonFile:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        return PythonFile(_Upload(lambda file: self._do(lambda: self.fs.put_file(str(file), path))), mode="w")

    def _do(self, operation: Callable[[], T]) -> T:
        return self.patience.call(operation)


class _Upload:
    """A file that is sent when it is closed."""

    def __init__(self, send: Callable[[Path], None]) -> None:
        self._send = send
        self._file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="bam-upload-")  # noqa: SIM115 - `close` closes it
        self.closed = False

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with self._file:
            self._file.flush()
            self._send(Path(self._file.name))


def _there_or_not(remove: Callable[[], None]) -> None:
    """Removing is done when it is gone: a first try whose answer was lost may have done it."""
    try:
        remove()
    except FileNotFoundError:
        return
