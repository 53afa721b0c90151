"""A search in MLflow: a run for each trial under the stage's, written once, and by a sync too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.mlflow_sync import sync
from infra.mlflow_tracker import MlflowTracker
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, RECIPE, TinyPipeline, fresh_tracker, key_of, stage_of

pytestmark = MLFLOW_WARNINGS

LR = "phases.expert.lr"
TRIALS = [
    {
        "name": "trial-000-aaaa",
        "values": {LR: 0.01},
        "status": "finished",
        "rungs": [{"step": 2, "loss": 4.0}, {"step": 6, "loss": 3.0}],
        "train_tokens": 384,
    },
    {
        "name": "trial-001-bbbb",
        "values": {LR: 0.0001},
        "status": "stopped",
        "rungs": [{"step": 2, "loss": 5.0}],
        "train_tokens": 128,
    },
    {"name": "trial-002-cccc", "values": {LR: 9.0}, "status": "diverged", "rungs": [], "train_tokens": 0},
]
METRICS = {"best_loss": 3.0, "n_trials": 3, "trial_s": {"000": 8.0, "001": 2.5, "002": 0.5}}


def searched(tracker: MlflowTracker, store: Path) -> TinyPipeline:
    pipeline = TinyPipeline(store)
    handle = tracker.start_pipeline("tiny", "tiny-1", RECIPE)
    files = {"trials.json": json.dumps({"stage": "expert.law", "space": {}, "trials": TRIALS})}
    pipeline.run_stage(tracker, handle, stage_of("tune.lr", {"trials": 3}), files, METRICS)
    tracker.end_pipeline(handle, "done")
    return pipeline


def trials_of(tracker: MlflowTracker) -> dict[str, Any]:
    """Name -> its run, of those nested under the search's."""
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    (stage,) = tracker.client.search_runs(experiments, f"tags.`bam.key` = '{key_of('tune.lr')}'")
    nested = tracker.client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{stage.info.run_id}'")
    assert len({run.info.run_name for run in nested}) == len(nested)
    return {run.info.run_name: run for run in nested}


def test_each_trial_is_a_run_with_its_values_and_its_losses(tmp_path: Path) -> None:
    tracker = fresh_tracker(tmp_path)
    record = searched(tracker, tmp_path).records["tune.lr"]
    runs = trials_of(tracker)
    assert {name: run.info.status for name, run in runs.items()} == {
        "trial-000-aaaa": "FINISHED",
        "trial-001-bbbb": "KILLED",
        "trial-002-cccc": "FAILED",
    }
    first = runs["trial-000-aaaa"]
    assert first.data.params == {LR: "0.01"}
    points = tracker.client.get_metric_history(first.info.run_id, "held_out_loss")
    assert {point.step: point.value for point in points} == {2: 4.0, 6: 3.0}
    assert first.data.tags["bam.trial_of"] == key_of("tune.lr")
    assert first.info.start_time == record.started * 1000
    assert first.info.end_time - first.info.start_time == 8000


def test_a_sync_writes_them_where_mlflow_was_down_and_never_twice(tmp_path: Path) -> None:
    down = fresh_tracker(tmp_path)
    down.is_down = True
    pipeline = searched(down, tmp_path)
    tracker = fresh_tracker(tmp_path)
    record = pipeline.records["tune.lr"]
    sync([record], [], tracker, pipeline.folder)
    made = trials_of(tracker)
    assert len(made) == 3
    [run] = tracker.client.search_runs(
        [found.experiment_id for found in tracker.client.search_experiments()],
        f"tags.`bam.key` = '{record.key}'",
    )
    handle = {"run_id": run.info.run_id, "experiment_id": run.info.experiment_id, "models": {}, "pages": {}}
    tracker.client.set_terminated(made["trial-001-bbbb"].info.run_id, "RUNNING")
    tracker.live.close_stage(handle, record, pipeline.folder(record))  # as when the first was cut off in the middle
    assert trials_of(tracker)["trial-001-bbbb"].info.status == "KILLED"
    assert {run.info.run_id for run in trials_of(tracker).values()} == {run.info.run_id for run in made.values()}
