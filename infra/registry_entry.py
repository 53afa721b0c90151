"""What MLflow's registry says of a model version: tags to search by, and a page that leads to all that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bam_core.graph.key import key12
from bam_core.graph.record import Record
from infra import mlflow_runs as runs
from infra.mlflow_catalog import Catalog
from infra.mlflow_lineage import find_model, is_model
from infra.mlflow_pages import code, model_address, run_address

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

DESCRIPTION_CHARS = 5000  # MLflow's column


@dataclass(frozen=True)
class Entry:
    """What is to be registered: the artifact, its LoggedModel, and what the version's page says."""

    record: Record
    model: LoggedModel
    tags: Mapping[str, str]
    description: str


def logged_model(client: MlflowClient, record: Record) -> LoggedModel | None:
    """The LoggedModel of exactly these bytes, or None where MLflow has not heard of them."""
    model_id = find_model(client, record)
    return None if model_id is None else client.get_logged_model(model_id)


def entry(
    client: MlflowClient, record: Record, model: LoggedModel, made_from: Sequence[Record], artifact: str
) -> Entry:
    """made_from: all models behind the artifact, the nearest first."""
    run = client.get_run(model.source_run_id) if model.source_run_id else None
    pipeline = _pipeline_run(client, run)
    known = pipeline.data.tags if pipeline else {}
    made_by = [record.provenance.get(name) or known.get(f"bam.{name}") for name in ("run", "pipeline")]
    identity = runs.identity_tags(record.stage, record.key, record.inputs, artifact)
    tags = {tag: value for tag, value in identity.items() if not tag.startswith(runs.READ)}
    tags |= {runs.DIGEST: record.digest, **runs.run_tags(*made_by)}
    return Entry(record, model, tags, _description(client, record, model, run, pipeline, made_from, artifact))


def _pipeline_run(client: MlflowClient, run: Run | None) -> Run | None:
    parent = run.data.tags.get(runs.PARENT_RUN) if run else None
    return client.get_run(parent) if parent else None


def _description(
    client: MlflowClient,
    record: Record,
    model: LoggedModel,
    run: Run | None,
    pipeline: Run | None,
    made_from: Sequence[Record],
    artifact: str,
) -> str:
    """Markdown with a way to every page that says how it was made; what does not fit is left to `bam lineage`."""
    name = _name(record)
    lines = [
        name,  # lists of versions show the beginning as it stands
        "",
        f"- its page: [figures, inputs, card]({_model_page(model)})",
        *([f"- made by the run [{code(run.info.run_name)}]({_run_page(run)})"] if run else []),
        *([f"- of the pipeline run [{code(pipeline.info.run_name)}]({_run_page(pipeline)})"] if pipeline else []),
        f"- artifact: {code(artifact)}",
        f"- digest: `{record.digest}`",
        f"- all that made it: `bam lineage {name}`",
    ]
    text, catalog, models = "\n".join(lines), Catalog(client), [made for made in made_from if is_model(made)]
    if models:
        text += "\n\n| models that it was made from |\n|---|"
    for place, made in enumerate(models):
        page = catalog.page(made.ref)
        row = f"`{_name(made)}`" if page is None else f"[`{_name(made)}`]({page})"
        rest = f"\n| and {len(models) - place} more |"
        if len(text) + len(row) + len(rest) + 5 > DESCRIPTION_CHARS:
            return text + rest
        text += f"\n| {row} |"
    return text[:DESCRIPTION_CHARS]


def _name(record: Record) -> str:
    return f"{record.stage}@{key12(record.key)}"


def _model_page(model: LoggedModel) -> str:
    return model_address(model.experiment_id, model.model_id)


def _run_page(run: Run) -> str:
    return run_address(run.info.experiment_id, run.info.run_id)
