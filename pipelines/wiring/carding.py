"""The card of a model with all that its store knows of it: for `bam card`, MLflow's pages and exports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bam_core.card import (
    Evaluation,
    Made,
    Mixed,
    Subject,
    TextSource,
    bases_of,
    each_once,
    full_card,
    parents_of,
    scored_as,
    what_it_is,
)
from bam_core.config import ModelConfig
from bam_core.errors import ArtifactDamaged
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from bam_core.graph.stage import kind_of
from infra.adopting import foreign_records
from infra.record_files import artifact_folder
from infra.store import ArtifactStore
from pipelines.wiring.origins import Known, known_records, model_record, name_of, upstream
from pipelines.wiring.settings import Settings, open_store


@dataclass(frozen=True)
class Card:
    """text: Markdown with its front matter."""

    record: Record
    text: str


def card(ref: str, settings: Settings) -> Card:
    """Raises UsageError if `ref` is no model, ArtifactDamaged if its files cannot be read."""
    store = open_store(settings)
    known = known_records(store)
    record = model_record(ref, known)
    return Card(record, card_text(store, record, known, store.runs.all()))


def card_text(store: ArtifactStore, record: Record, known: Known, runs: Sequence[Run]) -> str:
    """known: all records of the store. runs: all that are on record. Reads no weights."""
    behind = upstream(record, known)
    foreign = [other.record for other in foreign_records(store, (record, *behind))]
    ancestors = [*behind, *(other for other in foreign if (other.stage, other.key) not in known)]
    made = Made(record, ancestors, _run_of(record, runs))
    return full_card(_subject(store, record, known, ancestors, runs), made, _evaluation(store, record, known))


def _subject(
    store: ArtifactStore, record: Record, known: Known, ancestors: Sequence[Record], runs: Sequence[Run]
) -> Subject:
    """As the stage had it, but for what was stated of licences since."""
    config = _document(store, record, "config.json") or {}
    kept = config.get("bam")
    carried = TextSource.read(kept.get("texts") if isinstance(kept, Mapping) else None)
    ref = record.inputs.get("mix")
    mixture = known.get((ref.stage, ref.key)) if ref is not None else None
    training = _document(store, record, "training.json") or {}
    payload = record.payload.get("config", {})
    return Subject(
        stage=record.stage,
        key=record.key,
        what=what_it_is(record.stage, payload),
        config=ModelConfig.from_json({n: v for n, v in config.items() if n != "bam"}, name_of(record.ref)),
        parents=parents_of(record.inputs),
        bases=bases_of(record.inputs, mixture),
        texts=each_once([*_texts(record, ancestors, runs), *carried]),
        phase=training.get("phase") or payload.get("phase", {}),
        figures=record.metrics,
        mixed=_mixed(store, record) or (_mixed(store, mixture) if mixture is not None else None),
        edit=_document(store, record, "edit.json"),
    )


def _mixed(store: ArtifactStore, record: Record) -> Mixed | None:
    mix = _document(store, record, "mix.json")
    return None if mix is None else Mixed.of(record.stage, mix)


def _texts(record: Record, ancestors: Sequence[Record], runs: Sequence[Run]) -> Iterator[TextSource]:
    """All texts on record behind a model, its own first, with the licence that was stated last."""
    from pipelines.recipe.sources import LICENCES  # pydantic is slow to import, and few commands write a card

    read = {(ref.stage, ref.key) for ref in record.inputs.values()}
    data = [other for other in ancestors if other.stage.startswith("data.")]
    for found in sorted(data, key=lambda other: (other.stage, other.key) not in read):
        text = TextSource.of(found)
        licence = _stated(found, text.domain, runs) or text.licence or LICENCES.get(text.kind)
        yield replace(text, licence=licence)


def _stated(data: Record, domain: str, runs: Sequence[Run]) -> str | None:
    """The licence in the recipe of the newest run that used this text and states one."""
    for run in reversed(runs):
        if (data.stage, data.key) in run.artifacts():
            source = _part(_part(run.recipe, "domains"), domain).get("source")
            each = source if isinstance(source, list) else [source]
            stated = [one.get("licence") for one in each if isinstance(one, Mapping)]
            if said := [licence for licence in stated if isinstance(licence, str) and licence.strip()]:
                return "; ".join(dict.fromkeys(said))
    return None


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def _run_of(record: Record, runs: Sequence[Run]) -> Run | None:
    """The run that made it; of an older record, which names none, the newest that used it."""
    name = record.provenance.get("run")
    used = [run for run in runs if run.name == name or (name is None and (record.stage, record.key) in run.artifacts())]
    return used[-1] if used else None


def _evaluation(store: ArtifactStore, record: Record, known: Known) -> Evaluation | None:
    """The newest that scored these very bytes."""
    judges = [other for other in known.values() if kind_of(other.stage) == "evaluate"]
    done = [other for other in judges if scored_as(record, other) is not None]
    for evaluate in sorted(done, key=lambda other: other.ended, reverse=True):
        found = Evaluation.of(record, evaluate, _document(store, evaluate, "perplexity.json") or {})
        if found is not None:
            return found
    return None


def _document(store: ArtifactStore, record: Record, name: str) -> dict[str, Any] | None:
    """A JSON file of an artifact; None if it has no such output. Raises ArtifactDamaged if it cannot be read."""
    if name not in {output.path for output in record.outputs}:
        return None
    data = store.storage.read(f"{artifact_folder(record.stage, record.key)}/{name}")
    try:
        found = json.loads(data or b"")
    except ValueError as error:
        raise ArtifactDamaged(f"{name_of(record.ref)}: {name} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ArtifactDamaged(f"{name_of(record.ref)}: {name} must hold a JSON object")
    return found
