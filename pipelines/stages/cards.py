"""What a stage's model card is of, gathered from the stage's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bam_core.card import Mixed, Subject, TextSource, bases_of, each_once, parents_of, what_it_is
from bam_core.checkpoint import CONFIG, made_by
from bam_core.config import ModelConfig
from bam_core.documents import read_json
from bam_core.graph.record import Record
from bam_core.protocols import StageContext
from pipelines.stages.inputs import REFERENCE

MIX_FILE = "mix.json"


def subject_of(context: StageContext, config: ModelConfig, **more: Any) -> Subject:
    """config: of the model that the stage makes. more: other fields of the subject.

    Models that a training is only compared with are none that it is made from.
    """
    inputs = {role: record.ref for role, record in context.records.items() if not role.startswith(REFERENCE)}
    subject = Subject(
        stage=context.stage,
        key=context.key,
        what=what_it_is(context.stage, context.config),
        config=config,
        parents=parents_of(inputs),
        bases=bases_of(inputs, context.records.get("mix")),
        texts=texts_behind(context.records, context.inputs),
        **more,
    )
    return subject.without_statements() if subject.kind == "seed" else subject


def texts_behind(records: Mapping[str, Record], folders: Mapping[str, Path]) -> tuple[TextSource, ...]:
    """The texts that a stage reads, then those that its models carry with them from where they were made."""
    own = [TextSource.of(record) for record in records.values() if record.stage.startswith("data.")]
    return each_once([*own, *(text for role in records for text in carried(folders[role]))])


def carried(folder: Path) -> list[TextSource]:
    """The texts that a model folder names in its config.json; none of what is no model, or older than that."""
    return list(TextSource.read(made_by(folder).get("texts"))) if (folder / CONFIG).is_file() else []


def carrying(texts: tuple[TextSource, ...]) -> dict[str, Any]:
    """For `write_model(provenance=...)`: what `carried` reads, so that licences go where the weights go."""
    return {"texts": [text.to_json() for text in texts]}


def mixed_of(context: StageContext) -> Mixed | None:
    """How the mixture that a training starts from was made; None if it starts from another model."""
    path = context.inputs["mix"] / MIX_FILE if "mix" in context.inputs else None
    return Mixed.of(context.records["mix"].stage, read_json(path)) if path is not None and path.is_file() else None
