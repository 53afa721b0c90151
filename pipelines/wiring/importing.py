"""`bam import`: a checkpoint of somebody else is looked at, checked and made a model of the store."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.graph.adopted import NAME, NAME_RULE
from bam_core.graph.key import key12, stage_key, stage_payload
from bam_core.graph.pins import Pin, pin_name
from bam_core.graph.record import Record
from bam_core.graph.stage import Stage
from infra import hub_models, model_sources
from infra.provenance import mask_text
from infra.store import ArtifactStore
from pipelines.runner import Display, RunResult
from pipelines.stages import KINDS
from pipelines.wiring.running import run_given
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.config import ModelConfig
    from bam_core.hf import Imported

KIND = "imported"


@dataclass(frozen=True)
class Looked:
    """What a checkpoint is, without its values. place, digest: as `model_sources` has them. shown: for people.

    architecture: of its config.json, None for a model of ours. names: their tensors -> ours, layers as `*`. n_theirs,
    n_ours: tensors. licence: as its README says.
    """

    shown: str
    folder: Path
    place: Mapping[str, Any]
    digest: str
    family: str
    architecture: str | None
    config: ModelConfig
    params: int
    dtype: str
    names: Mapping[str, str]
    n_theirs: int
    n_ours: int
    n_files: int
    size_bytes: int
    tokenizer: str | None
    licence: str | None
    notes: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """What enters the key."""
        hub = {"hub": self.place["id"]} if self.place["kind"] == model_sources.HUB else {}
        return {"digest": self.digest, "family": self.family} | hub


@dataclass(frozen=True)
class ImportedModel:
    """result: of the stage. stage, key: of the artifact. folder: its place, if it was made."""

    looked: Looked
    result: RunResult
    stage: str
    key: str
    record: Record | None


def look_at_model(
    source: str, revision: str | None = None, *, ignore_code: bool = False, values: bool = False
) -> Looked:
    """values: read every tensor too, for NaN and infinity. Raises InvalidInput with all that is wrong."""
    from bam_core.hf import read_checkpoint, value_problems

    place, folder = model_sources.place_of(source, revision)
    imported = read_checkpoint(folder, ignore_code=ignore_code)
    if values and (problems := list(value_problems(imported))):
        raise InvalidInput(f"the model in {folder}", problems)
    return _looked(source, place, folder, imported)


def _looked(source: str, place: Mapping[str, Any], folder: Path, imported: Imported) -> Looked:
    from bam_core.hf import FAMILIES
    from bam_core.nn.costs import params_total

    family = FAMILIES.get(imported.family)
    commit = place.get("revision")
    files = sorted(folder.glob("*.safetensors"))
    theirs = [name for link in imported.links for name in link.theirs]
    ours = imported.tensors.names()
    return Looked(
        shown=mask_text(f"{source}@{commit[:12]}" if commit else str(folder)),
        folder=folder,
        place=place,
        digest=model_sources.digest(place),
        family=imported.family,
        architecture=family.architecture if family is not None else None,
        config=imported.config,
        params=params_total(imported.config),
        dtype=str(imported.dtype).removeprefix("torch."),
        names=_names(imported),
        n_theirs=len(theirs) if imported.links else len(ours),
        n_ours=len(ours),
        n_files=len(files),
        size_bytes=sum(file.stat().st_size for file in files),
        tokenizer=imported.tokenizer.name if imported.tokenizer is not None else None,
        licence=hub_models.licence_of(folder),
        notes=imported.notes,
    )


def _names(imported: Imported) -> dict[str, str]:
    """What maps to what, a layer's tensors once."""

    def short(names: Any) -> str:
        return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))

    return {short(link.theirs): short(link.ours) for link in imported.links}


def import_model(
    source: str,
    name: str | None,
    settings: Settings,
    display: Display,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    ignore_code: bool = False,
    replace: bool = False,
) -> ImportedModel:
    """Make `imported.<name>`, or reuse it. name: None for the last part of the source. dtype: fp32 or bf16; None keeps
    what is stored. replace: the name may stand for another model already.

    Raises InvalidInput with all that is wrong with the checkpoint or the name, before anything is written.
    """
    name = default_name(source) if name is None else name
    if not NAME.fullmatch(name):
        raise InvalidInput("model to import", [Problem("NAME", name, NAME_RULE)])
    looked = look_at_model(source, revision, ignore_code=ignore_code)
    config = {"import": looked.identity()} | ({"dtype": dtype} if dtype is not None else {})
    runtime: dict[str, Any] = {"place": looked.place, "imported_from": looked.shown, "ignore_code": ignore_code}
    runtime |= {"licence": looked.licence} if looked.licence else {}
    stage = Stage(f"{KIND}.{name}", KIND, KINDS[KIND].version, config, {}, runtime)
    key, store = stage_key(stage_payload(stage, {})), open_store(settings)
    if not replace:
        _require_free(store, stage.name, key, looked)
    result = run_given(stage, {}, settings, display)
    record = open_store(settings).record(stage.name, key) if result.status == "done" else None
    if record is not None:
        _pin(open_store(settings, working=True), name, record, looked)
    return ImportedModel(looked, result, stage.name, key, record)


def default_name(source: str) -> str:
    """The last part of a folder or hub id, with `-` for what a name cannot have."""
    last = Path(source).expanduser().resolve().name if Path(source).exists() else source.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-")[:64] or "model"


def _require_free(store: ArtifactStore, stage: str, key: str, looked: Looked) -> None:
    """Raises InvalidInput if the name stands for another model already."""
    others = sorted(store.records(stage), key=lambda record: record.ended)
    if not others or any(record.key == key for record in others):
        return
    there = others[-1]
    origin = there.provenance.get("imported_from", "another checkpoint")
    words = f"is {stage}@{key12(there.key)} already, of {origin}, another model than {looked.shown}"
    remedy = "give another name, or --replace: what was made of the other stays as it is"
    raise InvalidInput("model to import", [Problem("NAME", stage.partition(".")[2], words, remedy)])


def _pin(store: ArtifactStore, name: str, record: Record, looked: Looked) -> None:
    """The checkpoint may not be there for ever, so `bam gc` is not to take the model while the name stands for it."""
    pin = Pin(pin_name(KIND, name), record.stage, record.key, f"imported from {looked.shown}", time.time())
    with suppress(ArtifactDamaged):
        there = store.pins.get(pin.name)
        if there is not None and there.key == pin.key:
            return
    store.pins.write(pin)
