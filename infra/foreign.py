"""An artifact in somebody else's hands: found by its URI, read and copied with suspicion.

Invariants: nothing is read through a link, nor from what is no plain file. Of an artifact only the files that its
record lists are copied, and they are hashed where they arrive: what was checked is what is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged, BamError, InvalidInput, Problem, StoreError, UsageError
from bam_core.graph import refs
from bam_core.graph.key import key12
from bam_core.graph.record import Record
from bam_core.graph.verify import record_faults
from infra.provenance import mask_text
from infra.record_files import SIGNATURE, artifact_folder, parse_record, size_fault
from infra.signing import TRUSTED_KEYS, TrustedKeys
from infra.storage import LOOK_PATIENCE_S, Storage
from infra.store import ArtifactStore, hash_outputs

RECORD = "record.json"
MAX_RECORD_BYTES = 32_000_000
MAX_ANCESTORS = 1000
"""An expert has some ten; more are left out, and are missing from the lineage."""
MAX_NAMED = 20
_WHERE_TO_LOOK = (
    "give an artifact's folder, <store>/artifacts/<stage>/<key>, or STORE#REF such as s3://bucket/bam#expert.law"
)


@dataclass(frozen=True)
class Foreign:
    """An artifact whose record holds together. raw: its record.json. signature: what record.sig.json holds, if any.

    store: where it lies, without secrets: their store, or the folder if that is in none. ancestors: the raw records of
    what it was made from, as far as that store has them. problems: what is wrong with it by its record and file list.
    """

    storage: Storage
    record: Record
    raw: Mapping[str, Any]
    signature: Any
    store: str
    ancestors: tuple[Mapping[str, Any], ...]
    problems: tuple[Problem, ...]

    def copy(self, to: Path, *, weights: bool) -> list[Problem]:
        """Copy the outputs that are whole into an empty folder. weights: also the large ones.

        Returns what has other bytes than recorded.
        """
        broken = {problem.path for problem in self.problems}
        wanted = [output for output in self.record.outputs if output.path not in broken]
        wanted = [output for output in wanted if weights or not is_weights(output.path)]
        for output in wanted:
            file = to / output.path
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{self.storage.shown}/{output.path}: cannot be copied: {error.strerror}") from error
            self.storage.get(output.path, file)
        try:
            found = {output.path: output.sha256 for output in hash_outputs(to)}
        except BamError as error:  # a name that a store keeps for itself
            return [Problem(RECORD, self.record.stage, str(error), "an expert has no such file")]
        return [
            Problem(
                output.path,
                f"sha256 {found.get(output.path, 'none')[:12]}",
                f"its record says {output.sha256[:12]}",
                "it was changed or damaged: copy it again, or ask for a whole one",
            )
            for output in wanted
            if found.get(output.path) != output.sha256
        ]


def is_weights(path: str) -> bool:
    return path.endswith(".safetensors")


def read_foreign(uri: str) -> Foreign:
    """Read the record and the file list of the artifact that a URI names, and its ancestors' records; no weights.

    uri: an artifact's folder, local or on what fsspec opens, or `STORE#REF`. Raises InvalidInput if there is no record
    that holds together, or a link; StoreError if nothing can be read there.
    """
    storage = _folder(uri)
    data = _record_bytes(storage)
    if problems := list(islice(_not_plain(storage), MAX_NAMED)):
        raise InvalidInput(_where(storage), problems)
    record, raw = _parsed(data, storage)
    signature = storage.read(SIGNATURE) if _plain(storage, SIGNATURE) else None
    judged = TrustedKeys.from_environment().judge(raw, signature)
    problems = [Problem(RECORD, record.stage, fault, "ask for a whole artifact") for fault in _faults(record)]
    if judged.fault:
        remedy = f"{TRUSTED_KEYS} says whose signature counts"
        problems.append(Problem(SIGNATURE if signature else RECORD, None, judged.fault, remedy))
    root = _store_root(storage, record)
    return Foreign(
        storage=storage,
        record=record,
        raw=raw,
        signature=None if signature is None or judged.fault else json.loads(signature),
        store=mask_text((root or storage).uri),
        ancestors=() if root is None else tuple(_ancestors(record, root)),
        problems=(*problems, *_listed(record, storage)),
    )


def _folder(uri: str) -> Storage:
    """Of the artifact. A name with `#` is a store and a reference, unless there is such a folder."""
    storage = Storage(uri, LOOK_PATIENCE_S)
    store_uri, is_pair, ref = uri.rpartition("#")
    if not is_pair or not store_uri or _plain(storage, RECORD):
        return storage
    store = ArtifactStore(store_uri, patience_s=LOOK_PATIENCE_S)
    try:
        record = refs.resolve(ref, store.records())
    except UsageError as error:
        raise UsageError(f"{store.storage.shown}: {error}") from error
    return Storage(f"{store.uri}/{artifact_folder(record.stage, record.key)}", LOOK_PATIENCE_S)


def _where(storage: Storage) -> str:
    return f"expert to adopt, {storage.shown}"


def _record_bytes(storage: Storage) -> bytes:
    """Read first, so that a folder that was not meant is not searched."""
    data = storage.read(RECORD) if _plain(storage, RECORD) else None
    if data is not None:
        return data
    is_there = os.path.lexists(storage.local(RECORD)) if storage.is_local else storage.size(RECORD) is not None
    words = (
        f"must be a plain file of at most {MAX_RECORD_BYTES:,} bytes, and no link" if is_there else "is missing here"
    )
    raise InvalidInput(_where(storage), [Problem(RECORD, storage.shown, words, _WHERE_TO_LOOK)])


def _plain(storage: Storage, path: str) -> bool:
    """Whether there is a file of a record's size which no link leads to."""
    if not storage.is_local:
        found = storage.size(path)
        return found is not None and found <= MAX_RECORD_BYTES
    file, top = storage.local(path), storage.local("")
    try:
        status = file.lstat()
    except (OSError, ValueError):
        return False
    way = [parent for parent in file.parents if parent != top and parent.is_relative_to(top)]
    is_small_file = stat.S_ISREG(status.st_mode) and status.st_size <= MAX_RECORD_BYTES
    return is_small_file and not any(parent.is_symlink() for parent in way)


