"""What one MLflow run shows of a stage: tags, parameters, curves, files. Raises what MLflow raises."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bam_core.graph.lineage import NodeId
from bam_core.graph.record import InputRef, Record
from bam_core.graph.stage import kind_of
from infra.mlflow_bulk import log_points
from infra.provenance import mask_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

EXPERIMENTS = "bam/"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show runs and models first, not traces of language-model applications."""
NOTE = "mlflow.note.content"
PARENT_RUN = "mlflow.parentRunId"
STAGE, KEY, DIGEST, ARTIFACT, ATTEMPT = "bam.stage", "bam.key", "bam.digest", "bam.artifact", "bam.attempt"
RUN, PIPELINE = "bam.run", "bam.pipeline"
ORIGIN, ADOPTED_FROM = "bam.origin", "bam.adopted_from"
PARENT, READ, ANCESTOR = "bam.parent.", "bam.read.", "bam.ancestor."
"""Before a role: key of what fills it; its stage and the digest of what was read, `stage@digest`. Before the stage of
anything that it was made from: its key, so that one search finds all that was made from it."""

MODEL_KINDS = frozenset({"import", "imported", "seed", "expert", "adopted", "mix", "edit", "train", "distil", "dense"})

# MLflow's limits.
_BATCH, _TOTAL_BATCH = 100, 1000
TAG_CHARS = 8000
_NAME_CHARS, _PARAM_CHARS = 250, 6000
_BAD_NAME_CHARS = re.compile(r"[^\w\-. /:]")


def may_be_model(stage: str) -> bool:
    """Whether a stage of this name makes models."""
    return kind_of(stage) in MODEL_KINDS


def identity_tags(stage: str, key: str, inputs: Mapping[str, Record | InputRef], artifact: str) -> dict[str, str]:
    """What a run or model is and was made from, for searches and to read the graph back."""
    parents = {_name(f"{PARENT}{role}"): parent.key for role, parent in inputs.items()}
    read = {_name(f"{READ}{role}"): f"{parent.stage}@{parent.digest}" for role, parent in inputs.items()}
    return {STAGE: stage, KEY: key, ARTIFACT: artifact, **parents, **read}


def ancestor_tags(ancestors: Iterable[NodeId]) -> dict[str, str]:
    """Of a stage that is there under several keys, the first has the plain name and others have their key in it."""
    tags: dict[str, str] = {}
    for stage, key in sorted(ancestors):
        name = _name(f"{ANCESTOR}{stage}")
        tags[name if name not in tags else f"{name}:{key[:12]}"] = key
    return tags


def run_tags(run: Any, pipeline: Any) -> dict[str, str]:
    """Which run of which recipe made it, as far as it is known."""
    return {name: str(value) for name, value in ((RUN, run), (PIPELINE, pipeline)) if value}


def foreign_tags(config: Mapping[str, Any]) -> dict[str, str]:
    """Of an adopted artifact: what it is in the store that it came from."""
    origin = config.get("origin")
    return {ORIGIN: json.dumps(origin, sort_keys=True)} if isinstance(origin, Mapping) else {}


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
        ADOPTED_FROM: provenance.get("adopted_from"),
    }
    return {name: str(value) for name, value in tags.items() if value}


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    entries = [RunTag(name, value[:TAG_CHARS]) for name, value in tags.items()]
    for batch in _batches(entries, _BATCH):
        client.log_batch(run_id, tags=batch)


def log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Flat scalars. Parameters are write-once: those that a reopened run has are `known`."""
    log_all(client, run_id, _params(config, known), [])


def log_all(client: MlflowClient, run_id: str, params: list[Param], metrics: list[Metric]) -> None:
    """In as few calls as MLflow takes them."""
    while params or metrics:
        some = params[:_BATCH]
        most = _TOTAL_BATCH - len(some)
        client.log_batch(run_id, metrics=metrics[:most], params=some)
        params, metrics = params[_BATCH:], metrics[most:]


def param_names(config: Mapping[str, Any]) -> set[str]:
    return {_name(name) for name in flat_texts(config)}


def flat_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Leaves of a nested configuration by dotted path, as text; a list is one leaf."""
    leaves = _flatten(config, ".")
    return {name: value if isinstance(value, str) else json.dumps(_like_json(value)) for name, value in leaves}


