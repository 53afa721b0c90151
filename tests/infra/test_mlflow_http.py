"""A real MLflow server over HTTP: it hears all, and no weight passes through it, by its proxy or to its bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3_kit import S3Server, s3_server, use

from infra import mlflow_ui
from infra.mlflow_tracker import MlflowTracker
from infra.storage import Storage
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, MODELS, TinyPipeline

__all__ = ["s3_server"]  # a fixture

pytestmark = MLFLOW_WARNINGS
WEIGHTS = b"weights of "
"""How the tiny pipeline's `model.safetensors` begins."""


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """The URL of `mlflow server`, started as `bam ui` starts it, with `options`."""
    port = mlflow_ui._free_port("127.0.0.1", 0)
    with tempfile.TemporaryFile() as output, pytest.MonkeyPatch.context() as patch:
        real = mlflow_ui.subprocess.Popen
        patch.setattr(mlflow_ui.subprocess, "Popen", lambda command, **how: real([*command, *options], **how))
        running = mlflow_ui._start(f"sqlite:///{folder / 'server.db'}", None, "127.0.0.1", port, output)
        try:
            mlflow_ui._await_health(running, "127.0.0.1", port, output)
            yield f"http://127.0.0.1:{port}"
        finally:
            mlflow_ui._stop(running)


@dataclass
class Played:
    """A pipeline that was played to a server over HTTP. files: what the server's artifact root then holds."""

    pipeline: TinyPipeline
    tracker: MlflowTracker
    handle: dict[str, Any]
    warnings: list[str]
    files: dict[str, bytes]


def play(url: str, store: Path, root: str) -> Played:
    warnings: list[str] = []
    pipeline, tracker = TinyPipeline(store), MlflowTracker(url, str(store), warnings.append)
    handle = pipeline.play(tracker)
    storage = Storage(root)
    return Played(pipeline, tracker, handle, warnings, {path: storage.read(path) or b"" for path in storage.sizes("")})


@pytest.fixture(scope="module", params=["proxy", pytest.param("s3", marks=pytest.mark.long)])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """proxy: the server passes artifacts on (its default). s3: clients bring them to a bucket themselves."""
    folder = tmp_path_factory.mktemp(request.param)
    root = str(folder / "files")
    options = ["--artifacts-destination", root]
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "s3":
            s3: S3Server = request.getfixturevalue("s3_server")
            use(s3, patch)
            root = s3.uri("mlflow")
            options = ["--no-serve-artifacts", "--default-artifact-root", root]
        with server(folder, *options) as url:
            yield play(url, folder / "store", root)


def test_the_server_hears_of_every_stage(played: Played) -> None:
    assert played.warnings == []
    client = played.tracker.client
    runs = client.search_runs([played.handle["experiment_id"]], "tags.`bam.key` != ''")
    assert {run.info.run_name for run in runs} == set(played.pipeline.records)
    assert {run.info.status for run in runs} == {"FINISHED"}
    losses = client.get_metric_history(played.pipeline.records["seed"].mlflow["run_id"], "loss")
    assert len(losses) > 2


def test_models_are_named_by_where_they_lie(played: Played) -> None:
    client = played.tracker.client
    for name in MODELS:
        record = played.pipeline.records[name]
        model = client.get_logged_model(record.mlflow["model_id"])
        assert model.tags["bam.artifact"] == str(played.pipeline.folder(record))
        assert model.tags["bam.key"] == record.key


def test_small_files_are_there_and_no_weights(played: Played) -> None:
    """Neither under their name nor under any other."""
    names = {path.rpartition("/")[2] for path in played.files}
    assert names >= {"recipe.yaml", "report.html", "MODEL_CARD.md"}
    assert not any(name.endswith((".safetensors", ".arrow")) for name in names)
    for stage in MODELS:
        weights = (played.pipeline.folder(played.pipeline.records[stage]) / "model.safetensors").read_bytes()
        assert weights.startswith(WEIGHTS)
    holding = [path for path, data in played.files.items() if data.startswith(WEIGHTS) or b"rows of " in data]
    assert holding == []
