"""MLflow is a view: down, it costs one warning; later `bam lineage sync` fills it from the records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kit import MODELS, STAGES, Place

pytest.importorskip("mlflow")


def runs_of(uri: str) -> dict[str, list[dict[str, str]]]:
    """Stage -> the tags of its runs, in all our experiments."""
    from mlflow import MlflowClient

    client, found = MlflowClient(uri), {}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments):
        assert run.info.status == "FINISHED"
        found.setdefault(run.info.run_name, []).append(run.data.tags)
    return found


def test_a_run_without_mlflow_ends_well_with_one_warning(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "seed", "expert.*")
    answer = place.run()
    assert answer.status == 0
    assert answer.err.count("MLflow") == 1
    assert "http://127.0.0.1:9 is unavailable" in answer.err
    assert "`bam lineage sync` fills it in later" in answer.err
    assert not list(place.store.glob("mlflow*"))
    assert place.record("train.bam")["mlflow"] == {}
    assert place.perplexity() == finished.perplexity()


def test_sync_fills_an_empty_database_once(finished: Place, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/view.db"
    for _ in range(2):
        answer = finished.bam("lineage", "sync", "--json", tracking=("--tracking-uri", uri))
        assert (answer.status, answer.json) == (0, {"synced": len(STAGES)}), answer.err
    runs = runs_of(uri)
    pipelines = [file.stem for file in (finished.store / "runs").glob("*.json")]  # other tests may have run it again
    assert {name: len(tags) for name, tags in runs.items()} == dict.fromkeys((*STAGES, *pipelines), 1)
    for stage in STAGES:
        [tags] = runs[stage]
        assert tags["bam.key"] == finished.record(stage)["key"]
        for role, parent in finished.record(stage)["inputs"].items():
            assert parent["key"][:12] in tags[f"bam.parent.{role}"]

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    models = client.search_logged_models(experiments)
    assert {model.tags["bam.key"] for model in models} == {finished.record(stage)["key"] for stage in MODELS}


def test_a_run_that_mlflow_saw_is_nested_and_sync_adds_the_rest(up_to: Callable[..., Place]) -> None:
    """With the database that a local store has of its own."""
    place = up_to("tokenizer", "data.*", "seed")
    answer = place.run("--only", "expert.code", tracking=())
    assert answer.status == 0, answer.err
    assert "MLflow" not in answer.err
    uri = f"sqlite:///{place.store}/mlflow.db"
    [pipeline] = [tags for name, runs in runs_of(uri).items() for tags in runs if name.startswith("tiny-")]
    [expert] = runs_of(uri)["expert.code"]
    assert pipeline["bam.run"] == answer.json["run"]
    assert expert["bam.key"] == place.record("expert.code")["key"]
    assert "mlflow.parentRunId" in expert
    assert place.record("expert.code")["mlflow"]["model_id"]

    assert place.bam("lineage", "sync", "--json", tracking=()).json == {"synced": 6}
    assert {stage: len(runs) for stage, runs in runs_of(uri).items() if stage in STAGES} == dict.fromkeys(
        ("tokenizer", "data.general", "data.code", "data.law", "seed", "expert.code"), 1
    )


def test_sync_says_when_mlflow_is_down(finished: Place) -> None:
    answer = finished.bam("lineage", "sync")
    assert answer.status == 1
    assert "MLflow at http://127.0.0.1:9" in answer.err
    assert "Traceback" not in answer.err
