"""What one MLflow run shows of a stage: tags, parameters, curves, files, words. Raises what MLflow raises."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bam_core.graph.record import InputRef, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

EXPERIMENTS = "bam/"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show runs and models first, not traces of language-model applications."""
NOTE = "mlflow.note.content"
PARENT_RUN = "mlflow.parentRunId"
MODEL_FILES = ("config.json", "MODEL_CARD.md")
"""Small files of a model folder that go to the model's own page."""

MAX_FILE_BYTES = 8_000_000
_SMALL_FILES = frozenset({".json", ".html", ".csv", ".svg", ".md"})
_KEPT_IN_STORE = frozenset({"tokenizer.json", "model.safetensors.index.json"})
_MAX_FILES_LISTED = 40

# MLflow's limits.
_BATCH, _METRIC_BATCH = 100, 1000
_NAME_CHARS, _TAG_CHARS, _PARAM_CHARS = 250, 8000, 6000
_BAD_NAME_CHARS = re.compile(r"[^\w\-. /:]")


def identity_tags(stage: str, key: str, inputs: Mapping[str, Record | InputRef], artifact: str) -> dict[str, str]:
    """What a run or model is and was made from, for searches."""
    parents = {f"bam.parent.{role}": parent.key for role, parent in inputs.items()}
    return {"bam.stage": stage, "bam.key": key, "bam.artifact": artifact, **parents}


def origin_tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Who, where and from which commit, under the names that MLflow's pages know."""
    program, *words = provenance.get("argv") or [""]
    tags = {
        "mlflow.user": provenance.get("user"),
        "mlflow.source.name": " ".join([PurePosixPath(program).name, *words]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": provenance.get("git_commit"),
        "bam.host": provenance.get("host"),
        "bam.dirty_diff_sha256": provenance.get("dirty_diff_sha256"),
    }
    return {name: str(value) for name, value in tags.items() if value}


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    entries = [RunTag(name, value[:_TAG_CHARS]) for name, value in tags.items()]
    for batch in _batches(entries, _BATCH):
        client.log_batch(run_id, tags=batch)


def log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Flat scalars. Parameters are write-once: those that a reopened run has are `known`."""
    from mlflow.entities import Param

    params = [Param(_name(name), text[:_PARAM_CHARS]) for name, text in flat_texts(config).items()]
    for batch in _batches([param for param in params if param.key not in known], _BATCH):
        client.log_batch(run_id, params=batch)


def flat_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Leaves of a nested configuration by dotted path, as text; a list is one leaf."""
    leaves = _flatten(config, ".")
    return {name: value if isinstance(value, str) else json.dumps(_like_json(value)) for name, value in leaves}


def _like_json(value: Any) -> Any:
    """1.0 as 1, as a record has it: what is told live and what is filled in from records must not differ."""
    if isinstance(value, list | tuple):
        return [_like_json(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def log_metrics(
    client: MlflowClient, run_id: str, metrics: Mapping[str, Any], step: int, model_id: str | None = None
) -> None:
    """Numbers only; other values are in the record. With a model id they show on the model's page as well."""
    if entries := _metrics(metrics, step, model_id):
        client.log_batch(run_id, metrics=entries)


def log_history(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Complete the curves from `training.json`: live figures are sampled, and a synced run has none."""
    path = folder / "training.json"
    history = json.loads(path.read_text()).get("history", []) if path.is_file() else []
    live = {metric.step for metric in client.get_metric_history(run_id, "loss")} if history else set()
    entries: list[Metric] = []
    for row in history:
        if row["step"] not in live:
            entries += _metrics({name: row[name] for name in row if name != "step"}, row["step"])
    for batch in _batches(entries, _METRIC_BATCH):
        client.log_batch(run_id, metrics=batch)


def last_step(client: MlflowClient, run_id: str) -> int:
    """The step of the newest loss, so that final figures end its curve; 0 without one."""
    return max((metric.step for metric in client.get_metric_history(run_id, "loss")), default=0)


def log_files(client: MlflowClient, run_id: str, record: Record, folder: Path, is_model: bool) -> None:
    """Small files that a person reads: tables, figures, the report. Weights and shards stay in the store."""
    left_out = _KEPT_IN_STORE.union(MODEL_FILES if is_model else ())
    for output in record.outputs:
        path = PurePosixPath(output.path)
        if path.suffix in _SMALL_FILES and output.size <= MAX_FILE_BYTES and output.path not in left_out:
            parent = None if path.parent == PurePosixPath(".") else str(path.parent)
            client.log_artifact(run_id, str(folder / path), parent)


def describe(record: Record, artifact: str, pages: Mapping[str, str]) -> str:
    """Markdown for the page of a run or model: what it is, what it was made from, its files.

    pages: input stage -> the part of an MLflow address after its host, for those inputs that have a page.
    """
    name = f"{record.stage}@{record.key[:12]}"
    parents = []
    for role, ref in record.inputs.items():
        parent = f"`{ref.stage}@{ref.key[:12]}`"
        parents.append(f"| {role} | {f'[{parent}]({pages[ref.stage]})' if ref.stage in pages else parent} |")
    files = [f"| `{output.path}` | {output.size:,} |" for output in record.outputs[:_MAX_FILES_LISTED]]
    if (more := len(record.outputs) - _MAX_FILES_LISTED) > 0:
        files.append(f"| and {more} more | |")
    lines = [
        f"**{record.stage}**, made in {record.seconds:,.1f} s, attempt {record.attempt}.",
        "",
        f"- artifact: `{artifact}`",
        f"- what made it: `bam lineage {name}`",
        "",
        *(["| input | artifact |", "|---|---|", *parents, ""] if parents else []),
        "| file | bytes |",
        "|---|---:|",
        *files,
    ]
    return "\n".join(lines)[:_TAG_CHARS]


def condition(tags: Mapping[str, str]) -> str:
    """MLflow's filter for runs or models that carry all these tags."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def runs_with(client: MlflowClient, experiment_ids: list[str], tags: Mapping[str, str], status: str) -> list[Run]:
    """Runs with all these tags and a status such as `= 'RUNNING'`, newest first."""
    return list(client.search_runs(experiment_ids, f"{condition(tags)} and attributes.status {status}"))


def experiment_ids(client: MlflowClient) -> list[str]:
    """All experiments of ours."""
    return [found.experiment_id for found in client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")]


def retire_vanished_parent(client: MlflowClient, run: Run, parent_id: str | None) -> None:
    """Close the pipeline run of a driver that was killed: it left open a stage that is now another's."""
    old = run.data.tags.get(PARENT_RUN)
    if run.info.status == "RUNNING" and old and old != parent_id and client.get_run(old).info.status == "RUNNING":
        client.set_terminated(old, "KILLED")


def _flatten(values: Mapping[str, Any], join: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{join}{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from _flatten(value, join, path)
        else:
            yield path, value


def _metrics(metrics: Mapping[str, Any], step: int, model_id: str | None = None) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [
        Metric(_name(name), float(value), now, step, model_id)
        for name, value in _flatten(metrics, "/")
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _name(text: str) -> str:
    return _BAD_NAME_CHARS.sub("_", text)[:_NAME_CHARS]


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
