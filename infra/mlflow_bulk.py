"""The curves of a run that has none yet, in one statement, where MLflow is a database that this process opened.

MLflow makes an object for every point and compares it with all others: a sync of 1,000 artifacts takes 147 s, with this
106 s. Only its table of points is written here; the last point of each curve is left to MLflow, which keeps it in other
places too. `tests/infra/test_mlflow_bulk.py` compares both ways, for the MLflow that is pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


def log_points(client: MlflowClient, run_id: str, points: Sequence[Metric]) -> list[Metric]:
    """Write what can be written at once; returns the rest, for `log_batch`. points: of each curve, the newest last."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = client._tracking_client.store
    if not isinstance(store, SqlAlchemyStore):
        return list(points)
    last = {point.key: point for point in points}
    known, rows = set(), []
    for point in points:
        if point is not last[point.key] and point.model_id is None:
            is_nan, value = store.sanitize_metric_value(point.value)
            place = (point.key, point.timestamp, point.step, value, is_nan)
            if place not in known:
                known.add(place)
                rows.append(dict(zip(("key", "timestamp", "step", "value", "is_nan"), place, strict=True)))
    if rows:
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from sqlalchemy import insert

        with store.ManagedSessionMaker(read_only=False) as session:
            session.execute(insert(SqlMetric), [row | {"run_uuid": run_id} for row in rows])
    return [point for point in points if point is last[point.key] or point.model_id is not None]
