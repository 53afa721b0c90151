"""MLflow as a view for people: a run per pipeline, a nested run per stage, a LoggedModel per model.

Invariants: no method of the port raises - the first failure warns once, then this process leaves MLflow
alone; nothing here decides reuse; handles are plain JSON, so any process can go on with a run; no active-run
globals, so there is never a second run.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bam_core.graph.record import Record
from bam_core.graph.stage import Stage
from bam_core.protocols import Metrics, Tracker
from infra import mlflow_lineage as lineage
from infra import mlflow_runs as runs
from infra.mlflow_connect import (
    absolute_tracking_uri,
    artifact_root,
    connect,
    default_tracking_uri,
    local_path,
)
from infra.mlflow_trials import log_trials
from infra.provenance import capture, mask_text, mask_values

if TYPE_CHECKING:
    from mlflow import MlflowClient

Handle = Mapping[str, Any]
WarningsSink = Callable[[str], None]
Result = TypeVar("Result")

RUN_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_log_warning: WarningsSink = logging.getLogger("bam.mlflow").warning


def open_tracker(tracking_uri: str | None, store_uri: str, warnings_sink: WarningsSink | None = None) -> Tracker:
    """MLflow at `tracking_uri`, or at the store's own database; without either, none, with one warning."""
    uri = tracking_uri or default_tracking_uri(store_uri)
    if uri is not None:
        return MlflowTracker(uri, store_uri, warnings_sink)
    (warnings_sink or _log_warning)(
        "MLflow is off: a remote store cannot hold its database; give --tracking-uri to turn it on"
    )
    return NullTracker()


class NullTracker:
    """Tracks nothing."""

    def start_pipeline(self, pipeline: str, run: str, recipe: Mapping[str, Any]) -> Handle:
        return {}

    def end_pipeline(self, handle: Handle, status: str) -> None:
        pass

    def start_stage(self, parent: Handle, stage: Stage, key: str, inputs: Mapping[str, Record]) -> Handle:
        return {}

    def log(self, handle: Handle, step: int, metrics: Metrics) -> None:
        pass

    def end_stage(self, handle: Handle, record: Record, folder: Path) -> Mapping[str, Any]:
        return {}

    def fail_stage(self, handle: Handle, error: str) -> None:
        pass


