"""`bam lineage sync`: MLflow's view is rebuilt from records, and only what is missing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.mlflow_lineage import sync
from infra.mlflow_tracker import MlflowTracker
from tests.infra.mlflow_pipeline import (
    HISTORY,
    MLFLOW_WARNINGS,
    MODELS,
    RECIPE,
    TinyPipeline,
    fresh_tracker,
    key_of,
    stage_of,
)

pytestmark = MLFLOW_WARNINGS


def untracked(store: Path) -> TinyPipeline:
    """A pipeline that ran while MLflow was down."""
    pipeline = TinyPipeline(store)
    tracker = fresh_tracker(store)
    tracker.is_down = True
    pipeline.play(tracker)
    return pipeline


def run_of(tracker: MlflowTracker, stage: str) -> Any:
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    (run,) = tracker.client.search_runs(experiments, f"tags.`bam.key` = '{key_of(stage)}'")
    return tracker.client.get_run(run.info.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def test_all_is_rebuilt_once(store: Path) -> None:
    pipeline = untracked(store)
    tracker = fresh_tracker(store)
    records = list(pipeline.records.values())
    first = sync(reversed(records), tracker, pipeline.folder)
    assert set(first.made) == set(pipeline.records)
    assert first.present == 0
    again = sync(records, tracker, pipeline.folder)
    assert again.made == ()
    assert again.total == first.total == len(records)


def test_what_is_rebuilt_has_times_curves_models_and_edges(store: Path) -> None:
    pipeline = untracked(store)
    tracker = fresh_tracker(store)
    sync(pipeline.records.values(), tracker, pipeline.folder)
    models = {}
    for stage in MODELS:
        run, record = run_of(tracker, stage), pipeline.records[stage]
        assert run.info.start_time == record.started * 1000
        assert run.info.end_time == record.ended * 1000
        models[stage] = run.outputs.model_outputs[0].model_id
    loss = tracker.client.get_metric_history(run_of(tracker, "seed").info.run_id, "loss")
    assert {point.step for point in loss} == {row["step"] for row in HISTORY}
    mixed = {link.model_id for link in run_of(tracker, "mix.bam").inputs.model_inputs}
    assert mixed == {models["seed"], models["expert.law"]}
    scores = {metric.key for metric in tracker.client.get_logged_model(models["train.bam"]).metrics}
    assert {"perplexity/law", "average_perplexity"} <= scores


def test_a_run_that_was_cut_off_is_finished_where_it_is(store: Path) -> None:
    pipeline = untracked(store)
    tracker = fresh_tracker(store)
    parent = tracker.start_pipeline("tiny", "cut off", RECIPE)
    tokenizer = pipeline.records["tokenizer"]
    left = tracker.start_stage(parent, stage_of("tokenizer", tokenizer.payload["config"]), key_of("tokenizer"), {})
    synced = sync([tokenizer], tracker, pipeline.folder)
    run = run_of(tracker, "tokenizer")
    assert synced.made == ("tokenizer",)
    assert run.info.run_id == left["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent["run_id"]


def test_a_missing_parent_leaves_its_key_and_no_edge(store: Path) -> None:
    pipeline = untracked(store)
    tracker = fresh_tracker(store)
    sync([pipeline.records["expert.law"]], tracker, pipeline.folder)
    run = run_of(tracker, "expert.law")
    assert run.inputs.model_inputs == []
    (model,) = tracker.client.search_logged_models([run.info.experiment_id])
    assert model.tags["bam.parent.seed"] == key_of("seed")


def test_sync_says_what_is_wrong(tmp_path: Path) -> None:
    pipeline = untracked(tmp_path)
    (tmp_path / "none.db").write_text("no database at all" * 100)
    with pytest.raises(Exception, match="not a database"):
        sync(pipeline.records.values(), MlflowTracker(f"sqlite:///{tmp_path}/none.db", str(tmp_path)), pipeline.folder)
