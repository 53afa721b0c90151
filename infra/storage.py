"""Files under one URI, local or remote: the one place that opens file systems, and all that knows the difference.

Every path argument is relative to the root, with `/`. A missing file is an answer (None, empty); everything
else that goes wrong is a StoreError that says where, what and what to do. Nothing is created before the
first write. A remote storage that is away is waited for (`infra/patience.py`) before it is an error; so every
remote call may be made twice, and each is written so that this does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bam_core.errors import StoreError, install_extra
from infra.patience import Patience, open_for_reading
from infra.provenance import mask_text

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
S3 = ("s3://", "s3a://")
N_TOGETHER = 16
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "created")
"""What file systems call the time of a file's last change."""
PATIENCE_S = 45.0
"""How long a remote storage may be away before that is an error."""
LOOK_PATIENCE_S = 10.0
"""The same for somebody who waits for an answer: what was never reached is more likely misspelt than away."""


@dataclass(frozen=True)
class FileInfo:
    """changed: seconds since the epoch, by the storage's own clock; None if it does not say."""

    size: int
    changed: float | None


class Storage:
    """uri: absolute path of a local folder, or `scheme://...`. shown: the same without secrets, for people."""

    def __init__(self, uri: str, patience_s: float = PATIENCE_S) -> None:
        self.shown = mask_text(uri)
        if not uri:
            raise StoreError("the store's URI is empty; give a folder or a URI such as s3://bucket/bam")
        try:
            self.fs, root = open_filesystem(uri)
        except ImportError as error:
            raise StoreError(f"{self.shown}: {error}; {missing_library(uri)}") from error
        except Exception as error:
            raise StoreError(f"{self.shown}: cannot be opened: {mask_text(str(error))}") from _cause(error)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.root = root.rstrip("/")
        self.uri = (self.root or "/") if self.is_local else uri.rstrip("/")
        self.patience = Patience(0 if self.is_local else patience_s)

    def __reduce__(self) -> tuple[type[Storage], tuple[str, float]]:
        return Storage, (self.uri, self.patience.seconds)

    def local(self, path: str) -> Path:
        assert self.is_local, f"{self.shown} is not a local folder"
        return Path(self.uri, path)

    def read(self, path: str) -> bytes | None:
        found: bytes | None = self._do("read", path, lambda: _or_none(self.fs.cat_file, self._full(path)))
        return found

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """As `read`. Remote files are asked for together: each is mostly waiting."""
        if self.is_local:
            return [self.read(path) for path in paths]
        with ThreadPoolExecutor(N_TOGETHER) as pool:
            return list(pool.map(self.read, paths))

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self.explained("read", path), open_for_reading(self.fs, self._full(path), self.patience) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def size(self, path: str) -> int | None:
        """Of a file, in bytes, without reading it; None if it is not there."""
        found: int | None = self._do("read", path, lambda: _or_none(self.fs.size, self._full(path)))
        return found

    def sizes(self, path: str) -> dict[str, int]:
        """Size in bytes of every file below, by path relative to `path`."""
        return {name: file.size for name, file in self.files(path).items()}

    def files(self, path: str) -> dict[str, FileInfo]:
        """Every file below, by path relative to `path`; a link is listed as it is, not what it points to."""
        top = self._full(path)
        found = self._do("list", path, lambda: self.fs.find(top, detail=True))
        start = len(top) + 1
        # Some clients leave zero-byte "folder/" objects behind.
        return {
            name[start:]: FileInfo(info["size"], _changed(info))
            for name, info in found.items()
            if name[start:].strip("/")
        }

    def folders(self, path: str) -> list[str]:
        def list_() -> list[Any]:
            try:
                found: list[Any] = self.fs.ls(self._full(path), detail=True)
            except FileNotFoundError:
                return []
            return found

        entries = self._do("list", path, list_)
        return sorted(PurePosixPath(e["name"]).name for e in entries if e["type"] == "directory")

    def newest_first(self, path: str, name: str) -> list[str]:
        """Every `path/*/name`, the last written first (by the storage's own times), without reading any."""
        if self.is_local:
            with self.explained("list", path):
                times = {file.parent.name: file.stat().st_mtime for file in self.local(path).glob(f"*/{name}")}
        else:
            found = self._do("list", path, lambda: self.fs.find(self._full(path), detail=True))
            times = {}
            for full, info in found.items():
                parts = full[len(self._full(path)) + 1 :].split("/")
                if parts[1:] == [name]:
                    times[parts[0]] = _changed(info) or 0.0
        return [f"{path}/{folder}/{name}" for folder in sorted(times, key=times.__getitem__, reverse=True)]

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """Create the file with all its bytes, unless it exists: of several callers exactly one gets True.

        data: unlike that of any other caller. So a file that is there and equal is our own: the answer to an earlier
        try was lost, and whoever tried again (a client library does so too) is told that it exists.
        """

        def create() -> bool:
            try:
                self._create(path, data)
            except FileExistsError:
                # A file where a folder is needed raises the same; only this very file means "not the first".
                there: bytes | None = _or_none(self.fs.cat_file, self._full(path))
                if there is None and not self.fs.exists(self._full(path)):
                    raise
                return there == data
            return True

        return self._do("create", path, create)

    def _create(self, path: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(self._full(path), data, mode="create")
            return
        try:
            _create_local(self._parented(path), data)
        except FileNotFoundError:  # `bam gc` swept the folder between its making and the first file in it
            _create_local(self._parented(path), data)

    def write_atomic(self, path: str, data: bytes) -> None:
        """Create or replace the file; a reader sees all of the old bytes or all of the new."""
        if self.is_local:
            self._do("write", path, lambda: _replace_local(self._parented(path), data))
        else:
            self._do("write", path, lambda: self.fs.pipe_file(self._full(path), data))

    def put(self, file: Path, path: str) -> None:
        """Move (local) or upload (elsewhere) a file; it appears whole or not at all."""
        if self.is_local:
            self._do("write", path, lambda: _move_local(file, self._parented(path)))
        else:
            self._do("write", path, lambda: self.fs.put_file(str(file), self._full(path)))

    def get(self, path: str, file: Path) -> None:
        """Download a file."""
        self._do("read", path, lambda: self.fs.get_file(self._full(path), str(file)))

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        self._do("remove", path, lambda: _or_none(self.fs.rm_file, self._full(path)))

    def remove_tree(self, path: str) -> None:
        self._do("remove", path, lambda: _or_none(self.fs.rm, self._full(path), recursive=True))

    def check_writable(self) -> None:
        """Raises StoreError if files could not be created, or not exclusively, on which leases rest.

        Leaves nothing behind, not even the root.
        """
        if self.is_local:
            with self.explained("write", ""):
                folder = self.local("")
                while not folder.exists():
                    folder = folder.parent
                with tempfile.TemporaryFile(dir=folder):
                    return
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self.create_exclusive(probe, b"first")
            if self.create_exclusive(probe, b"second"):
                raise StoreError(
                    f"{self.shown}: creates a file that exists already instead of refusing, so two runs could work on "
                    "one artifact; choose a storage with conditional writes (If-None-Match)"
                )
        finally:
            with contextlib.suppress(StoreError):  # the first error says more
                self.remove(probe)

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _parented(self, path: str) -> Path:
        target = self.local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _do(self, doing: str, path: str, operation: Callable[[], T]) -> T:
        with self.explained(doing, path):
            return self.patience.call(operation)

    @contextlib.contextmanager
    def explained(self, doing: str, path: str) -> Iterator[None]:
        """Turn whatever a file system raises (botocore has its own tree) into a StoreError with a remedy."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            place = f"{self.shown}/{path}" if path else self.shown
            reason = mask_text(getattr(error, "strerror", None) or str(error) or type(error).__name__)
            raise StoreError(f"{place}: cannot {doing}: {reason}; {_remedy(error)}") from _cause(error)


def missing_library(uri: str) -> str:
    """What to install for a place whose library fsspec does not find."""
    return f"it is an extra: {install_extra('s3')}" if uri.startswith(S3) else "pip install it in this environment"


def open_filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec's file system, path on it). Raises whatever its library raises."""
    # Listings must not be cached: another process's record or lease would stay invisible.
    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith(S3):
        # How long a server may be away is for `Patience` to say. Left alone, botocore and s3fs multiply their tries.
        options["config_kwargs"] = {"retries": {"mode": "standard", "max_attempts": 1}}
    fs, path = url_to_fs(uri, **options)
    if "config_kwargs" in options:
        fs.retries = 2
    return fs, path


def _changed(info: Mapping[str, Any]) -> float | None:
    found = next((info[key] for key in _TIMES if info.get(key)), None)
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(found)
    if isinstance(found, datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None


def _cause(error: Exception) -> Exception | None:
    """What a traceback may show of it: nothing, if its words hold a secret."""
    return error if mask_text(str(error)) == str(error) else None


def _or_none(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except FileNotFoundError:
        return None


def ray_storage(uri: str) -> tuple[Any, str, str]:
    """(filesystem, parent, name) of a folder as Ray's RunConfig wants them: with a filesystem, no scheme."""
    storage = Storage(uri)
    parent, _, name = storage.root.rpartition("/")
    if storage.is_local:
        return None, parent, name
    from pyarrow.fs import PyFileSystem  # slow to import, and only Ray needs it

    from infra.arrow_files import PatientHandler

    return PyFileSystem(PatientHandler(storage.fs, storage.patience)), parent, name


def sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a record never outlives the bytes it describes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def _replace_local(target: Path, data: bytes) -> None:
    temporary = _temporary(target)
    try:
        _write_synced(temporary, data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)


def _create_local(target: Path, data: bytes) -> None:
    """By a hard link, so that the name appears with its bytes: plain O_EXCL shows an empty file first."""
    temporary = _temporary(target)
    try:
        _write_synced(temporary, data)
        try:
            target.hardlink_to(temporary)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with target.open("xb") as file:  # a file system without hard links
                file.write(data)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)


def _move_local(file: Path, target: Path) -> None:
    if file.stat().st_dev == target.parent.stat().st_dev:
        sync(file)
        file.replace(target)
    else:
        temporary = _temporary(target)
        try:
            shutil.copyfile(file, temporary)
            sync(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    sync(target.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remedy(error: Exception) -> str:
    code = getattr(error, "errno", None)
    if isinstance(error, PermissionError) or code == errno.EROFS:
        return "check the permissions or credentials, or choose another --store"
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        return "a part of this path is a file, or a folder where a file should be; choose another --store"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and run the same command: nothing committed is lost"
    return "check --store, its credentials and the network"
