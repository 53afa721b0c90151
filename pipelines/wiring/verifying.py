"""Is what the store holds what it says: one artifact's files, or all that it was made from (`bam verify`).

The records are read as they lie there, damaged ones too, as far as they can be: a damaged record is a fault, and what
it names as its inputs is still looked at. An ancestor that is gone is no fault, and what cannot be checked for want of
it is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, StoreError
from bam_core.graph import refs
from bam_core.graph.key import KEY12, key12
from bam_core.graph.lineage import origin_of
from bam_core.graph.record import InputRef, Record
from bam_core.graph.verify import ORIGIN_FILE, input_faults, origin_faults, record_faults
from infra.record_files import Examined, artifact_folder, examine
from infra.signing import Judged, TrustedKeys, public_path, write_keys
from infra.store import ArtifactStore
from pipelines.wiring.recorded_texts import RecordedTexts
from pipelines.wiring.retracing import Source, is_model, retraced
from pipelines.wiring.settings import Settings, open_store

Node = tuple[str, str]
"""(stage, key); of an artifact whose record cannot be read, the first twelve digits of its key."""


@dataclass(frozen=True)
class Checked:
    """One artifact. cannot: what could not be checked, and why. n_tensors: compared by digest; n_again: of these, those
    that were also made again from their sources. signed_by: fingerprint of the key whose signature holds.
    """

    stage: str
    key: str
    faults: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()
    n_files: int = 0
    n_tensors: int = 0
    n_again: int = 0
    signed_by: str | None = None

    @property
    def state(self) -> str:
        return "fault" if self.faults else "cannot" if self.cannot else "ok"

    @property
    def name(self) -> str:
        return f"{self.stage}@{key12(self.key)}"


@dataclass(frozen=True)
class Verified:
    """What REF names first; then, if deep, all that it was made from, the nearest first."""

    artifacts: tuple[Checked, ...]
    deep: bool

    @property
    def faults(self) -> list[str]:
        return [f"{checked.name}: {fault}" for checked in self.artifacts for fault in checked.faults]

    @property
    def cannot(self) -> list[str]:
        return [f"{checked.name}: {reason}" for checked in self.artifacts for reason in checked.cannot]


def verify(
    ref: str,
    settings: Settings,
    *,
    deep: bool = False,
    texts: bool = False,
    say: Callable[[str], None] | None = None,
) -> Verified:
    """Hash what REF names, or all behind it too, and compare. texts: also the raw texts, where they can be found.

    say: hears of each artifact before it is read. Raises UsageError if REF names nothing.
    """
    store = open_store(settings)
    trusted = TrustedKeys.from_environment()
    roots = _roots(ref, store)
    checker = _Checker(store, trusted, RecordedTexts(store) if texts else None)
    nodes = checker.behind(roots) if deep else roots
    checked = []
    for number, (stage, key) in enumerate(nodes, start=1):
        if say is not None:
            say(f"{number} of {len(nodes)}: {stage}@{key12(key)}")
        checked.append(checker.check(stage, key, deep=deep))
    return Verified(tuple(checked), deep)


@dataclass(frozen=True)
class KeyPair:
    """fingerprint: of the public key, as signatures are named."""

    private: Path
    public: Path
    fingerprint: str


def make_keys(path: Path) -> KeyPair:
    """Write a new private key to PATH and its public key to PATH.pub. Raises UsageError if one exists."""
    return KeyPair(path, public_path(path), write_keys(path))


def _roots(ref: str, store: ArtifactStore) -> list[Node]:
    """What REF names, and artifacts of that name whose records cannot be read: one may be the one that is meant."""
    records = store.records()
    readable = {(record.stage, key12(record.key)) for record in records}
    name, _, prefix = ref.partition("@")
    start = "" if prefix == "latest" else prefix.lower()[:KEY12]
    named = [node for node in store.artifacts() if node[0] == name and node[1].startswith(start)]
    damaged = [node for node in named if node not in readable and store.written(*node)[0] is not None]
    if damaged and not any(node in readable for node in named):
        return damaged
    found = refs.resolve(ref, records)
    return [(found.stage, found.key), *damaged]


@dataclass(frozen=True)
class _Look:
    """A record as it lies there, and whose signature it has."""

    examined: Examined
    judged: Judged

    @property
    def record(self) -> Record | None:
        return self.examined.record

    @property
    def inputs(self) -> Sequence[InputRef]:
        return () if self.record is None else tuple(self.record.inputs.values())


class _Checker:
    """Artifacts of one store; each record and file is read once. texts: None where raw texts are not asked for."""

    def __init__(self, store: ArtifactStore, trusted: TrustedKeys, texts: RecordedTexts | None) -> None:
        self._store, self._trusted, self._texts = store, trusted, texts
        self._looks: dict[Node, _Look | None] = {}
        self._file_faults: dict[Node, list[str]] = {}

    def behind(self, roots: Iterable[Node]) -> list[Node]:
        """The roots and all that the records name as their ancestors, there or not."""
        nodes, seen = list(roots), {_place(*node) for node in roots}
        for node in nodes:  # grows while it is walked
            look = self._look(*node)
            for ref in look.inputs if look is not None else ():
                if _place(ref.stage, ref.key) not in seen:
                    seen.add(_place(ref.stage, ref.key))
                    nodes.append((ref.stage, ref.key))
        return nodes

    def check(self, stage: str, key: str, *, deep: bool) -> Checked:
        look = self._look(stage, key)
        if look is None:
            return Checked(stage, key, cannot=(self._why_no_record(stage, key),))
        faults: list[str | None] = [look.examined.fault, look.judged.fault]
        cannot: list[str] = []
        if look.record is None:
            return Checked(stage, key, _said(faults), signed_by=look.judged.signed_by)
        if not look.examined.sealed:
            cannot.append("its record has no checksum (it is from before there were any): a changed field may not show")
        faults += self._files_of(look.record)
        figures = {"n_files": len(look.record.outputs)}
        if deep:
            for found, not_checked, counted in (
                self._record_found(look.record),
                self._tensors_found(look.record),
                self._origin_found(look.record),
            ):
                faults, cannot, figures = [*faults, *found], cannot + not_checked, figures | counted
        return Checked(stage, look.record.key, _said(faults), tuple(cannot), **figures, signed_by=look.judged.signed_by)

    def _look(self, stage: str, key: str) -> _Look | None:
        place = _place(stage, key)
        if place not in self._looks:
            data, signature = self._store.written(stage, key)
            if data is None:
                self._looks[place] = None
            else:
                examined = examine(data, stage, key)
                self._looks[place] = _Look(examined, self._trusted.judge(examined.content, signature))
        return self._looks[place]

    def _why_no_record(self, stage: str, key: str) -> str:
        if self._store.storage.sizes(artifact_folder(stage, key)):
            return "it has no record: it is being made, or its record was taken away"
        return "gone from the store: it was collected, or never was here"

    def _files_of(self, record: Record) -> list[str]:
        place = _place(record.stage, record.key)
        if place not in self._file_faults:
            try:
                self._file_faults[place] = self._store.verify(record)
            except StoreError as error:
                if not self._store.storage.is_local:
                    raise  # away, which says nothing of the files
                self._file_faults[place] = [str(error)]
        return self._file_faults[place]

    def _record_found(self, record: Record) -> _Found:
        looks = {(ref.stage, ref.key): self._look(ref.stage, ref.key) for ref in record.inputs.values()}
        parents = {node: look.record for node, look in looks.items() if look is not None and look.record is not None}
        faults = record_faults(record) + input_faults(record, parents)
        faults += [f"file {path} is in its folder and not in its record" for path in self._store.strays(record)]
        found, cannot = self._texts.check(record) if self._texts is not None else ([], [])
        return faults + found, cannot, {}

    def _origin_found(self, record: Record) -> _Found:
        """Of an adopted artifact: what it brought with it."""
        origin, folder = origin_of(record), self._folder_of(record)
        if origin is None or folder is None:
            return [], [], {}
        elsewhere = f"its ancestors are in another store, with {origin.stage}@{key12(origin.key)}"
        try:
            document = read_json(folder / ORIGIN_FILE)
        except ArtifactDamaged as error:
            return ([] if self._files_of(record) else [str(error)]), [elsewhere], {}
        faults = origin_faults(record, document)
        if "signature" in document:  # whom to trust was asked when it was adopted
            judged = TrustedKeys().judge(document["record"], json.dumps(document["signature"]).encode())
            faults += [f"{ORIGIN_FILE}: {judged.fault}"] if judged.fault else []
        return faults, [elsewhere], {}

    def _tensors_found(self, record: Record) -> _Found:
        """Of a model: its tensors against its config.json, and of a mixture against its sources."""
        if not is_model(record):
            return [], [], {}
        sources = {role: self._source(ref) for role, ref in record.inputs.items()}
        own = Source(self._folder_of(record), not self._files_of(record))
        found = retraced(record, own, sources)
        figures = {"n_tensors": len(found.again) + len(found.by_digest), "n_again": len(found.again)}
        return list(found.faults), list(found.cannot), figures

    def _source(self, ref: InputRef) -> Source:
        look = self._look(ref.stage, ref.key)
        if look is None or look.record is None:
            return Source(None, False)
        is_whole = look.examined.fault is None and not self._files_of(look.record)
        return Source(self._folder_of(look.record), is_whole)

    def _folder_of(self, record: Record) -> Path | None:
        """None for a damaged artifact that would have to be downloaded."""
        if not self._store.storage.is_local and self._files_of(record):
            return None
        return self._store.localize(record)


_Found = tuple[list[str], list[str], dict[str, int]]
"""Faults, what cannot be checked, figures of `Checked`."""


def _place(stage: str, key: str) -> Node:
    return stage, key12(key)


def _said(faults: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(fault for fault in faults if fault is not None))
