"""Edges and models in MLflow: what its own pages show of what was made from what. Raises what MLflow raises.

Edges are written twice: as MLflow's own model and dataset links, and as tags (`infra.mlflow_runs`), since searches
return no model inputs and there is no reverse index. Weights stay in our store: MLflow gets their address and small
files only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.graph.lineage import raw_sources
from bam_core.graph.record import InputRef, Record
from bam_core.graph.stage import Stage, kind_of
from infra import mlflow_runs as runs
from infra.mlflow_artifacts import Artifacts
from infra.mlflow_catalog import Catalog, SeenModel, SeenRun
from infra.provenance import mask_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

DATA = "data."
SOURCE = "source."
"""Begins the name of a dataset that is a text as it was found, before any stage of ours."""
Folder = Callable[[], Path]
"""Gives a local folder with an artifact's small files."""
DIGEST_CHARS = 32  # MLflow allows 36
AVERAGE = "average_perplexity"


def is_model(record: Record) -> bool:
    """Whether the artifact is a model folder of ours."""
    paths = {output.path for output in record.outputs}
    has_weights = any(path.startswith("model") and path.endswith(".safetensors") for path in paths)
    return runs.may_be_model(record.stage) and "config.json" in paths and has_weights


def find_model(client: MlflowClient, record: Record) -> str | None:
    """The READY LoggedModel of exactly these bytes, in any of our experiments."""
    found = Catalog(client).model(record.key, record.digest)
    return found.model_id if found is not None and found.status == "READY" else None


def input_models(catalog: Catalog, inputs: Mapping[str, InputRef]) -> dict[str, str]:
    """Stage -> id of the model of exactly the bytes that were read, for those inputs that are models."""
    found = {}
    for ref in inputs.values():
        model = catalog.model(ref.key, ref.digest) if runs.may_be_model(ref.stage) else None
        if model is not None and model.status == "READY":
            found[ref.stage] = model.model_id
    return found


def link_inputs(
    catalog: Catalog,
    run: SeenRun,
    stage: Stage,
    inputs: Mapping[str, InputRef],
    models: Collection[str],
    linked: Collection[str],
    artifact_uri: Callable[[str, str], str],
) -> None:
    """Write what the run lacks of its edges. models: ids of its input models, of which `linked` are there."""
    from mlflow.entities import LoggedModelInput

    datasets = [
        _dataset(f"{SOURCE}{source.domain}", source.digest, source.spec, "source")
        for source in raw_sources(stage.config)
    ]
    datasets += [
        _dataset(ref.stage, ref.digest, {"uri": artifact_uri(ref.stage, ref.key), "key": ref.key}, stage.function)
        for ref in inputs.values()
        if ref.stage.startswith(DATA)
    ]
    new = [entry for entry in datasets if (entry.dataset.name, entry.dataset.digest) not in run.datasets]
    links = [LoggedModelInput(model_id) for model_id in models if model_id not in linked]
    if new or links:
        catalog.client.log_inputs(run.run_id, datasets=new, models=links)
        run.datasets |= {(entry.dataset.name, entry.dataset.digest) for entry in new}


def log_model(
    catalog: Catalog, run: SeenRun, record: Record, folder: Folder, tags: Mapping[str, str]
) -> SeenModel | None:
    """The artifact's LoggedModel as an output of the run: made now, or found if its bytes were made before.

    None when the artifact is not a model. One that was begun and not finished is finished. folder: asked for only if
    something is written.
    """
    from mlflow.entities import LoggedModelOutput

    if not is_model(record):
        return None
    model = catalog.model(record.key, record.digest)
    if model is None or model.status != "READY":
        model = _complete(catalog, model or _begin(catalog, run, record, folder(), tags), folder())
    if model.model_id not in run.outputs:
        step = runs.final_step(folder())
        catalog.client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step)])
        run.outputs[model.model_id] = step
    return model


def log_scores(
    catalog: Catalog, models: Mapping[str, str], record: Record, folder: Folder, *, only_missing: bool = False
) -> bool:
    """Give each evaluated model its perplexities, on its own page and in the run that made it. Returns whether it did.

    models: stage -> model id, of the inputs of `record`. only_missing: those that have none.
    """
    if kind_of(record.stage) != "evaluate":
        return False
    wanted = {stage: catalog.model_of_id(model_id) for stage, model_id in models.items()}
    if only_missing:
        wanted = {stage: model for stage, model in wanted.items() if AVERAGE not in model.metrics}
    path = folder() / "perplexity.json" if wanted else None
    if path is None or not path.is_file():
        return False
    scores, told = json.loads(path.read_text())["models"], False
    judged_on = {  # a model's page lists the data that its figures name
        f"perplexity/{ref.stage.removeprefix(DATA)}": (ref.stage, ref.digest[:DIGEST_CHARS])
        for ref in record.inputs.values()
        if ref.stage.startswith(DATA)
    }
    roles = {ref.stage: role for role, ref in record.inputs.items()}  # under which it has scored them
    for stage, model in wanted.items():
        run = catalog.run(model.source_run_id)
        if (role := roles.get(stage)) in scores and run is not None:
            found = scores[role]["domains"]
            figures = {f"perplexity/{domain}": found[domain]["perplexity"] for domain in found}
            figures[AVERAGE] = scores[role][AVERAGE]
            step = run.outputs.get(model.model_id, 0)
            told_of = runs.metrics(figures, step, record.ended, model.model_id, judged_on)
            runs.log_all(catalog.client, run.run_id, [], told_of)
            model.metrics |= figures.keys()
            told = True
    return told


def mend_tags(catalog: Catalog, model: SeenModel, tags: Mapping[str, str]) -> bool:
    """Write the tags that a model lacks, or has otherwise. Returns whether there were any.

    Only of the run that made it: equal bytes that were made again stay one model, and say of whom they were first.
    """
    run = catalog.run(model.source_run_id)
    if run is not None and run.tags.get(runs.ATTEMPT) != tags.get(runs.ATTEMPT):
        return False
    new = {name: value for name, value in tags.items() if model.tags.get(name) != value}
    if new:
        catalog.client.set_logged_model_tags(model.model_id, new)
        model.tags |= new
    return bool(new)


def _begin(catalog: Catalog, run: SeenRun, record: Record, folder: Path, tags: Mapping[str, str]) -> SeenModel:
    config = json.loads((folder / "config.json").read_text())
    config.pop("bam", None)  # where the folder came from; the tags say it
    created = catalog.client.create_logged_model(
        run.experiment_id,
        name=record.stage.replace(".", "-"),  # MLflow allows no dot here
        source_run_id=run.run_id,
        tags=dict(tags),
        params=runs.flat_texts(config),
        model_type="mixture" if config.get("attention") or config.get("ffn") else "dense",
    )
    files = created.artifact_location
    model = SeenModel(created.model_id, run.experiment_id, "PENDING", files, run.run_id, dict(tags))
    catalog.add_model(model)
    return model


def _complete(catalog: Catalog, model: SeenModel, folder: Path) -> SeenModel:
    Artifacts(model.files, catalog.client.tracking_uri).add_model_files(folder)
    catalog.client.finalize_logged_model(model.model_id, "READY")
    model.status = "READY"
    return model


def _dataset(name: str, digest: str, source: Mapping[str, Any], context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    text = json.dumps(mask_values(source), sort_keys=True)
    dataset = Dataset(name, digest[:DIGEST_CHARS], "bam", text, profile=json.dumps({"digest": digest}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
