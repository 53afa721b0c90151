"""An expert that somebody else trained becomes an artifact of ours, and its lineage goes on in ours (`bam adopt`).

It is taken only if it can be mixed with what branched from our seed: the seed's bytes, the tokenizer and the config are
the same, and every tensor is there and finite. Everything is checked on our own copy before anything counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.graph.adopted import (
    KIND,
    NAME,
    NAME_RULE,
    adopted_config,
    adopted_name,
    adopted_stage,
    is_adopted,
    origin_words,
)
from bam_core.graph.key import key12, stage_key, stage_payload
from bam_core.graph.lineage import ForeignRecord, origin_of
from bam_core.graph.pins import Pin, pin_name
from bam_core.graph.record import Output, Record, artifact_digest
from bam_core.graph.verify import ORIGIN_FILE
from infra.candidate import COSTS, model_problems, record_problems, seed_digest, seed_problems
from infra.foreign import Foreign, origin_document, read_foreign, sound_record
from infra.provenance import mask_text
from infra.record_files import artifact_folder
from infra.store import ArtifactStore

MAX_HOPS = 16
"""Stores that an expert may have passed through."""
LEFT_S = 7 * 86_400.0
"""A copy that was begun longer ago than this is of a process that was killed."""
_WORKSPACE = ".adopting-"


@dataclass(frozen=True)
class Adopted:
    """is_new: False if this very expert had been adopted already. size: bytes of all its files."""

    record: Record
    is_new: bool

    @property
    def size(self) -> int:
        return sum(output.size for output in self.record.outputs)


def adopt(
    name: str,
    uri: str,
    store: ArtifactStore,
    *,
    version: int,
    owner: str,
    provenance: Mapping[str, Any],
    replace: bool = False,
) -> Adopted:
    """Make `adopted.<name>` from the artifact that a URI names. version: of the function `adopt`.

    Raises InvalidInput with all that speaks against it, and then nothing is written; LeaseHeld if another process is
    adopting the same.
    """
    if not NAME.fullmatch(name):
        raise InvalidInput("expert to adopt", [Problem("NAME", name, NAME_RULE)])
    foreign = read_foreign(uri)
    seeds = store.records("seed")
    seed = next((seed for seed in reversed(seeds) if seed.digest == seed_digest(foreign.record)), None)
    config = adopted_config(name, foreign.record)
    problems = [*foreign.problems, *record_problems(foreign.record), *seed_problems(foreign.record, seed, seeds)]
    problems += _name_problems(store, name, foreign.record, replace)
    payload: dict[str, Any] = {}
    if seed is not None:
        payload = stage_payload(adopted_stage(config, version), {"seed": seed.key})
        if not problems and (there := _there(store, name, stage_key(payload))) is not None:
            _pin(store, name, there)
            return Adopted(there, is_new=False)
    with _workspace(store) as folder:
        # A mistake that the record shows already is told before gigabytes are fetched.
        problems += foreign.copy(folder, weights=not problems or foreign.storage.is_local)
        problems += model_problems(folder, foreign.record, name, seed or next(reversed(seeds), None), store, problems)
        if problems:
            raise InvalidInput(f"expert to adopt, {foreign.storage.shown}", problems)
        assert seed is not None, "an unknown seed is a problem"
        made = _record(folder, foreign, seed, payload, provenance)
        return _commit(folder, name, made, store, owner)


def _name_problems(store: ArtifactStore, name: str, record: Record, replace: bool) -> Iterator[Problem]:
    before = newest_adopted(store.records(adopted_name(name)))
    now = before.get(name)
    if now is not None and now["digest"] != record.digest and not replace:
        origin = now["origin"]
        words = f"is {origin['stage']}@{key12(origin['key'])} already, another expert than {_named(record)}"
        yield Problem("NAME", name, words, "give another name, or --replace: mixtures that are made stay as they are")


def newest_adopted(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Name -> what it stands for: the configuration of the `adopted.*` that was written last."""
    found = {}
    for record in sorted(records, key=lambda record: record.ended):
        if is_adopted(record.stage) and origin_of(record) is not None:  # so it has a configuration
            config = dict(record.payload["config"])
            if adopted_name(str(config.get("name"))) == record.stage and isinstance(config.get("digest"), str):
                found[config["name"]] = config
    return found


def _there(store: ArtifactStore, name: str, key: str) -> Record | None:
    """The artifact, if it is what the name stands for now and holds."""
    stage = adopted_name(name)
    with contextlib.suppress(ArtifactDamaged):
        record = store.record(stage, key)
        if record is not None and newest_adopted(store.records(stage)).get(name) == record.payload["config"]:
            return record
    return None


