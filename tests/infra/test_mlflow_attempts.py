"""Attempts that fail, die, resume or are forced, and an MLflow that is not there."""

from __future__ import annotations

import pickle
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from bam_core.graph.record import Record
from infra import mlflow_tracker
from infra.mlflow_tracker import MlflowTracker, NullTracker, open_tracker
from tests.infra.mlflow_pipeline import (
    HISTORY,
    MLFLOW_WARNINGS,
    RECIPE,
    TinyPipeline,
    fresh_tracker,
    key_of,
    model_files,
    stage_of,
    stages,
)

pytestmark = MLFLOW_WARNINGS

SEED = stage_of("seed", {"phase": {"lr": 1e-3}})


class Attempts:
    """One database, a new tracker for each attempt as in a new process."""

    def __init__(self, store: Path) -> None:
        self.pipeline = TinyPipeline(store)
        self.first = fresh_tracker(store)
        self.client = self.first.client

    def start(self, tracker: MlflowTracker, run: str) -> tuple[dict[str, Any], dict[str, Any]]:
        parent = dict(tracker.start_pipeline("tiny", run, RECIPE))
        return parent, dict(tracker.start_stage(parent, SEED, key_of("seed"), {}))

    def again(self) -> MlflowTracker:
        return pickle.loads(pickle.dumps(self.first))

    def end(self, tracker: MlflowTracker, handle: dict[str, Any], name: str = "seed") -> Record:
        record = self.pipeline.write(SEED, model_files(name), {"loss": 1.0})
        return replace(record, mlflow=tracker.end_stage(handle, record, self.pipeline.folder(record)))

    def runs_of_seed(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("bam/tiny").experiment_id
        return list(self.client.search_runs([experiment], f"tags.`bam.key` = '{key_of('seed')}'"))

    def status(self, handle: dict[str, Any]) -> str:
        return str(self.client.get_run(handle["run_id"]).info.status)


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def test_a_failed_stage_says_why_and_its_next_attempt_goes_on_in_the_same_run(attempts: Attempts) -> None:
    parent, handle = attempts.start(attempts.first, "one")
    attempts.first.fail_stage(handle, "no route to https://ada:pw@host")
    attempts.first.end_pipeline(parent, "failed")
    assert attempts.status(handle) == attempts.status(parent) == "FAILED"
    assert attempts.runs_of_seed()[0].data.tags["bam.error"] == "no route to https://***@host"

    tracker = attempts.again()
    second_parent, second = attempts.start(tracker, "two")
    assert second["run_id"] == handle["run_id"]
    assert attempts.status(second) == "RUNNING"
    record = attempts.end(tracker, second)
    (run,) = attempts.runs_of_seed()
    assert run.info.status == "FINISHED"
    assert "bam.error" not in run.data.tags
    assert run.info.run_id == record.mlflow["run_id"]
    assert run.data.tags["mlflow.parentRunId"] == second_parent["run_id"]


def test_a_run_that_was_killed_is_taken_up_and_its_pipeline_closed(attempts: Attempts) -> None:
    parent, handle = attempts.start(attempts.first, "killed")
    attempts.first.log(handle, 1, {"loss": 2.0})
    tracker = attempts.again()
    _, second = attempts.start(tracker, "next")
    tracker.log(second, 2, {"loss": 1.5})
    attempts.end(tracker, second)
    (run,) = attempts.runs_of_seed()
    assert run.info.run_id == handle["run_id"]
    points = sorted(attempts.client.get_metric_history(run.info.run_id, "loss"), key=lambda point: point.timestamp)
    assert [(point.step, point.value) for point in points] == [(1, 2.0), (2, 1.5), (2, 1.0)]
    assert run.data.metrics["loss"] == 1.0
    assert attempts.status(parent) == "KILLED"


def test_a_run_that_was_killed_is_filled_in_from_its_record(attempts: Attempts) -> None:
    """Parameters are write-once, and a record has 1 where the live configuration had 1.0."""
    live = stage_of("seed", {"phase": {"lr": 1e-3, "z_loss_coef": 0.0, "shares": [1.0, 0.5]}})
    recorded = stage_of("seed", {"phase": {"lr": 1e-3, "z_loss_coef": 0, "shares": [1, 0.5]}})
    parent = attempts.first.start_pipeline("tiny", "one", RECIPE)
    attempts.first.start_stage(parent, live, key_of("seed"), {})
    attempts.again().live.open_stage(parent, recorded, key_of("seed"), {}, started=0.0)
    (run,) = attempts.runs_of_seed()
    assert (run.data.params["phase.z_loss_coef"], run.data.params["phase.shares"]) == ("0", "[1, 0.5]")
    attempts.client.log_param(run.info.run_id, "model.old", "1.0")  # as an earlier version of ours told it
    renamed = stage_of("seed", {"model": {"old": 1}})
    assert (
        attempts.again().live.open_stage(parent, renamed, key_of("seed"), {}, started=0.0)["run_id"] == run.info.run_id
    )


def test_a_failed_attempt_leaves_the_pipeline_that_still_runs_alone(attempts: Attempts) -> None:
    parent, handle = attempts.start(attempts.first, "one")
    attempts.first.fail_stage(handle, "out of memory")
    attempts.start(attempts.again(), "two")
    assert attempts.status(parent) == "RUNNING"


def test_an_interrupted_pipeline_closes_the_stages_it_leaves(attempts: Attempts) -> None:
    parent, handle = attempts.start(attempts.first, "one")
    attempts.first.end_pipeline(parent, "interrupted")
    assert attempts.status(parent) == attempts.status(handle) == "KILLED"


def test_forced_again_a_stage_gets_a_new_run_and_equal_bytes_stay_one_model(attempts: Attempts) -> None:
    _, first = attempts.start(attempts.first, "one")
    made = attempts.end(attempts.first, first).mlflow
    _, second = attempts.start(attempts.first, "two")
    same = attempts.end(attempts.first, second).mlflow
    _, third = attempts.start(attempts.first, "three")
    other = attempts.end(attempts.first, third, name="another seed").mlflow
    assert len({made["run_id"], same["run_id"], other["run_id"]}) == 3
    assert made["model_id"] == same["model_id"] != other["model_id"]
    outputs = attempts.client.get_run(same["run_id"]).outputs.model_outputs
    assert [link.model_id for link in outputs] == [made["model_id"]]


def test_an_edge_goes_to_the_model_of_the_bytes_that_were_read(attempts: Attempts) -> None:
    parent, first = attempts.start(attempts.first, "one")
    old = attempts.end(attempts.first, first)
    _, second = attempts.start(attempts.first, "two")
    new = attempts.end(attempts.first, second, name="another seed")
    for number, seed in enumerate((old, new)):
        handle = attempts.first.start_stage(parent, stage_of("expert.law", {}), str(number) * 64, {"seed": seed})
        assert handle["models"] == {"seed": seed.mlflow["model_id"]}


# MLflow is not there


def assert_calm(tracker: MlflowTracker, store: Path, warnings: list[str]) -> None:
    """Every call is a no-op after the first, which warns once."""
    pipeline = TinyPipeline(store)
    assert pipeline.play(tracker) == {}
    tracker.end_stage({"run_id": "x", "experiment_id": "0"}, pipeline.records["seed"], store)
    tracker.fail_stage({"run_id": "x"}, "why")
    assert len(warnings) == 1
    assert "goes on untracked" in warnings[0]
    assert "bam lineage sync" in warnings[0]
    assert all(record.mlflow == {} for record in pipeline.records.values())


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        warnings: list[str] = []
        uri = f"http://ada:pw@127.0.0.1:{unused.getsockname()[1]}"
        tracker = MlflowTracker(uri, str(tmp_path), warnings.append)
        assert_calm(tracker, tmp_path, warnings)
    assert "pw" not in warnings[0]
    there = pickle.loads(pickle.dumps(tracker))
    assert there.is_down


class Away:
    """A client whose server is being started again, and is back after so many `turns` of being waited for."""

    def __init__(self, client: Any) -> None:
        self.client, self.turns = client, 0

    def __getattr__(self, name: str) -> Any:
        if self.turns and name == "search_experiments":
            self.turns -= 1
        if self.turns:
            return self._refused
        return getattr(self.client, name)

    def _refused(self, *args: Any, **options: Any) -> None:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except ConnectionRefusedError:
            raise MlflowException("API request failed: Max retries exceeded")  # noqa: B904 - as MLflow does


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MlflowTracker, Away, list[str]]:
    monkeypatch.setattr(mlflow_tracker, "LOOK_EVERY_S", 0.0)
    warnings: list[str] = []
    tracker = fresh_tracker(tmp_path, warnings.append)
    client = Away(tracker.client)
    tracker._client = client  # type: ignore[assignment]
    tracker.tracking_uri = "http://127.0.0.1:9"  # only a server is waited for
    return tracker, client, warnings