def _never_raises(nothing: Callable[[], Any]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a method return `nothing()` when MLflow fails now, has failed before, or never knew the handle."""

    def decorate(method: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(method)
        def guarded(self: MlflowTracker, handle: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_down or not handle:
                return nothing()
            try:
                return method(self, handle, *args, **kwargs)
            except Exception as error:  # of any kind: a view must not stop the work
                self.give_up(error)
                return nothing()

        return guarded

    return decorate


class MlflowTracker:
    """`protocols.Tracker` on an MLflow server or SQLite file. Picklable; safe to use from several threads.

    Handles: {run_id, parent_run_id, experiment_id, models}; models: stage -> model id of each input model.
    """

    def __init__(self, tracking_uri: str, store_uri: str, warnings_sink: WarningsSink | None = None) -> None:
        self.tracking_uri = absolute_tracking_uri(tracking_uri)
        self.store_uri = str(local_path(store_uri) or store_uri.rstrip("/"))
        self.is_down = False
        self._warn = warnings_sink or _log_warning
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process needs. The sink stays here; a tracker that is down stays down, silently."""
        return _reopen, (self.tracking_uri, self.store_uri, self.is_down)

    @_never_raises(dict)
    def start_pipeline(self, pipeline: str, run: str, recipe: Mapping[str, Any]) -> Handle:
        recipe = mask_values(recipe)
        experiment_id = self.experiment(pipeline)
        note = f"Pipeline `{pipeline}`, run `{run}`. Each nested run is a stage that this run made."
        tags = {
            "bam.run": run,
            "bam.pipeline": pipeline,
            "bam.store": mask_text(self.store_uri),
            runs.NOTE: note,
        }
        run_id = self.client.create_run(experiment_id, run_name=run, tags=tags).info.run_id
        runs.set_tags(self.client, run_id, runs.origin_tags(capture(sys.argv)))
        runs.log_params(self.client, run_id, recipe)
        self.client.log_dict(run_id, recipe, "recipe.yaml")
        return {"run_id": run_id, "parent_run_id": None, "experiment_id": experiment_id, "models": {}}

    @_never_raises(lambda: None)
    def end_pipeline(self, handle: Handle, status: str) -> None:
        run_id = handle["run_id"]
        nested = {runs.PARENT_RUN: run_id}
        for left in runs.runs_with(self.client, [handle["experiment_id"]], nested, "= 'RUNNING'"):
            self.client.set_terminated(left.info.run_id, "KILLED")
        self.client.set_terminated(run_id, RUN_STATUS[status])

    @_never_raises(dict)
    def start_stage(self, parent: Handle, stage: Stage, key: str, inputs: Mapping[str, Record]) -> Handle:
        return self.open_stage(parent, stage, key, inputs, started=time.time())

    @_never_raises(lambda: None)
    def log(self, handle: Handle, step: int, metrics: Metrics) -> None:
        runs.log_metrics(self.client, handle["run_id"], metrics, step)

    @_never_raises(dict)
    def end_stage(self, handle: Handle, record: Record, folder: Path) -> Mapping[str, Any]:
        return self.close_stage(handle, record, folder)

    @_never_raises(lambda: None)
    def fail_stage(self, handle: Handle, error: str) -> None:
        runs.set_tags(self.client, handle["run_id"], {"bam.error": mask_text(error)})
        self.client.set_terminated(handle["run_id"], "FAILED")

    def give_up(self, error: Exception) -> None:
        """Warn once and stop: the pipeline goes on without its view."""
        with self._lock:
            first, self.is_down = not self.is_down, True
        if first:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._warn(
                f"MLflow at {mask_text(self.tracking_uri)} is unavailable, so this run goes on untracked: "
                f"{mask_text(reason)[:300]} (`bam lineage sync` fills it in later)"
            )

    # What follows does the work and raises what MLflow raises: `bam lineage sync` wants to know.

    @property
    def client(self) -> MlflowClient:
        """Connected on first use."""
        with self._lock:
            if self._client is None:
                self._client = connect(self.tracking_uri)
            return self._client

    def experiment(self, pipeline: str) -> str:
        """The id of the pipeline's experiment, made when absent."""
        from mlflow.exceptions import MlflowException

        name = f"{runs.EXPERIMENTS}{pipeline}"
        if (found := self.client.get_experiment_by_name(name)) is None:
            root = artifact_root(self.tracking_uri)
            location = None if root is None else (root / pipeline).as_uri()
            try:
                return str(self.client.create_experiment(name, location, runs.EXPERIMENT_TAGS))
            except MlflowException:  # another process was first
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def open_stage(
        self, parent: Handle, stage: Stage, key: str, inputs: Mapping[str, Record], started: float
    ) -> Handle:
        """Open the stage's run, or reopen one that was left unfinished. started: epoch seconds."""
        client, experiment_id, parent_id = self.client, parent["experiment_id"], parent["run_id"]
        tags = runs.identity_tags(stage.name, key, inputs, self.artifact_uri(stage.name, key))
        if parent_id:
            tags[runs.PARENT_RUN] = parent_id
        left = runs.runs_with(client, [experiment_id], {"bam.key": key}, "!= 'FINISHED'")
        if left:
            run_id = left[0].info.run_id
            runs.retire_vanished_parent(client, left[0], parent_id)
            client.update_run(run_id, "RUNNING")
            runs.set_tags(client, run_id, tags)
        else:
            run_id = client.create_run(experiment_id, int(started * 1000), tags, stage.name).info.run_id
        runs.log_params(client, run_id, mask_values(stage.config), known=left[0].data.params if left else ())
        models = lineage.link_inputs(client, run_id, stage, inputs, self.artifact_uri)
        return {
            "run_id": run_id,
            "parent_run_id": parent_id,
            "experiment_id": experiment_id,
            "models": models,
        }

    def close_stage(self, handle: Handle, record: Record, folder: Path) -> dict[str, Any]:
        """Write what the stage made, link its model, and finish its run."""
        client, run_id = self.client, handle["run_id"]
        artifact = self.artifact_uri(record.stage, record.key)
        pages = lineage.model_pages(client, handle["models"])
        facts = {"bam.digest": record.digest, runs.NOTE: runs.describe(record, artifact, pages)}
        attempt = {"bam.attempt": str(record.attempt), **runs.origin_tags(record.provenance)}
        runs.set_tags(client, run_id, facts | attempt)
        runs.log_history(client, run_id, folder)
        identity = runs.identity_tags(record.stage, record.key, record.inputs, artifact)
        model_id = lineage.log_model(client, handle, record, folder, identity | facts)
        runs.log_metrics(client, run_id, record.metrics, runs.last_step(client, run_id), model_id)
        runs.log_files(client, run_id, record, folder, is_model=model_id is not None)
        lineage.log_scores(client, handle, record, folder)
        log_trials(client, handle, record, folder)
        client.set_terminated(run_id, "FINISHED", int(record.ended * 1000))
        return {"run_id": run_id, "model_id": model_id}

    def artifact_uri(self, stage: str, key: str) -> str:
        return mask_text(f"{self.store_uri}/artifacts/{stage}/{key[:12]}")


def _reopen(tracking_uri: str, store_uri: str, is_down: bool) -> MlflowTracker:
    tracker = MlflowTracker(tracking_uri, store_uri)
    tracker.is_down = is_down
    return tracker
