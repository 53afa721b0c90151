"""The graph that MLflow alone tells is that of the files: after a run, a resumed one, a sync, and MLflow being down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import UsageError
from bam_core.graph.lineage import Direction, Graph, lineage
from bam_core.graph.refs import resolve
from infra.mlflow_graph import differences, graph_from_mlflow
from infra.mlflow_sync import sync
from infra.mlflow_tracker import MlflowTracker
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, RECIPE, TinyPipeline, fresh_tracker, key_of, stages

pytestmark = MLFLOW_WARNINGS

Playing = Callable[[TinyPipeline, MlflowTracker], None]


def normally(pipeline: TinyPipeline, tracker: MlflowTracker) -> None:
    pipeline.play(tracker)


def killed_and_resumed(pipeline: TinyPipeline, tracker: MlflowTracker) -> None:
    """The first driver dies in the expert, the second takes its run up."""
    parent = tracker.start_pipeline("tiny", "killed", RECIPE)
    for stage, files, metrics in stages()[:4]:
        pipeline.run_stage(tracker, parent, stage, files, metrics)
    expert = stages()[4][0]
    left = tracker.start_stage(parent, expert, key_of(expert.name), pipeline.inputs(expert))
    tracker.log(left, 1, {"loss": 5.0})
    tracker = MlflowTracker(tracker.tracking_uri, str(pipeline.store))
    parent = tracker.start_pipeline("tiny", "resumed", RECIPE)
    for stage, files, metrics in stages()[4:]:
        pipeline.run_stage(tracker, parent, stage, files, metrics)
    assert pipeline.records["expert.law"].mlflow["run_id"] == left["run_id"]
    tracker.end_pipeline(parent, "done")


def synced_from_nothing(pipeline: TinyPipeline, tracker: MlflowTracker) -> None:
    tracker.is_down = True
    pipeline.play(tracker)
    tracker.is_down = False
    _sync(pipeline, tracker)


def down_in_the_middle(pipeline: TinyPipeline, tracker: MlflowTracker) -> None:
    """Then a sync, which has to link what was made before to what was made after."""
    parent = tracker.start_pipeline("tiny", "half down", RECIPE)
    for stage, files, metrics in stages():
        tracker.is_down = stage.name in ("tokenizer", "data.law", "expert.law", "train.bam")
        pipeline.run_stage(tracker, parent, stage, files, metrics)
    tracker.is_down = False
    _sync(pipeline, tracker)


def _sync(pipeline: TinyPipeline, tracker: MlflowTracker) -> None:
    sync(pipeline.records.values(), pipeline.runs.all(), tracker, pipeline.folder)


def of_files(pipeline: TinyPipeline, ref: str, direction: Direction) -> Graph:
    records = list(pipeline.records.values())
    return lineage(records, resolve(ref, records).key, direction)


@pytest.fixture(scope="module", params=[normally, killed_and_resumed, synced_from_nothing, down_in_the_middle])
def played(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyPipeline, MlflowTracker]:
    store = tmp_path_factory.mktemp(request.param.__name__)
    pipeline, tracker = TinyPipeline(store), fresh_tracker(store)
    request.param(pipeline, tracker)
    return pipeline, tracker


@pytest.mark.parametrize("ref", ["train.bam", "seed", "report", "data.law"])
@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_both_graphs_are_equal(played: tuple[TinyPipeline, MlflowTracker], ref: str, direction: Direction) -> None:
    pipeline, tracker = played
    told, kept = graph_from_mlflow(tracker.client, ref, direction), of_files(pipeline, ref, direction)
    assert differences(kept, told) == []
    assert told.root == kept.root
    assert [node.id for node in told.nodes] == [node.id for node in kept.nodes]


def test_a_model_may_be_named_by_its_id(tmp_path: Path) -> None:
    pipeline, tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    pipeline.play(tracker)
    model_id = pipeline.records["mix.bam"].mlflow["model_id"]
    assert graph_from_mlflow(tracker.client, model_id).root == ("mix.bam", key_of("mix.bam"))
    with pytest.raises(UsageError, match="names no artifact"):
        graph_from_mlflow(tracker.client, "mix.none")


def test_parents_that_are_gone_or_have_other_bytes_now(tmp_path: Path) -> None:
    pipeline, tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    tracker.is_down = True
    pipeline.play(tracker)
    tracker.is_down = False
    del pipeline.records["data.law"]
    seed = pipeline.records["seed"]
    pipeline.put_on_record(replace(seed, digest="f" * 64))
    _sync(pipeline, tracker)
    told, kept = graph_from_mlflow(tracker.client, "train.bam"), of_files(pipeline, "train.bam", "up")
    assert differences(kept, told) == []
    assert [node.stage for node in told.nodes if node.missing] == ["data.law"]
    assert {edge.child[0] for edge in told.edges if edge.replaced} == {"expert.law", "mix.bam"}


def test_an_edge_that_mlflow_does_not_show_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags alone would hide that a page lacks its links."""
    pipeline, tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    monkeypatch.setattr(tracker.client, "log_inputs", lambda *_, **__: None)
    pipeline.play(tracker)
    found = differences(of_files(pipeline, "mix.bam", "up"), graph_from_mlflow(tracker.client, "mix.bam"))
    assert "only the one has seed -> mix.bam as seed, replaced=False" in found
    assert "only the one has data.law -> expert.law as data.law, replaced=False" in found
    assert any(line.startswith("source.law@") for line in found)


def test_differences_name_what_differs(tmp_path: Path) -> None:
    pipeline = TinyPipeline(tmp_path)
    tracker = fresh_tracker(tmp_path)
    tracker.is_down = True
    pipeline.play(tracker)
    graph = of_files(pipeline, "mix.bam", "up")
    other = replace(
        graph,
        nodes=tuple(replace(node, digest="other") if node.stage == "seed" else node for node in graph.nodes),
        edges=tuple(edge for edge in graph.edges if edge.role != "expert.law"),
    )
    assert differences(graph, graph) == []
    assert [line.partition("@")[0] for line in differences(graph, other)] == [
        "seed",
        "only the one has expert.law -> mix.bam as expert.law, replaced=False",
    ]
