"""The trials of a search in MLflow: a run each, nested under the stage's. Raises what MLflow raises.

Written from `trials.json` when the search is done, and so by `bam lineage sync` too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.graph.record import Record
from infra import mlflow_runs as runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}
TRIAL_OF, TRIAL = "bam.trial_of", "bam.trial"


def log_trials(client: MlflowClient, handle: Mapping[str, Any], record: Record, folder: Path) -> None:
    """One run for each trial that has none: its values, its losses by step, and as its time what it took."""
    path = folder / "trials.json"
    if record.stage.partition(".")[0] != "tune" or not path.is_file():
        return
    experiment, parent = handle["experiment_id"], handle["run_id"]
    tags = {TRIAL_OF: record.key, runs.PARENT_RUN: parent}
    known = {run.data.tags.get(TRIAL) for run in client.search_runs([experiment], runs.condition(tags))}
    started = int(record.started * 1000)
    for index, trial in enumerate(json.loads(path.read_text())["trials"]):
        if trial["name"] in known:
            continue
        own = {TRIAL: trial["name"], "bam.trial_status": trial["status"]}
        run_id = client.create_run(experiment, started, tags | own, trial["name"]).info.run_id
        runs.log_params(client, run_id, trial["values"])
        for rung in trial["rungs"]:
            runs.log_metrics(client, run_id, {"held_out_loss": rung["loss"]}, rung["step"])
        took_ms = int(1000 * record.metrics.get("trial_s", {}).get(f"{index:03d}", 0))
        client.set_terminated(run_id, STATUS[trial["status"]], started + took_ms)
