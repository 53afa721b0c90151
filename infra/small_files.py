"""The small files of artifacts, whole and on this machine: all that MLflow is shown of them.

Of a remote store only these are fetched, not the weights beside them.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path, PurePosixPath
from types import TracebackType

from bam_core.errors import ArtifactDamaged
from bam_core.graph.key import key12
from bam_core.graph.record import Output, Record
from infra.record_files import artifact_folder
from infra.store import ArtifactStore

MAX_BYTES = 8_000_000
_SUFFIXES = frozenset({".json", ".html", ".csv", ".svg", ".png", ".md"})


def is_small(output: Output) -> bool:
    """Whether it is a file that a person reads."""
    return PurePosixPath(output.path).suffix in _SUFFIXES and output.size <= MAX_BYTES


class SmallFiles:
    """Of one store. What was fetched is removed at the end of the `with` block."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._fetched: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> SmallFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fetched is not None:
            self._fetched.cleanup()

    def __call__(self, record: Record) -> Path:
        """A folder with the artifact's small files. Raises ArtifactDamaged if one of them is not as recorded."""
        storage, folder = self._store.storage, artifact_folder(record.stage, record.key)
        wanted = [output for output in record.outputs if is_small(output)]
        here = Path(self._store.uri, folder) if storage.is_local else self._folder(record)
        if not storage.is_local and here.is_dir():
            return here
        contents = storage.read_many([f"{folder}/{output.path}" for output in wanted])
        for output, data in zip(wanted, contents, strict=True):
            if data is None or hashlib.sha256(data).hexdigest() != output.sha256:
                fault = "is missing" if data is None else "has other bytes than recorded"
                raise ArtifactDamaged(f"{record.stage}@{key12(record.key)}: {output.path} {fault}")
            if not storage.is_local:
                (here / output.path).parent.mkdir(parents=True, exist_ok=True)
                (here / output.path).write_bytes(data)
        return here

    def _folder(self, record: Record) -> Path:
        if self._fetched is None:
            self._fetched = tempfile.TemporaryDirectory(prefix="bam-sync-")
        return Path(self._fetched.name) / f"{record.stage}-{record.key}"