def _params(config: Mapping[str, Any], known: Collection[str]) -> list[Param]:
    from mlflow.entities import Param

    named = {_name(name): text[:_PARAM_CHARS] for name, text in flat_texts(config).items()}
    return [Param(name, text) for name, text in named.items() if name not in known]


def _like_json(value: Any) -> Any:
    """1.0 as 1, as a record has it: what is told live and what is filled in from records must not differ."""
    if isinstance(value, list | tuple):
        return [_like_json(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def log_metrics(
    client: MlflowClient, run_id: str, figures: Mapping[str, Any], step: int, at: float | None = None
) -> None:
    """Numbers only; other values are in the record.

    at: seconds since the epoch, now by default. What is told twice under the same time is there once.
    """
    log_all(client, run_id, [], metrics(figures, step, time.time() if at is None else at))


def log_results(
    client: MlflowClient,
    run_id: str,
    record: Record,
    folder: Path,
    model_id: str | None,
    known_params: Collection[str],
    *,
    is_told: bool,
    is_live: bool,
) -> None:
    """Parameters; curves from `training.json`, but for points that were told live; the record's figures at their end.

    is_told: whether the run may have any such point. is_live: the record was made just now, and not a while ago.
    """
    history = _history(folder)
    names = {"loss", *(history[-1] if history else ())} if is_told else set()
    told = {name: _steps(client, run_id, name) for name in names}
    end = max(final_step(folder), *told.get("loss", ()), 0)
    entries: list[Metric] = []
    for row in history:
        at = record.started + record.seconds * row["step"] / max(end, 1)
        there = {name for name in row if row["step"] in told.get(name, ())} | {"step"}
        if row["step"] == end:
            there |= {name for name in row if record.metrics.get(name) == row[name]}
        entries += metrics({name: row[name] for name in row if name not in there}, row["step"], at)
    if not is_told:
        entries = log_points(client, run_id, entries)
    # Of several figures of one step MLflow shows the newest, by clocks that may differ.
    entries += metrics(record.metrics, end, max(record.ended, time.time()) if is_live else record.ended, model_id)
    log_all(client, run_id, _params(mask_values(record.payload.get("config", {})), known_params), entries)


def _steps(client: MlflowClient, run_id: str, metric: str) -> set[int]:
    return {point.step for point in client.get_metric_history(run_id, metric)}


def final_step(folder: Path) -> int:
    """The last step of a training, so that final figures end its curve; 0 of anything else."""
    history = _history(folder)
    return int(history[-1]["step"]) if history else 0


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "training.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()).get("history", []) if path.is_file() else []
    return found


def condition(tags: Mapping[str, str]) -> str:
    """MLflow's filter for runs or models that carry all these tags."""
    assert not any("'" in value or "`" in name for name, value in tags.items()), f"cannot be searched for: {tags}"
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def experiment_ids(client: MlflowClient) -> list[str]:
    """All experiments of ours."""
    return [found.experiment_id for found in client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")]


def _flatten(values: Mapping[str, Any], join: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{join}{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from _flatten(value, join, path)
        else:
            yield path, value


def metrics(
    figures: Mapping[str, Any],
    step: int,
    at: float,
    model_id: str | None = None,
    judged_on: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> list[Metric]:
    """Numbers as MLflow takes them. at: seconds since the epoch. judged_on: figure -> name and digest of a dataset."""
    from mlflow.entities import Metric

    found = []
    for name, value in _flatten(figures, "/"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            data, digest = judged_on.get(name, (None, None))
            found.append(Metric(_name(name), float(value), milliseconds(at), step, model_id, data, digest))
    return found


def milliseconds(at: float) -> int:
    """Of a time in seconds since the epoch, whatever a record says that it is: MLflow knows no time before it."""
    return int(at * 1000) if isfinite(at) and at > 0 else 0


def _name(text: str) -> str:
    return _BAD_NAME_CHARS.sub("_", text)[:_NAME_CHARS]


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
