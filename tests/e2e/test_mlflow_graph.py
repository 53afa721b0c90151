"""The lineage that MLflow tells is that of the files, of a real run: killed in an expert, resumed, and synced anew."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import STAGES, Place
from tests.faults.processes import KillPoint, Process

pytest.importorskip("mlflow")

LIVE_ONLY = {"tokens_per_s", "flops_per_s", "flops_utilization", "memory_estimate_bytes"}
"""What only a run that goes on can tell."""


def require_equal_graphs(place: Place, uri: str | None = None) -> None:
    from infra.mlflow_graph import differences
    from pipelines import wiring

    settings = wiring.Settings(str(place.store), uri)
    for ref, direction in (("report", "up"), ("seed", "down"), ("train.bam", "both")):
        kept = wiring.lineage(ref, settings, direction)  # type: ignore[arg-type]
        told = wiring.lineage_from_mlflow(ref, settings, direction)  # type: ignore[arg-type]
        assert differences(kept, told) == []
        assert len(told.nodes) >= 10


def runs_of(file: Path) -> dict[str, list[Any]]:
    """Stage -> its runs in an MLflow."""
    from mlflow import MlflowClient

    client, found = MlflowClient(f"sqlite:///{file}"), {}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, "tags.`bam.key` IS NOT NULL"):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def rows(file: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(file)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f'SELECT * FROM "{name}"'), key=repr) for name in names}


def synced(place: Place, file: Path) -> dict[str, list[Any]]:
    answer = place.bam("lineage", "sync", "--json", tracking=("--tracking-uri", f"sqlite:///{file}"))
    assert (answer.status, answer.json) == (0, {"synced": len(STAGES)}), answer.err
    return rows(file)


def test_killed_resumed_and_synced_anew(empty: Place, tmp_path: Path) -> None:
    own, new = empty.store / "mlflow.db", tmp_path / "new.db"
    at_third = KillPoint("os.rename", "expert.code-*/*/step-000015")
    killed = Process(empty, "run", str(empty.recipe), kill=at_third, tracking=())
    assert killed.end() == -signal.SIGKILL, killed.out
    [left] = runs_of(own)["expert.code"]
    assert left.info.status == "RUNNING"
    answer = empty.run(tracking=())
    assert answer.status == 0, answer.err
    assert "MLflow" not in answer.err
    require_equal_graphs(empty)
    told = runs_of(own)
    assert {stage: len(found) for stage, found in told.items()} == dict.fromkeys(STAGES, 1)
    [resumed] = told["expert.code"]
    assert resumed.info.run_id == left.info.run_id
    assert resumed.data.tags["bam.attempt"] == "2"

    before = rows(own)
    after = synced(empty, own)
    new_rows = [row for name in after for row in after[name] if row not in before[name]]
    assert [row[0] for row in new_rows] == ["mlflow.note.content"]  # of the driver that was killed: what it came to
    assert new_rows[0][1].startswith(f"Recipe `tiny`, run `{left.data.tags['bam.run']}`: interrupted.")
    assert synced(empty, own) == after
    assert synced(empty, new) == synced(empty, new)
    require_equal_graphs(empty, f"sqlite:///{new}")
    anew = runs_of(new)
    for stage in STAGES:
        [was], [now] = told[stage], anew[stage]
        assert was.data.params == now.data.params
        assert was.info.status == now.info.status == "FINISHED"
        live_only = {name for name in was.data.metrics if name.startswith("system/") or name in LIVE_ONLY}
        assert was.data.metrics.keys() - live_only == now.data.metrics.keys(), stage
        ours = {name for name in was.data.tags if name.startswith("bam.")}
        assert {name: was.data.tags[name] for name in ours} == {
            name: value for name, value in now.data.tags.items() if name.startswith("bam.")
        }, stage
