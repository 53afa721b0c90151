"""Edges and models in MLflow, and the rebuilding of both from records. Raises what MLflow raises.

Edges are written twice: as MLflow's own model and dataset links, which its pages show, and as tags
(`bam.key`, `bam.parent.<role>`), since `search_runs` returns no links and there is no reverse index.
Weights stay in our store: MLflow gets their address and small files only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.graph.lineage import raw_sources
from bam_core.graph.record import Record
from bam_core.graph.stage import Stage
from infra import mlflow_runs as runs
from infra.provenance import mask_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

    from infra.mlflow_tracker import MlflowTracker

MODEL_KINDS = frozenset({"seed", "expert", "mix", "edit", "train", "dense"})
SYNCED = "synced"
"""The pipeline of runs that were rebuilt from records, which do not say what pipeline they were made in."""
_DIGEST_CHARS = 32  # MLflow allows 36


def is_model(record: Record) -> bool:
    """Whether the artifact is a model folder of ours."""
    paths = {output.path for output in record.outputs}
    has_weights = any(path.startswith("model") and path.endswith(".safetensors") for path in paths)
    return record.stage.partition(".")[0] in MODEL_KINDS and "config.json" in paths and has_weights


def link_inputs(
    client: MlflowClient,
    run_id: str,
    stage: Stage,
    inputs: Mapping[str, Record],
    artifact_uri: Callable[[str, str], str],
) -> dict[str, str]:
    """Write the edges into a run. Returns input stage -> model id of those inputs that are models."""
    from mlflow.entities import LoggedModelInput

    models: dict[str, str] = {}
    datasets = [
        _dataset(f"source.{source.domain}", source.digest, source.spec, "source")
        for source in raw_sources(stage.config)
    ]
    for record in inputs.values():
        if is_model(record) and (model_id := find_model(client, record)) is not None:
            models[record.stage] = model_id
        elif record.stage.startswith("data."):
            address = {"uri": artifact_uri(record.stage, record.key)}
            datasets.append(_dataset(record.stage, record.digest, address, stage.function))
    linked = {link.model_id for link in client.get_run(run_id).inputs.model_inputs}
    new = [LoggedModelInput(model_id) for model_id in models.values() if model_id not in linked]
    if new or datasets:
        client.log_inputs(run_id, datasets=datasets, models=new)
    return models


def find_model(client: MlflowClient, record: Record) -> str | None:
    """The READY LoggedModel of exactly these bytes, in any of our experiments."""
    tags = runs.condition({"bam.key": record.key, "bam.digest": record.digest})
    found = client.search_logged_models(runs.experiment_ids(client), tags)
    return next((str(model.model_id) for model in found if model.status == "READY"), None)


def model_pages(client: MlflowClient, models: Mapping[str, str]) -> dict[str, str]:
    """Stage -> where MLflow shows its model, for links between pages."""
    found = {stage: client.get_logged_model(model_id) for stage, model_id in models.items()}
    return {stage: f"#/experiments/{m.experiment_id}/models/{m.model_id}" for stage, m in found.items()}


def log_model(
    client: MlflowClient, handle: Mapping[str, Any], record: Record, folder: Path, tags: Mapping[str, str]
) -> str | None:
    """The artifact's LoggedModel as an output of the run: made now, or found if its bytes were made before.

    None when the artifact is not a model. tags: of a model made now.
    """
    from mlflow.entities import LoggedModelOutput

    if not is_model(record):
        return None
    run_id = handle["run_id"]
    model_id = find_model(client, record) or _create_model(client, handle, record, folder, tags)
    if model_id not in {link.model_id for link in client.get_run(run_id).outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, runs.last_step(client, run_id))])
    return model_id


def log_scores(client: MlflowClient, handle: Mapping[str, Any], record: Record, folder: Path) -> None:
    """Give each evaluated model its perplexities, on its own page and in the run that made it."""
    if record.stage.partition(".")[0] != "evaluate":
        return
    scores = json.loads((folder / "perplexity.json").read_text())["models"]
    for stage, model_id in handle["models"].items():
        if stage in scores:
            domains = scores[stage]["domains"]
            figures = {f"perplexity/{domain}": found["perplexity"] for domain, found in domains.items()}
            figures["average_perplexity"] = scores[stage]["average_perplexity"]
            source = client.get_logged_model(model_id).source_run_id
            runs.log_metrics(client, source, figures, runs.last_step(client, source), model_id)


@dataclass(frozen=True)
class Synced:
    """made: stages whose run was written now. present: how many were there already."""

    made: tuple[str, ...]
    present: int

    @property
    def total(self) -> int:
        return len(self.made) + self.present


def sync(records: Iterable[Record], tracker: MlflowTracker, folder_of: Callable[[Record], Path]) -> Synced:
    """Write what MLflow lacks of these records; again, it writes nothing.

    A run that was cut off is finished where it is; the others go into the experiment `bam/synced`.
    folder_of: a local folder with the artifact's outputs.
    """
    ordered = sorted(records, key=lambda record: record.ended)
    known = {(record.stage, record.key): record for record in ordered}
    made = []
    for record in ordered:
        experiments = runs.experiment_ids(tracker.client)
        whole = {"bam.key": record.key, "bam.digest": record.digest}
        if experiments and runs.runs_with(tracker.client, experiments, whole, "= 'FINISHED'"):
            continue
        found = {role: known.get((ref.stage, ref.key)) for role, ref in record.inputs.items()}
        inputs = {role: parent for role, parent in found.items() if parent is not None}
        payload = record.payload
        stage = Stage(record.stage, payload["function"], payload["version"], payload["config"])
        parent = _parent_of_cut_off_run(tracker, experiments, record.key)
        handle = tracker.open_stage(parent, stage, record.key, inputs, record.started)
        tracker.close_stage(handle, record, folder_of(record))
        made.append(record.stage)
    return Synced(tuple(made), len(ordered) - len(made))


def _parent_of_cut_off_run(tracker: MlflowTracker, experiments: list[str], key: str) -> dict[str, Any]:
    left = experiments and runs.runs_with(tracker.client, experiments, {"bam.key": key}, "!= 'FINISHED'")
    if not left:
        return {"experiment_id": tracker.experiment(SYNCED), "run_id": None}
    run = left[0]
    return {"experiment_id": run.info.experiment_id, "run_id": run.data.tags.get(runs.PARENT_RUN)}


def _create_model(
    client: MlflowClient, handle: Mapping[str, Any], record: Record, folder: Path, tags: Mapping[str, str]
) -> str:
    config = json.loads((folder / "config.json").read_text())
    config.pop("bam", None)  # where the folder came from; the tags say it
    created = client.create_logged_model(
        handle["experiment_id"],
        name=record.stage.replace(".", "-"),  # MLflow allows no dot here
        source_run_id=handle["run_id"],
        tags=dict(tags),
        params=runs.flat_texts(config),
        model_type="mixture" if config.get("attention") or config.get("ffn") else "dense",
    )
    for name in runs.MODEL_FILES:
        if (folder / name).is_file():
            client.log_model_artifact(created.model_id, str(folder / name))
    client.finalize_logged_model(created.model_id, "READY")
    return str(created.model_id)


def _dataset(name: str, digest: str, source: Mapping[str, Any], context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    text = json.dumps(mask_values(source), sort_keys=True)
    dataset = Dataset(name, digest[:_DIGEST_CHARS], "bam", text, profile=json.dumps({"digest": digest}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
