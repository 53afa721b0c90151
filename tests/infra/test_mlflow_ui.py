"""`bam ui`: MLflow's server as a child, and what happens when it cannot start."""

from __future__ import annotations

import http.client
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bam_core.errors import BamError, UsageError
from bam_core.graph.lineage import lineage
from infra import mlflow_ui
from infra.mlflow_graph import differences, graph_from_mlflow
from infra.mlflow_pages import RUNS_AND_MODELS
from infra.mlflow_sync import sync
from infra.mlflow_tracker import MlflowTracker
from infra.mlflow_ui import last_run, serve
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, RECIPE, TinyPipeline, fresh_tracker, stage_of

pytestmark = MLFLOW_WARNINGS


def get(url: str, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_it_serves_the_stores_runs_and_stops(tmp_path: Path) -> None:
    tracker = fresh_tracker(tmp_path)
    run_id = tracker.start_pipeline("tiny", "shown", RECIPE)["run_id"]
    with serve(tracker.tracking_uri, tmp_path / "mlflow", port=0) as url:
        assert url.startswith("http://127.0.0.1:")
        status, body = get(url, f"/api/2.0/mlflow/runs/get?run_id={run_id}")
        assert status == 200
        assert b"shown" in body
        assert get(url, f"/get-artifact?path=recipe.yaml&run_uuid={run_id}")[0] == 200
    with pytest.raises(OSError):
        get(url, "/health")


def test_a_pipeline_is_tracked_through_a_server_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    pipeline = TinyPipeline(tmp_path)
    empty = fresh_tracker(tmp_path)
    with serve(empty.tracking_uri, tmp_path / "mlflow", port=0) as url:
        pipeline.play(MlflowTracker(url, str(tmp_path), warnings.append))
        tracker = MlflowTracker(url, str(tmp_path))
        again = sync(pipeline.records.values(), pipeline.runs.all(), tracker, pipeline.folder)
        told = graph_from_mlflow(tracker.client, "train.bam", "both")
    assert (again.made, again.mended, again.present) == ((), (), len(pipeline.records))
    kept = lineage(pipeline.records.values(), pipeline.records["train.bam"].key, "both")
    assert differences(kept, told) == []
    assert warnings == []
    assert capfd.readouterr() == ("", "")
    seed = empty.client.get_run(pipeline.records["seed"].mlflow["run_id"])
    assert seed.info.status == "FINISHED"
    assert list((tmp_path / "mlflow").rglob("artifacts/report.html"))
    assert list((tmp_path / "mlflow").rglob("artifacts/MODEL_CARD.md"))


def test_the_last_run_is_that_of_a_pipeline(tmp_path: Path) -> None:
    tracker = fresh_tracker(tmp_path)
    assert last_run(tracker.tracking_uri) is None
    first = tracker.start_pipeline("tiny", "first", RECIPE)
    tracker.start_stage(first, stage_of("seed", {}), "a" * 64, {})
    found = last_run(tracker.tracking_uri)
    assert found is not None
    assert found.page == f"/#/experiments/{first['experiment_id']}/runs/{first['run_id']}?{RUNS_AND_MODELS}"
    tracker.start_pipeline("other", "second", RECIPE)
    assert (newest := last_run(tracker.tracking_uri)) is not None
    assert newest.name == "second"
    assert last_run("http://127.0.0.1:9") is None


def test_a_server_elsewhere_is_only_named() -> None:
    with serve("https://mlflow.example", None) as url:
        assert url == "https://mlflow.example"


def test_nothing_tracked_yet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bam run"), serve(f"sqlite:///{tmp_path}/mlflow.db", None, port=0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"{port}.*--port"),
            serve(f"sqlite:///{tmp_path}/mlflow.db", None, port=port),
        ):
            pass


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*args: object) -> subprocess.Popen[bytes]:
        output = args[-1]
        command = ["sh", "-c", "echo no such module: mlflow; exit 1"]
        return subprocess.Popen(command, stdout=output, start_new_session=True)  # type: ignore[call-overload]

    monkeypatch.setattr(mlflow_ui, "_start", start)
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(BamError, match="no such module"), serve(f"sqlite:///{tmp_path}/mlflow.db", None, port=0):
        pass