def test_a_server_that_is_started_again(away: tuple[MlflowTracker, Away, list[str]], tmp_path: Path) -> None:
    """What must be told waits for it; points that it missed are written when their stage ends."""
    tracker, server, warnings = away
    pipeline, handle = TinyPipeline(tmp_path), dict(tracker.start_pipeline("tiny", "one", RECIPE))
    server.turns = 3
    [(files, metrics)] = [(files, metrics) for stage, files, metrics in stages() if stage.name == "seed"]
    begun = dict(tracker.start_stage(handle, SEED, key_of("seed"), {}))
    for row in HISTORY:
        server.turns = 0 if row["step"] < 4 else 5
        tracker.log(begun, row["step"], {"loss": row["loss"]})
    record = pipeline.write(SEED, files, metrics)
    assert tracker.end_stage(begun, record, pipeline.folder(record))["run_id"] == begun["run_id"]
    server.turns = 4
    tracker.end_pipeline(handle, "done")
    told = server.client.get_metric_history(begun["run_id"], "loss")
    assert {point.step for point in told} == {row["step"] for row in HISTORY}
    assert server.client.get_run(handle["run_id"]).info.status == "FINISHED"
    assert warnings == []


def test_a_server_that_does_not_come_back(
    away: tuple[MlflowTracker, Away, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for once."""
    tracker, server, warnings = away
    handle = dict(tracker.start_pipeline("tiny", "one", RECIPE))
    server.turns = 10**9
    monkeypatch.setattr(mlflow_tracker, "AWAY_S", 0.2)
    assert tracker.start_stage(handle, SEED, key_of("seed"), {}) == {}
    assert [warning.count("is unavailable, so this run goes on untracked") for warning in warnings] == [1]
    looks = server.turns
    assert looks < 10**9 - 10
    tracker.end_pipeline(handle, "done")
    assert server.turns == looks


def test_a_database_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, however long one looks at it" * 10)
    warnings: list[str] = []
    assert_calm(
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path), warnings.append),
        tmp_path,
        warnings,
    )
    assert capfd.readouterr() == ("", "")


def test_a_database_that_breaks_in_the_middle(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = fresh_tracker(tmp_path, warnings.append)
    handle = tracker.start_pipeline("tiny", "one", RECIPE)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("DROP TABLE metrics")
    for step in range(3):
        tracker.log(handle, step, {"loss": 1.0})
    assert len(warnings) == 1
    assert "\n" not in warnings[0]


def test_a_remote_store_without_a_server_is_not_tracked() -> None:
    warnings: list[str] = []
    tracker = open_tracker(None, "s3://bucket/store", warnings.append)
    assert isinstance(tracker, NullTracker)
    assert tracker.start_pipeline("tiny", "one", RECIPE) == {}
    assert len(warnings) == 1
    assert "--tracking-uri" in warnings[0]


def test_a_tracker_touches_nothing_before_it_is_used(tmp_path: Path) -> None:
    store = tmp_path / "store"
    tracker = open_tracker(None, str(store))
    tracker.end_pipeline({}, "done")
    assert not store.exists()


def test_importing_the_tracker_leaves_mlflow_out() -> None:
    modules = "infra.mlflow_tracker, infra.mlflow_sync, infra.mlflow_graph, infra.mlflow_ui"
    code = f"import sys, {modules}; print('mlflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
