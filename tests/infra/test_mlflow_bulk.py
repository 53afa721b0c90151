"""Curves that are written at once are those that MLflow would have written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from infra.mlflow_bulk import log_points
from infra.mlflow_tracker import MlflowTracker
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, RECIPE, fresh_tracker

pytestmark = MLFLOW_WARNINGS


def curves() -> list[Any]:
    from mlflow.entities import Metric

    special = {3: float("nan"), 4: float("inf"), 5: -float("inf")}
    points = [
        Metric(name, special.get(step, step / 7), 1000 * step, step) for step in range(1, 30) for name in ("loss", "lr")
    ]
    return [*points, Metric("once", 1.0, 5, 0), *points[:4]]


def rows(store: Path, table: str, run_id: str) -> list[Any]:
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        found = database.execute(
            f"SELECT key, value, timestamp, step, is_nan FROM {table} WHERE run_uuid = ?", (run_id,)
        )
        return sorted(found)


def test_both_ways_leave_the_same(tmp_path: Path) -> None:
    tracker = fresh_tracker(tmp_path)
    one, other = (tracker.start_pipeline("tiny", name, RECIPE)["run_id"] for name in ("one", "other"))
    points = sorted(curves(), key=lambda point: point.timestamp)
    rest = log_points(tracker.client, one, points)
    tracker.client.log_batch(one, metrics=rest)
    tracker.client.log_batch(other, metrics=points)
    assert len(rest) == 3
    for table in ("metrics", "latest_metrics"):
        assert rows(tmp_path, table, one) == rows(tmp_path, table, other)
    assert len(rows(tmp_path, "metrics", one)) == 2 * 29 + 1


def test_a_server_is_left_to_write_them_itself() -> None:
    points = curves()
    assert log_points(MlflowTracker("http://127.0.0.1:9", "/store").client, "run", points) == points
