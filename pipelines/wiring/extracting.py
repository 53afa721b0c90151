"""An expert back out of a mixture, as a dense model's folder: `bam expert extract`."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bam_core.card import Subject, TextSource, model_card
from bam_core.documents import read_json
from bam_core.errors import UsageError
from bam_core.graph.adopted import origin_words
from bam_core.graph.record import InputRef, Record
from bam_core.graph.stage import kind_of
from infra.store import ArtifactStore
from pipelines.wiring.origins import Known, known_records, model_record, name_of, whole_folder
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.upcycle.extract import Recorded


@dataclass(frozen=True)
class Extracted:
    """taken: tensor -> `mixture` or `parent`, and why. parent: the dense model behind the expert, if it is there.

    origin: where another team trained it, if the expert was adopted.
    """

    folder: Path
    source: str
    parent: str | None
    shared: str
    taken: Mapping[str, str]
    origin: str | None = None


def extract_expert(
    ref: str, label: str, folder: Path, settings: Settings, *, shared: Literal["parent", "mixture"] | None = None
) -> Extracted:
    """Write the dense model of one expert into a new folder.

    shared: whose are the tensors that the mixture does not keep per expert; by default the dense parent's for an
    untrained mixture, the mixture's for a trained one. Raises UsageError if the folder exists.
    """
    from bam_core.checkpoint import made_by as found_in
    from bam_core.checkpoint import open_tensors, read_config
    from bam_core.upcycle.extract import expert_slots, extracted

    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists already: nothing was written; give another DIR")
    store = open_store(settings)
    known = known_records(store)
    record = model_record(ref, known)
    source = whole_folder(store, record)
    config = read_config(source)
    expert_slots(config, label)
    entry = _entry(record, label.partition("#")[0], known, store)
    shared = shared or ("mixture" if entry.recorded is None else "parent")
    parent = _parent(entry.parent, known, store, needed=shared == "parent")
    taken: dict[str, str] = {}
    tensors = extracted(
        config,
        open_tensors(source),
        label,
        shared=shared,
        parent=open_tensors(parent) if parent is not None else None,
        recorded=entry.recorded,
        taken=taken,
    )
    facts = {
        "expert": label,
        "trained in the mixture": "yes" if entry.recorded is None else "no",
        "shared tensors": f"the {'dense parent' if shared == 'parent' else 'mixture'}'s",
    }
    origin = _origin(entry.parent, known)
    if origin is not None:
        facts["trained elsewhere as"] = origin
    parents = {"mixture": record.ref}
    if parent is not None and entry.parent is not None:
        parents["dense parent"] = entry.parent
    made_by: dict[str, Any] = {
        "extracted": {"stage": record.stage, "key": record.key, "expert": label, "shared": shared}
    }
    texts = tuple(TextSource.read(found_in(source).get("texts")))
    subject = Subject(
        stage=folder.name,
        key=None,
        what=f"The dense model of expert {label}, taken out of a mixture.",
        config=config.dense(),
        parents=parents,
        texts=texts,
        facts=facts,
    )
    if texts:
        made_by["texts"] = [text.to_json() for text in texts]
    _write(folder, tensors, source / "tokenizer.json", subject, made_by)
    return Extracted(folder, name_of(record.ref), name_of(entry.parent) if parent else None, shared, taken, origin)


@dataclass(frozen=True)
class _Entry:
    """How an expert got into a mixture. parent: its dense model. recorded: None if the mixture was trained since."""

    parent: InputRef | None
    recorded: Recorded | None


def _entry(record: Record, name: str, known: Known, store: ArtifactStore) -> _Entry:
    from bam_core.upcycle.extract import Recorded

    trained = False
    here: Record | None = record
    while here is not None:
        kind = kind_of(here.stage)
        if kind == "mix":
            mix = read_json(store.localize(here) / "mix.json")
            parent = here.inputs.get(dict(mix["experts"]).get(name, ""))
            recorded = Recorded(*_as_read(mix["tensors"], "expert", name))
            return _Entry(parent, None if trained else recorded)
        if kind == "edit":
            edit = read_json(store.localize(here) / "edit.json")
            if edit["operation"] == "add" and edit["name"] == name:
                recorded = Recorded(*_as_read(edit["tensors"], "input", "expert"))
                return _Entry(here.inputs["expert"], None if trained else recorded)
        trained = trained or kind in ("train", "distil")
        ref = here.inputs.get({"edit": "base", "distil": "teacher"}.get(kind, "mix"))
        here = known.get((ref.stage, ref.key)) if ref is not None else None
    return _Entry(None, None)  # what it was made from is gone, so nothing can be compared


def _as_read(tensors: Mapping[str, Any], role: str, name: str) -> tuple[dict[str, str], dict[str, float]]:
    """(digests, factors) of the dense tensors that one model gave; a factor of those that became experts."""
    digests: dict[str, str] = {}
    factors: dict[str, float] = {}
    for target, entry in tensors.items():
        for source in entry["from"]:
            if source[role] == name:
                digests[source["tensor"]] = source["sha256"]
                if "factor" in entry and target == source["tensor"]:
                    factors[target] = entry["factor"]
    return digests, factors


def _origin(ref: InputRef | None, known: Known) -> str | None:
    """Of a dense model that was adopted."""
    record = known.get((ref.stage, ref.key)) if ref is not None else None
    return origin_words(record) if record is not None else None


def _parent(ref: InputRef | None, known: Known, store: ArtifactStore, *, needed: bool) -> Path | None:
    """The dense model's folder, if it is there as it was read."""
    record = known.get((ref.stage, ref.key)) if ref is not None else None
    if record is not None and ref is not None and record.digest == ref.digest:
        return whole_folder(store, record)
    if not needed:
        return None
    what = "made again since, with other bytes" if record is not None else "gone from the store"
    raise UsageError(
        f"the dense model {name_of(ref) if ref else 'behind this expert'} is {what}, and the mixture's own norms and "
        "embeddings are merged; --shared mixture takes those"
    )


def _write(folder: Path, tensors: Any, tokenizer: Path, subject: Subject, made_by: Mapping[str, Any]) -> None:
    """All of the folder or nothing: it gets its name last."""
    from bam_core.checkpoint import write_model

    growing = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        card = model_card(subject)
        write_model(growing, subject.config, tensors, tokenizer=tokenizer, card=card, provenance=made_by)
        growing.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)
