"""The lineage that MLflow tells is that of the files, of a real run: killed in an expert, resumed, and synced anew."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.kit import STAGES, Place
from tests.faults.processes import KillPoint, Process

pytest.importorskip("mlflow")


def require_equal_graphs(place: Place) -> None:
    from infra.mlflow_graph import differences
    from pipelines import wiring

    settings = wiring.Settings(str(place.store))
    for ref, direction in (("report", "up"), ("seed", "down"), ("train.bam", "both")):
        kept = wiring.lineage(ref, settings, direction)  # type: ignore[arg-type]
        told = wiring.lineage_from_mlflow(ref, settings, direction)  # type: ignore[arg-type]
        assert differences(kept, told) == []
        assert len(told.nodes) > 10


def runs_of(place: Place) -> dict[str, list[Any]]:
    """Stage -> its runs."""
    from mlflow import MlflowClient

    client, found = MlflowClient(f"sqlite:///{place.store}/mlflow.db"), {}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, "tags.`bam.key` IS NOT NULL"):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def rows(place: Place) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(place.store / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f'SELECT * FROM "{name}"'), key=repr) for name in names}


def test_killed_resumed_and_synced_anew(empty: Place) -> None:
    at_third = KillPoint("os.rename", "expert.code-*/*/step-000015")
    killed = Process(empty, "run", str(empty.recipe), kill=at_third, tracking=())
    assert killed.end() == -signal.SIGKILL, killed.out
    [left] = runs_of(empty)["expert.code"]
    assert left.info.status == "RUNNING"
    answer = empty.run(tracking=())
    assert answer.status == 0, answer.err
    assert "MLflow" not in answer.err
    require_equal_graphs(empty)
    told = runs_of(empty)
    assert {stage: len(found) for stage, found in told.items()} == dict.fromkeys(STAGES, 1)
    [resumed] = told["expert.code"]
    assert resumed.info.run_id == left.info.run_id
    assert resumed.data.tags["bam.attempt"] == "2"

    first = empty.bam("lineage", "sync", "--json", tracking=())
    assert (first.status, first.json) == (0, {"synced": len(STAGES)}), first.err
    assert runs_of(empty).keys() == told.keys()
    (empty.store / "mlflow.db").unlink()
    shutil.rmtree(empty.store / "mlflow")
    seen = []
    for _ in range(2):
        answer = empty.bam("lineage", "sync", "--json", tracking=())
        assert (answer.status, answer.json) == (0, {"synced": len(STAGES)}), answer.err
        seen.append(rows(empty))
    assert seen[0] == seen[1]
    require_equal_graphs(empty)
    synced = runs_of(empty)
    for stage in STAGES:
        [was], [now] = told[stage], synced[stage]
        assert was.data.params == now.data.params
        assert was.info.status == now.info.status == "FINISHED"
        live_only = {name for name in was.data.metrics if name.startswith("system/") or name in LIVE_ONLY}
        assert was.data.metrics.keys() - live_only == now.data.metrics.keys(), stage


LIVE_ONLY = {"tokens_per_s", "flops_per_s", "flops_utilization"}
"""What only a run that goes on can tell."""
