"""What is on record of a model's making: its ancestors, their files, and who made a tensor (`bam blame`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bam_core.config import ModelConfig
from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, UsageError
from bam_core.graph import refs
from bam_core.graph.key import key12
from bam_core.graph.record import InputRef, Record
from infra.store import ArtifactStore
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.graph.blame import Origin

Known = Mapping[tuple[str, str], Record]


def blame(ref: str, tensor: str, settings: Settings) -> Origin:
    """Who made this tensor. tensor: a name, and [EXPERT] for one expert's part. Raises UsageError."""
    from bam_core.graph import blame as walk
    from bam_core.nn.shapes import tensor_shapes

    store = open_store(settings)
    known = known_records(store)
    record = model_record(ref, known)
    documents = {(made.stage, made.key): _documents(store, made) for made in (record, *upstream(record, known))}
    config = ModelConfig.from_json(
        {name: value for name, value in documents[record.stage, record.key]["config.json"].items() if name != "bam"}
    )
    shapes = tensor_shapes(config)
    name, expert = walk.parse_tensor(tensor, shapes.keys())
    is_stacked = shapes[name] != tensor_shapes(config.dense()).get(name) and ".shared." not in name
    branch: Literal["attention", "ffn"] = "attention" if ".attn." in name else "ffn"
    labels = config.expert_labels(branch) if is_stacked else ()
    index = None if expert is None else walk.expert_index(expert, name, labels)
    return walk.blame(record, name, index, known, documents)


def _documents(store: ArtifactStore, record: Record) -> dict[str, dict[str, Any]]:
    """The JSON files of a model that say how it was made."""
    wanted = {"config.json", "mix.json", "edit.json", "import.json"} & {output.path for output in record.outputs}
    if "config.json" not in wanted:
        return {}
    folder = store.localize(record)
    return {name: read_json(folder / name) for name in sorted(wanted)}


def known_records(store: ArtifactStore) -> dict[tuple[str, str], Record]:
    return {(record.stage, record.key): record for record in store.records()}


def model_record(ref: str, known: Known) -> Record:
    record = refs.resolve(ref, known.values())
    if not any(output.path == "config.json" for output in record.outputs):
        raise UsageError(f"{ref}: {record.stage} makes no model; try one of mix.*, train.*, edit.*, expert.*")
    return record


def upstream(record: Record, known: Known) -> list[Record]:
    """All that it was made from and that is still there, the nearest first."""
    found: dict[tuple[str, str], Record] = {}
    ahead = [record]
    while ahead:
        refs_ahead = [ref for made in ahead for ref in made.inputs.values()]
        new = {(ref.stage, ref.key): known[ref.stage, ref.key] for ref in refs_ahead if (ref.stage, ref.key) in known}
        ahead = [made for node, made in new.items() if node not in found]
        found |= new
    return list(found.values())


def whole_folder(store: ArtifactStore, record: Record) -> Path:
    """The artifact's folder, if all in it is as recorded. A remote store's files were hashed as they arrived."""
    if store.storage.is_local and (faults := store.verify(record)):
        raise ArtifactDamaged(f"{name_of(record.ref)}: {faults[0]}")
    return store.localize(record)


def name_of(ref: InputRef | None) -> str:
    return "?" if ref is None else f"{ref.stage}@{key12(ref.key)}"
