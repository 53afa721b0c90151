"""Files under one URI, local or remote: the only importer of fsspec, and all that knows the difference.

Every path argument is relative to the root, with `/`. A missing file is an answer (None, empty); everything
else that goes wrong is a StoreError that says where, what and what to do. Nothing is created before the
first write.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bam_core.errors import StoreError

CHUNK_BYTES = 1 << 20


class Storage:
    """uri: absolute path of a local folder, or `scheme://...`. shown: the same without user information."""

    def __init__(self, uri: str) -> None:
        self.shown = re.sub(r"//[^/@]*@", "//***@", uri)
        if not uri:
            raise StoreError("the store's URI is empty; give a folder or a URI such as s3://bucket/bam")
        try:
            # Listings must not be cached: another process's record or lease would stay invisible.
            self.fs, root = url_to_fs(uri, use_listings_cache=False)
        except ImportError as error:
            raise StoreError(f"{self.shown}: {error} (pip install it in this environment)") from error
        except Exception as error:
            raise StoreError(f"{self.shown}: cannot be opened: {error}") from error
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.root = root.rstrip("/")
        self.uri = (self.root or "/") if self.is_local else uri.rstrip("/")

    def local(self, path: str) -> Path:
        assert self.is_local, f"{self.shown} is not a local folder"
        return Path(self.uri, path)

    def read(self, path: str) -> bytes | None:
        with self.explained("read", path):
            try:
                data: bytes = self.fs.cat_file(self._full(path))
            except FileNotFoundError:
                return None
            return data

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self.explained("read", path), self.fs.open(self._full(path), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def sizes(self, path: str) -> dict[str, int]:
        """Size in bytes of every file below, by path relative to `path`."""
        top = self._full(path)
        with self.explained("list", path):
            found = self.fs.find(top, detail=True)
        start = len(top) + 1
        # Some clients leave zero-byte "folder/" objects behind.
        return {name[start:]: info["size"] for name, info in found.items() if name[start:].strip("/")}

    def folders(self, path: str) -> list[str]:
        with self.explained("list", path):
            try:
                entries = self.fs.ls(self._full(path), detail=True)
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(e["name"]).name for e in entries if e["type"] == "directory")

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """Create the file with all its bytes, unless it exists: of several callers exactly one gets True."""
        with self.explained("create", path):
            try:
                if self.is_local:
                    _create_local(self._parented(path), data)
                else:
                    self.fs.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                # A file where a folder is needed raises the same; only this very file means "not the first".
                if not self.fs.exists(self._full(path)):
                    raise
                return False
        return True

    def write_atomic(self, path: str, data: bytes) -> None:
        """Create or replace the file; a reader sees all of the old bytes or all of the new."""
        with self.explained("write", path):
            if self.is_local:
                _replace_local(self._parented(path), data)
            else:
                self.fs.pipe_file(self._full(path), data)

    def put(self, file: Path, path: str) -> None:
        """Move (local) or upload (elsewhere) a file; it appears whole or not at all."""
        with self.explained("write", path):
            if not self.is_local:
                self.fs.put_file(str(file), self._full(path))
                return
            _move_local(file, self._parented(path))

    def get(self, path: str, file: Path) -> None:
        """Download a file."""
        with self.explained("read", path):
            self.fs.get_file(self._full(path), str(file))

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        with self.explained("remove", path), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._full(path))

    def remove_tree(self, path: str) -> None:
        with self.explained("remove", path), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._full(path), recursive=True)

    def check_writable(self) -> None:
        """Raises StoreError if files could not be created. Leaves nothing behind, not even the root."""
        with self.explained("write", ""):
            if self.is_local:
                folder = self.local("")
                while not folder.exists():
                    folder = folder.parent
                with tempfile.TemporaryFile(dir=folder):
                    return
            probe = self._full(f"probe-{uuid.uuid4().hex}")
            self.fs.pipe_file(probe, b"")
            self.fs.rm_file(probe)

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _parented(self, path: str) -> Path:
        target = self.local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextlib.contextmanager
    def explained(self, doing: str, path: str) -> Iterator[None]:
        """Turn whatever a file system raises (botocore has its own tree) into a StoreError with a remedy."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            place = f"{self.shown}/{path}" if path else self.shown
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StoreError(f"{place}: cannot {doing}: {reason}; {_remedy(error)}") from error


def ray_storage(uri: str) -> tuple[Any, str, str]:
    """(filesystem, parent, name) of a folder as Ray's RunConfig wants them: with a filesystem, no scheme."""
    storage = Storage(uri)
    parent, _, name = storage.root.rpartition("/")
    if storage.is_local:
        return None, parent, name
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # slow to import, and only Ray needs it

    return PyFileSystem(FSSpecHandler(storage.fs)), parent, name


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