@contextlib.contextmanager
def _workspace(store: ArtifactStore) -> Iterator[Path]:
    """Beside the artifacts of a local store, so that files are moved into place, not copied."""
    top = store.storage.local("") if store.storage.is_local else None
    parent = top if top is not None and top.is_dir() else None
    with contextlib.ExitStack() as stack:
        with store.storage.explained("write", ""):
            for left in parent.glob(f"{_WORKSPACE}*") if parent is not None else ():
                if left.stat().st_mtime < time.time() - LEFT_S:
                    shutil.rmtree(left, ignore_errors=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_WORKSPACE, dir=parent))
        yield Path(folder)


def _record(
    folder: Path, foreign: Foreign, seed: Record, payload: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Record:
    """Writes origin.json beside the copied files."""
    from bam_core.checkpoint import read_config
    from bam_core.nn.costs import params_active, params_total

    started, file = time.time(), folder / ORIGIN_FILE
    content = origin_document(foreign, file.read_bytes() if file.is_file() else None)
    file.write_bytes(content)
    copied = [output for output in foreign.record.outputs if output.path != ORIGIN_FILE]
    origin = Output(ORIGIN_FILE, len(content), hashlib.sha256(content).hexdigest())
    outputs = tuple(sorted([*copied, origin], key=lambda output: output.path))
    theirs, config = foreign.record.metrics, read_config(folder)
    loss = {"loss": theirs["loss"]} if isinstance(theirs.get("loss"), float) and math.isfinite(theirs["loss"]) else {}
    sizes = {"params_total": params_total(config), "params_active": params_active(config)}
    return Record(
        stage=str(payload["stage"]),
        key=stage_key(payload),
        payload=payload,
        inputs={"seed": seed.ref},
        outputs=outputs,
        digest=artifact_digest(outputs),
        metrics=loss | {metric: theirs[metric] for metric in COSTS} | sizes,
        provenance={**provenance, "adopted_from": foreign.store},
        started=started,
        ended=time.time(),
        attempt=1,
    )


def _commit(folder: Path, name: str, made: Record, store: ArtifactStore, owner: str) -> Adopted:
    lease = store.acquire(made.stage, made.key, owner)
    try:
        lease.require()
        store.commit(folder, made)
        _pin(store, name, made)
    finally:
        lease.release()
    return Adopted(made, is_new=True)


def _pin(store: ArtifactStore, name: str, record: Record) -> None:
    """No run can make it again, so `bam gc` is not to take it while the name stands for it."""
    pin = Pin(pin_name(KIND, name), record.stage, record.key, f"adopted: {origin_words(record)}", time.time())
    with contextlib.suppress(ArtifactDamaged):
        there = store.pins.get(pin.name)
        if there is not None and there.key == pin.key:
            return
    store.pins.write(pin)


def _named(record: Record) -> str:
    return f"{record.stage}@{key12(record.key)}"


def foreign_records(store: ArtifactStore, records: Iterable[Record]) -> list[ForeignRecord]:
    """What the adopted among the records brought with them: their own records elsewhere, and their ancestors'.

    A file that is missing, was changed, or holds what is no record gives nothing: the lineage says what it lacks.
    """
    wanted = [
        (record, output)
        for record in records
        for output in record.outputs
        if output.path == ORIGIN_FILE and origin_of(record) is not None
    ]
    paths = [f"{artifact_folder(record.stage, record.key)}/{ORIGIN_FILE}" for record, _ in wanted]
    found: dict[tuple[str, str], ForeignRecord] = {}
    for (record, output), data in zip(wanted, store.storage.read_many(paths), strict=True):
        if data is not None and hashlib.sha256(data).hexdigest() == output.sha256:
            for foreign in brought(record, data):
                found.setdefault((foreign.record.stage, foreign.record.key), foreign)
    return list(found.values())


def brought(record: Record, data: bytes) -> Iterator[ForeignRecord]:
    """What an adopted artifact's `origin.json` says, if it is of that artifact.

    From store to store: an expert may have been adopted by those from whom we have it.
    """
    document: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(data)
    for _ in range(MAX_HOPS):
        if not isinstance(document, Mapping):
            return
        theirs, place = sound_record(document.get("record")), document.get("store")
        if theirs is None or theirs.ref != origin_of(record) or not isinstance(place, str):
            return
        ancestors = document.get("ancestors")
        known = [theirs, *map(sound_record, ancestors if isinstance(ancestors, list) else [])]
        yield from (ForeignRecord(made, mask_text(place)) for made in known if made is not None)
        record, document = theirs, document.get("origin")
