"""The trials of a search in MLflow: a run each, nested under the stage's. Raises what MLflow raises.

Written from `trials.json` when the search is done, and so by `bam lineage sync` too.
"""

from __future__ import annotations

import json

from bam_core.graph.record import Record
from bam_core.graph.stage import kind_of
from infra import mlflow_runs as runs
from infra.mlflow_catalog import Catalog, SeenRun
from infra.mlflow_lineage import Folder

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}
TRIAL_OF, TRIAL = "bam.trial_of", "bam.trial"


def log_trials(catalog: Catalog, stage: SeenRun, record: Record, folder: Folder) -> None:
    """One whole run for each trial: its values, its losses by step, and as its time what it took."""
    if kind_of(record.stage) != "tune" or not (path := folder() / "trials.json").is_file():
        return
    client = catalog.client
    known = {name: run for run in catalog.nested_in(stage.run_id) if (name := run.tags.get(TRIAL))}
    started = runs.milliseconds(record.started)
    for index, trial in enumerate(json.loads(path.read_text())["trials"]):
        run = known.get(trial["name"])
        if run is not None and run.status != "RUNNING":
            continue
        if run is None:
            tags = {TRIAL_OF: record.key, runs.PARENT_RUN: stage.run_id, TRIAL: trial["name"]}
            tags["bam.trial_status"] = trial["status"]
            made = client.create_run(stage.experiment_id, started, tags, trial["name"])
            run = SeenRun(made.info.run_id, stage.experiment_id, "RUNNING", made.info.artifact_uri, started, tags=tags)
            catalog.add(run)
        runs.log_params(client, run.run_id, trial["values"], run.params)
        for rung in trial["rungs"]:
            at = record.started + rung["step"] / 1e3  # any time that is the same when it is told again
            runs.log_metrics(client, run.run_id, {"held_out_loss": rung["loss"]}, rung["step"], at=at)
        took_ms = int(1000 * record.metrics.get("trial_s", {}).get(f"{index:03d}", 0))
        run.status, run.ended = STATUS[trial["status"]], started + took_ms
        client.set_terminated(run.run_id, run.status, run.ended)
