"""Where artifacts live: implements `protocols.Store` on a local folder or any URI that fsspec opens.

    artifacts/<stage>/<key12>/   outputs, record.json (written last), record.sig.json (if there is a key), lease*.json,
                                 attempts/0001/{log.txt,progress.json,error.json}
    training/<stage>-<key12>/    checkpoints of a training that is under way
    runs/<run>.json              what a `bam run` asked for and used
    pins/<name>.json             an artifact that `bam gc` keeps

Invariant: a record is there only while all its outputs are: it is removed before any of them changes. Files
decide; no database does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import ArtifactDamaged, BamError
from bam_core.graph import refs
from bam_core.graph.key import KEY12, key12
from bam_core.graph.record import Output, Record
from bam_core.protocols import LeaseInfo, Store
from infra.leases import HeldLease, Leases, Watch, is_lease_file
from infra.pin_files import PinFiles
from infra.provenance import mask_values
from infra.record_files import (
    KEY,
    SIGNATURE,
    STAGE,
    artifact_folder,
    check_sizes,
    parse_record,
    readable_record,
    size_fault,
    training_folder,
)
from infra.run_files import RunFiles
from infra.storage import PATIENCE_S, Storage

if TYPE_CHECKING:
    from infra.signing import Signer

NO_PROGRESS_S = 5.0
"""How long a remote store that had no figures of a running stage is not asked again."""


class ArtifactStore:
    """clock: seconds since the epoch. lease_ttl_s: how long a lease outlives the last sign of its owner.

    watch: what this process has seen of the leases of others. patience_s: how long a remote storage may be away.
    signer: signs the records that are committed here.
    """

    def __init__(
        self,
        uri: str,
        *,
        clock: Callable[[], float] = time.time,
        watch: Watch | None = None,
        lease_ttl_s: float = 30.0,
        patience_s: float = PATIENCE_S,
        signer: Signer | None = None,
    ) -> None:
        self.storage = Storage(uri, patience_s)
        self.runs = RunFiles(self.storage)
        self.pins = PinFiles(self.storage)
        self._watch = watch or Watch()
        self._no_progress: dict[tuple[str, str], float] = {}
        self.uri = self.storage.uri
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s
        self._signer = signer

    def check_writable(self) -> None:
        self.storage.check_writable()

    def artifact_uri(self, stage: str, key: str) -> str:
        return f"{self.uri}/{artifact_folder(stage, key)}"

    def record(self, stage: str, key: str) -> Record | None:
        folder, where = artifact_folder(stage, key), f"{stage}@{key12(key)}"
        data = self.storage.read(f"{folder}/record.json")
        if data is None:
            return None
        record = parse_record(data, where)
        if (record.stage, record.key) != (stage, key):
            raise ArtifactDamaged(f"{where}: its record is of {record.stage}@{record.key}")
        check_sizes(record, self.storage.sizes(folder), where)
        return record

    def records(self, stage: str | None = None) -> list[Record]:
        stages = self.storage.folders("artifacts") if stage is None else [stage]
        parents = [f"artifacts/{name}" for name in stages]
        folders = [f"{parent}/{name}" for parent in parents for name in self.storage.folders(parent)]
        read = self.storage.read_many([f"{folder}/record.json" for folder in folders])
        found = [
            record for folder, data in zip(folders, read, strict=True) if (record := readable_record(data, folder))
        ]
        return sorted(found, key=lambda record: (record.ended, record.stage, record.key))

    def newest(self, stage: str, but: str) -> Record | None:
        """The readable record of this stage that was written last, of another key than `but`. Reads few."""
        for path in self.storage.newest_first(f"artifacts/{stage}", "record.json"):
            record = readable_record(self.storage.read(path), path.removesuffix("/record.json"))
            if record is not None and record.key != but:
                return record
        return None

    def artifacts(self) -> list[tuple[str, str]]:
        """(stage, first 12 of the key) of every artifact, done or not."""
        stages = [name for name in self.storage.folders("artifacts") if STAGE.fullmatch(name)]
        pairs = [(stage, key) for stage in stages for key in self.storage.folders(f"artifacts/{stage}")]
        return sorted((stage, key) for stage, key in pairs if KEY.fullmatch(key))

    def lease_info(self, stage: str, key: str) -> LeaseInfo | None:
        return self._leases(stage, key).info()

    def acquire(self, stage: str, key: str, owner: str) -> HeldLease:
        return self._leases(stage, key).acquire(owner)

    @contextlib.contextmanager
    def scratch(self, stage: str, key: str) -> Iterator[Path]:
        """On a local store beside the outputs, so that they are moved, not copied. For the lease's holder."""
        if self.storage.is_local:
            parent = self.storage.local(artifact_folder(stage, key))
            folder = parent / f"scratch-{uuid.uuid4().hex}"
            with self.storage.explained("write", artifact_folder(stage, key)):
                for left in parent.glob("scratch-*"):  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                folder.mkdir(parents=True)
        else:
            folder = Path(tempfile.mkdtemp(prefix=f"bam-{stage}-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, folder: Path, record: Record) -> None:
        """Outputs of a forced run that equal what is there leave it untouched: others may be reading it."""
        where = f"{record.stage}@{key12(record.key)}"
        written = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        check_sizes(record, written, where)
        target = artifact_folder(record.stage, record.key)
        found = self.storage.sizes(target)
        there = {path: size for path, size in found.items() if not _is_ours(path)}
        same = {o.path for o in record.outputs if there.get(o.path) == o.size and self._holds(target, o)}
        stays = len(same) == max(len(record.outputs), len(there))
        if not stays:
            self.storage.remove(f"{target}/record.json")
        if SIGNATURE in found:  # no record is ever beside the signature of another
            self.storage.remove(f"{target}/{SIGNATURE}")
        for path in there.keys() - {output.path for output in record.outputs}:
            self.storage.remove(f"{target}/{path}")
        for output in record.outputs:
            if output.path not in same:
                self.storage.put(folder / output.path, f"{target}/{output.path}")
        data = json.dumps(record.to_json(), indent=2, sort_keys=True).encode()
        signature = {} if self._signer is None else {SIGNATURE: self._signer.sign(data)}
        # What is there is signed; but while an older record stays, it would have the signature of the new one.
        files = {"record.json": data} | signature if stays else signature | {"record.json": data}
        for name, content in files.items():
            self.storage.write_atomic(f"{target}/{name}", content)

    def written(self, stage: str, key: str) -> tuple[bytes | None, bytes | None]:
        """record.json and its signature as they lie there, whatever they hold."""
        folder = artifact_folder(stage, key)
        return self.storage.read(f"{folder}/record.json"), self.storage.read(f"{folder}/{SIGNATURE}")

    def hash_outputs(self, folder: Path) -> tuple[Output, ...]:
        return hash_outputs(folder)

    def verify(self, record: Record) -> list[str]:
        """Re-hash every output; one message per bad file, none if all are as recorded."""
        folder = artifact_folder(record.stage, record.key)
        sizes = self.storage.sizes(folder)
        bad = []
        for output in record.outputs:
            fault = size_fault(output, sizes)
            if fault is None and not self._holds(folder, output):
                fault = f"output {output.path} has other bytes than recorded: sha256 differs"
            if fault is not None:
                bad.append(fault)
        return bad

    def strays(self, record: Record) -> list[str]:
        """Files in the artifact's folder that are no outputs of it, nor the store's own."""
        there = self.storage.sizes(artifact_folder(record.stage, record.key))
        return sorted(path for path in there.keys() - {o.path for o in record.outputs} if not _is_ours(path))

    def localize(self, record: Record) -> Path:
        """Downloads are checked by digest, and kept under it: equal artifacts are fetched once."""
        folder = artifact_folder(record.stage, record.key)
        if self.storage.is_local:
            return self.storage.local(folder)
        cached = _cache() / "artifacts" / record.digest
        if not cached.is_dir():
            arriving = cached.with_name(f"{record.digest}.{uuid.uuid4().hex}")
            try:
                self._download(record, folder, arriving)
                with contextlib.suppress(OSError):  # another process may have been quicker
                    arriving.rename(cached)
            finally:
                shutil.rmtree(arriving, ignore_errors=True)
        return cached

    def next_attempt(self, stage: str, key: str) -> int:
        return max(self._attempts(stage, key), default=0) + 1

    def attempt_dir(self, stage: str, key: str, attempt: int) -> Path:
        path = f"{artifact_folder(stage, key)}/attempts/{attempt:04d}"
        folder = self.storage.local(path) if self.storage.is_local else self._here("attempts") / path
        with self.storage.explained("write", path):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close_attempt(self, stage: str, key: str, attempt: int, error: Mapping[str, Any] | None) -> None:
        folder = self.attempt_dir(stage, key, attempt)
        if error is not None:
            (folder / "error.json").write_text(json.dumps(mask_values(error), indent=2))
        if not self.storage.is_local:
            for file in _files(folder):
                name = file.relative_to(folder).as_posix()
                self.storage.put(file, f"{artifact_folder(stage, key)}/attempts/{attempt:04d}/{name}")
            shutil.rmtree(folder)

    def progress(self, stage: str, key: str) -> Mapping[str, Any] | None:
        """On a remote store, of an attempt on this machine, or of one that is over: so it is not asked for often."""
        if self.storage.is_local:
            return self._of_newest_attempt(stage, key, "progress.json")
        folder = self._here("attempts") / artifact_folder(stage, key)
        for file in sorted(folder.glob("attempts/*/progress.json"), reverse=True):
            with contextlib.suppress(OSError):  # just published
                return _object(file.read_bytes())
        if time.monotonic() < self._no_progress.get((stage, key), 0.0):
            return None
        found = self._of_newest_attempt(stage, key, "progress.json")
        if found is None:
            self._no_progress[stage, key] = time.monotonic() + NO_PROGRESS_S
        return found

    def error(self, stage: str, key: str) -> Mapping[str, Any] | None:
        """Why the newest attempt failed, or None if it has not."""
        return self._of_newest_attempt(stage, key, "error.json")

    def training_uri(self, stage: str, key: str) -> str:
        """Where a stage's checkpoints are kept until it is done."""
        return f"{self.uri}/{training_folder(stage, key)}"

    def training_dir(self, stage: str, key: str) -> Path:
        """The same for a training that stays on this machine: a local folder, also of a remote store."""
        path = training_folder(stage, key)
        return self.storage.local(path) if self.storage.is_local else self._here("training") / path

    def clear_training(self, stage: str, key: str) -> None:
        self.storage.remove_tree(training_folder(stage, key))
        if not self.storage.is_local:
            shutil.rmtree(self.training_dir(stage, key), ignore_errors=True)

    def _here(self, what: str) -> Path:
        """Where this machine keeps what belongs to this remote store and is not in it yet."""
        return _cache() / what / hashlib.sha256(self.uri.encode()).hexdigest()[:KEY12]

    def _leases(self, stage: str, key: str) -> Leases:
        return Leases(self.storage, artifact_folder(stage, key), self._clock, self._lease_ttl_s, self._watch)

    def _holds(self, folder: str, output: Output) -> bool:
        return self.storage.sha256(f"{folder}/{output.path}") == output.sha256

    def _attempts(self, stage: str, key: str) -> list[int]:
        names = self.storage.folders(f"{artifact_folder(stage, key)}/attempts")
        return sorted(int(name) for name in names if name.isdecimal())

    def _of_newest_attempt(self, stage: str, key: str, name: str) -> Mapping[str, Any] | None:
        attempts = self._attempts(stage, key)
        if not attempts:
            return None
        data = self.storage.read(f"{artifact_folder(stage, key)}/attempts/{attempts[-1]:04d}/{name}")
        return None if data is None else _object(data)

    def _download(self, record: Record, folder: str, to: Path) -> None:
        for output in record.outputs:
            file = to / output.path
            file.parent.mkdir(parents=True, exist_ok=True)
            self.storage.get(f"{folder}/{output.path}", file)
        to.mkdir(parents=True, exist_ok=True)
        if hash_outputs(to) != tuple(sorted(record.outputs, key=lambda output: output.path)):
            raise ArtifactDamaged(f"{record.stage}@{key12(record.key)}: downloaded files differ from their record")


def hash_outputs(folder: Path) -> tuple[Output, ...]:
    """Every file below, sorted by path. Raises BamError for a name that the store keeps for itself."""
    outputs = []
    for file in _files(folder):
        path = file.relative_to(folder).as_posix()
        if _is_ours(path):
            raise BamError(f"output {path!r}: this name is the store's own")
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        outputs.append(Output(path, file.stat().st_size, digest))
    return tuple(sorted(outputs, key=lambda output: output.path))


def resolve(ref: str, store: Store) -> Record:
    """The record that a reference names. Raises UsageError as `graph.refs.resolve` does."""
    return refs.resolve(ref, store.records())


def _files(folder: Path) -> list[Path]:
    """Raises BamError for a link: what it points to is not part of the artifact."""
    found = sorted(folder.rglob("*"))
    for path in found:
        if path.is_symlink():
            raise BamError(f"output {path.relative_to(folder).as_posix()!r} is a link; write the file itself")
    return [path for path in found if path.is_file()]


def _is_ours(path: str) -> bool:
    top = path.split("/")[0]
    return top in ("record.json", SIGNATURE, "attempts") or top.startswith(("scratch-", ".lease")) or is_lease_file(top)


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is none: being written, or cut off when its process was killed."""
    with contextlib.suppress(ValueError):
        found = json.loads(data)
        return found if isinstance(found, dict) else None
    return None


def _cache() -> Path:
    """For downloads; the user's own folder, since a shared one could be prepared by somebody else."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "bam"