def _not_plain(storage: Storage) -> Iterator[Problem]:
    """Links, pipes and devices in a local folder, at any depth."""
    if not storage.is_local:
        return
    top = storage.local("")
    for folder, folders, files in os.walk(top):
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            where = path.relative_to(top).as_posix()
            if stat.S_ISLNK(mode):
                target = str(path.readlink())
                yield Problem(where, target, "is a link: what it leads to is no part of the artifact", "copy the file")
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield Problem(where, stat.filemode(mode), "is no plain file", "take it out of the folder")


def _parsed(data: bytes, storage: Storage) -> tuple[Record, Mapping[str, Any]]:
    try:
        return _record(data), json.loads(data)
    except ArtifactDamaged as error:
        words = str(error).removeprefix(f"{RECORD}: ")
        problem = Problem(RECORD, storage.shown, words, "ask for a whole artifact")
        raise InvalidInput(_where(storage), [problem]) from error


def _record(data: bytes) -> Record:
    """Raises ArtifactDamaged, also for a document that is made to exhaust its reader."""
    try:
        return parse_record(data, RECORD)
    except RecursionError as error:
        raise ArtifactDamaged(f"{RECORD}: is nested too deeply") from error


def _faults(record: Record) -> list[str]:
    try:
        return record_faults(record)
    except RecursionError:
        return ["its payload is nested too deeply"]


def sound_record(content: Any) -> Record | None:
    """The record in a JSON value, if it is one that holds together: its key is its payload's, so no two such records
    can be among each other's ancestors."""
    with contextlib.suppress(ArtifactDamaged, RecursionError, ValueError, TypeError):
        record = _record(json.dumps(content).encode())
        return None if _faults(record) else record
    return None


def _listed(record: Record, storage: Storage) -> Iterator[Problem]:
    """Outputs that are not there as the record lists them."""
    sizes = storage.sizes("")
    times = Counter(output.path for output in record.outputs)
    for output in record.outputs:
        if fault := size_fault(output, sizes):
            remedy = "the copy is not whole: copy it again, or ask for a whole one"
            yield Problem(output.path, sizes.get(output.path), fault, remedy)
        elif times[output.path] > 1:
            yield Problem(output.path, output.sha256[:12], "is listed twice in record.json", "ask for a whole artifact")


def _store_root(storage: Storage, record: Record) -> Storage | None:
    """Their store, if the folder lies where a store keeps this artifact."""
    place = f"/artifacts/{record.stage}/{key12(record.key)}"
    root = storage.uri.removesuffix(place)
    return Storage(root or "/", LOOK_PATIENCE_S) if storage.uri.endswith(place) else None


def _ancestors(record: Record, root: Storage) -> Iterator[Mapping[str, Any]]:
    """The nearest first. One that cannot be read is left out: the lineage says that it is missing."""
    seen, ahead, n_bytes = {(record.stage, record.key)}, [record], 0
    while ahead and len(seen) <= MAX_ANCESTORS:
        made = ahead.pop(0)
        for ref in made.inputs.values():
            if (ref.stage, ref.key) in seen:
                continue
            seen.add((ref.stage, ref.key))
            with contextlib.suppress(StoreError):
                path = f"{artifact_folder(ref.stage, ref.key)}/{RECORD}"
                data = root.read(path) if n_bytes < MAX_RECORD_BYTES and _plain(root, path) else None
                n_bytes += len(data or b"")
                raw = _object(data)
                parent = sound_record(raw)
                if parent is not None and (parent.stage, parent.key) == (ref.stage, ref.key):
                    ahead.append(parent)
                    yield raw


def _object(data: bytes | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(data or b"")
        return found if isinstance(found, dict) else {}
    return {}


def origin_document(foreign: Foreign, theirs: bytes | None) -> bytes:
    """The adopted artifact's `origin.json`. theirs: the one of a foreign artifact that was itself adopted."""
    document: dict[str, Any] = {"store": foreign.store, "record": foreign.raw, "ancestors": list(foreign.ancestors)}
    if foreign.signature is not None:
        document["signature"] = foreign.signature
    if theirs is not None:
        document["origin"] = _object(theirs)
    return json.dumps(document, indent=1, sort_keys=True).encode()
