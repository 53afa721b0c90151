"""`bam lineage sync`: MLflow's view is rebuilt from files, and only what is missing is written."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import UsageError
from bam_core.graph.lineage import ForeignRecord
from bam_core.graph.record import InputRef
from infra.mlflow_sync import SYNCED, Synced, sync
from infra.mlflow_tracker import MlflowTracker
from infra.small_files import SmallFiles
from infra.store import ArtifactStore
from tests.infra.mlflow_pipeline import (
    HISTORY,
    MLFLOW_WARNINGS,
    MODELS,
    RECIPE,
    RUN,
    TinyPipeline,
    fresh_tracker,
    key_of,
    model_files,
    sha256,
    stage_of,
)

pytestmark = MLFLOW_WARNINGS

LIVE_ONLY = {"tokens_per_s"}
"""What only a run that goes on can tell."""


def untracked(store: Path) -> TinyPipeline:
    """A pipeline that ran while MLflow was down."""
    pipeline = TinyPipeline(store)
    tracker = fresh_tracker(store)
    tracker.is_down = True
    pipeline.play(tracker)
    return pipeline


def sync_all(pipeline: TinyPipeline, tracker: MlflowTracker, **options: Any) -> Synced:
    return sync(pipeline.records.values(), pipeline.runs.all(), tracker, pipeline.folder, **options)


def runs_of(tracker: MlflowTracker, stage: str, key: str | None = None) -> list[Any]:
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    found = tracker.client.search_runs(experiments, f"tags.`bam.key` = '{key or key_of(stage)}'")
    return [tracker.client.get_run(run.info.run_id) for run in found]


def run_of(tracker: MlflowTracker, stage: str) -> Any:
    (run,) = runs_of(tracker, stage)
    return run


def experiment_of(tracker: MlflowTracker, run: Any) -> str:
    return str(tracker.client.get_experiment(run.info.experiment_id).name)


def tables(store: Path) -> dict[str, list[Any]]:
    """Every row of every table of MLflow."""
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f'SELECT * FROM "{name}"'), key=repr) for name in names}


def files(store: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (store / "mlflow").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def synced(store: Path) -> tuple[TinyPipeline, MlflowTracker]:
    pipeline, tracker = untracked(store), fresh_tracker(store)
    made = sync_all(pipeline, tracker)
    assert set(made.made) == set(pipeline.records)
    assert (made.mended, made.present, made.pipelines) == ((), 0, (RUN,))
    return pipeline, tracker


Both = tuple[TinyPipeline, MlflowTracker]


def test_again_it_changes_nothing(synced: Both, store: Path) -> None:
    pipeline, _ = synced
    before = tables(store), files(store)
    again = sync_all(pipeline, MlflowTracker(f"sqlite:///{store}/mlflow.db", str(store)))
    assert (again.made, again.mended, again.pipelines) == ((), (), ())
    assert again.total == len(pipeline.records)
    assert (tables(store), files(store)) == before


def test_after_a_run_that_mlflow_saw_nothing_is_missing(tmp_path: Path) -> None:
    pipeline, tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    pipeline.play(tracker)
    before = tables(tmp_path), files(tmp_path)
    done = sync_all(pipeline, MlflowTracker(tracker.tracking_uri, str(tmp_path)))
    assert (done.made, done.mended, done.pipelines) == ((), (), ())
    assert (tables(tmp_path), files(tmp_path)) == before


def test_what_is_rebuilt_is_what_a_run_tells(synced: Both, tmp_path: Path) -> None:
    """Names of runs and models differ, and when a figure was told; nothing else does."""
    live, live_tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    live.play(live_tracker)
    pipeline, tracker = synced
    for stage in pipeline.records:
        assert content(tracker, run_of(tracker, stage)) == content(live_tracker, run_of(live_tracker, stage)), stage
    (rebuilt,), (told,) = (pipeline_runs(where) for where in (tracker, live_tracker))
    assert content(tracker, rebuilt) == content(live_tracker, told)


def pipeline_runs(tracker: MlflowTracker) -> list[Any]:
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    found = tracker.client.search_runs(experiments, f"tags.`bam.run` = '{RUN}' and tags.`bam.key` IS NULL")
    return [tracker.client.get_run(run.info.run_id) for run in found]


def content(tracker: MlflowTracker, run: Any) -> dict[str, Any]:
    """All that a person sees of a run and its models, without ids and paths of this very MLflow."""
    ids, client = {run.info.run_id, run.info.experiment_id}, tracker.client
    parts: dict[str, Any] = {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {name: value for name, value in run.data.metrics.items() if name not in LIVE_ONLY},
        "inputs": sorted((entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs),
        "files": file_names(client, run.info.run_id),
        "steps": {
            name: sorted({(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)})
            for name in run.data.metrics
            if name not in LIVE_ONLY
        },
    }
    tags = dict(run.data.tags)
    for model_id in (link.model_id for link in run.outputs.model_outputs):
        model = client.get_logged_model(model_id)
        ids |= {model_id}
        parts["model"] = (model.name, str(model.status), model.params, sorted(metric.key for metric in model.metrics))
        parts["model files"] = sorted(entry.path for entry in client.list_logged_model_artifacts(model_id))
        tags |= {f"model {name}": value for name, value in model.tags.items()}
    parents = {link.model_id for link in run.inputs.model_inputs}
    parts["models read"] = sorted(client.get_logged_model(model_id).name for model_id in parents)
    own = {"mlflow.parentRunId", "mlflow.user", "mlflow.source.name", "mlflow.source.git.commit"}
    own |= {"bam.host", "bam.dirty_diff_sha256"} if "bam.key" not in run.data.tags else set()
    parts["tags"] = {name: without_ids(value, tracker) for name, value in tags.items() if name not in own}
    return parts


def without_ids(text: str, tracker: MlflowTracker) -> str:
    """MLflow's ids, and the folder of the store, differ from one MLflow to the next."""
    text = text.replace(tracker.store_uri, "STORE")
    return re.sub(r"\b(m-)?[0-9a-f]{32}\b|experiments/\d+", "ID", text)


def file_names(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += file_names(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def test_it_is_nested_under_the_run_that_made_it_in_the_experiment_of_its_recipe(synced: Both) -> None:
    pipeline, tracker = synced
    (parent,) = pipeline_runs(tracker)
    assert experiment_of(tracker, parent) == "bam/tiny"
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", 1_700_000_100_000)
    assert parent.data.params["domains.law.source.kind"] == "text"
    assert {run_of(tracker, stage).data.tags["mlflow.parentRunId"] for stage in pipeline.records} == {
        parent.info.run_id
    }


def test_what_is_rebuilt_has_times_curves_models_and_edges(synced: Both) -> None:
    pipeline, tracker = synced
    models = {}
    for stage in MODELS:
        run, record = run_of(tracker, stage), pipeline.records[stage]
        assert run.info.start_time == record.started * 1000
        assert run.info.end_time == record.ended * 1000
        models[stage] = run.outputs.model_outputs[0].model_id
    loss = tracker.client.get_metric_history(run_of(tracker, "seed").info.run_id, "loss")
    assert [point.step for point in loss] == [row["step"] for row in HISTORY]
    assert all(earlier.timestamp < later.timestamp for earlier, later in pairwise(loss))
    mixed = {link.model_id for link in run_of(tracker, "mix.bam").inputs.model_inputs}
    assert mixed == {models["seed"], models["expert.law"]}
    scores = {metric.key for metric in tracker.client.get_logged_model(models["train.bam"]).metrics}
    assert {"perplexity/law", "average_perplexity"} <= scores


def test_all_made_from_an_expert_are_found_by_one_search(synced: Both) -> None:
    """A trained mixture's only parent is the mixture: the expert is further back."""
    _, tracker = synced
    made_from = f"tags.`bam.ancestor.expert.law` = '{key_of('expert.law')}'"
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    found = {run.info.run_name for run in tracker.client.search_runs(experiments, made_from)}
    assert found == {"mix.bam", "train.bam", "evaluate", "report"}
    models = tracker.client.search_logged_models(experiments, made_from)
    assert {model.name for model in models} == {"mix-bam", "train-bam"}


def test_parents_come_first_whatever_the_clocks_said(tmp_path: Path) -> None:
    pipeline = untracked(tmp_path)
    clocks = {name: 10.0 - place for place, name in enumerate(pipeline.records)}
    pipeline.records = {name: replace(record, ended=clocks[name]) for name, record in pipeline.records.items()}
    tracker = fresh_tracker(tmp_path)
    sync_all(pipeline, tracker)
    assert len(run_of(tracker, "mix.bam").inputs.model_inputs) == 2


def test_records_that_made_each_other_are_refused(tmp_path: Path) -> None:
    pipeline = untracked(tmp_path)
    seed, expert = (pipeline.records[name] for name in ("seed", "expert.law"))
    pipeline.records["seed"] = replace(seed, inputs={"expert": expert.ref})
    with pytest.raises(UsageError, match="own ancestors"):
        sync_all(pipeline, fresh_tracker(tmp_path))


@pytest.mark.parametrize("tail", ["seed", "mix.bam"])
def test_what_was_made_while_mlflow_was_down_is_linked_on_both_sides(tmp_path: Path, tail: str) -> None:
    """The parent was not tracked, its children were: they get the links that they lack."""
    pipeline, tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    real, down = tracker.start_stage, {"tokenizer", "data.law", tail}

    def sometimes_down(parent: Any, stage: Any, key: str, inputs: Any) -> Any:
        return {} if stage.name in down else real(parent, stage, key, inputs)

    tracker.start_stage = sometimes_down  # type: ignore[method-assign]
    pipeline.play(tracker)
    done = sync_all(pipeline, tracker)
    assert set(done.made) == down
    for stage, parents in {"expert.law": {"seed"}, "mix.bam": {"seed", "expert.law"}, "train.bam": {"mix.bam"}}.items():
        links = {link.model_id for link in run_of(tracker, stage).inputs.model_inputs}
        assert {tracker.client.get_logged_model(link).tags["bam.stage"] for link in links} == parents
    (model,) = {link.model_id for link in run_of(tracker, tail).outputs.model_outputs}
    assert {metric.key for metric in tracker.client.get_logged_model(model).metrics} >= {"average_perplexity"}
    before = tables(tmp_path)
    assert sync_all(pipeline, tracker).present == len(pipeline.records)
    assert tables(tmp_path) == before


def test_a_run_that_was_cut_off_is_finished_where_it_is(tmp_path: Path) -> None:
    pipeline = untracked(tmp_path)
    pipeline.runs.remove(RUN)
    tracker = fresh_tracker(tmp_path)
    parent = tracker.start_pipeline("tiny", "cut off", RECIPE)
    tokenizer = replace(pipeline.records["tokenizer"], provenance={})
    left = tracker.start_stage(parent, stage_of("tokenizer", tokenizer.payload["config"]), key_of("tokenizer"), {})
    pipeline.records = {"tokenizer": tokenizer}
    synced = sync_all(pipeline, tracker)
    run = run_of(tracker, "tokenizer")
    assert synced.made == ("tokenizer",)
    assert run.info.run_id == left["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent["run_id"]


def test_an_attempt_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    """MLflow was lost while somebody makes an artifact again: his run is not that of the record."""
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)
    parent = tracker.start_pipeline("tiny", "again", RECIPE)
    config = pipeline.records["tokenizer"].payload["config"]
    going = tracker.start_stage(parent, stage_of("tokenizer", config), key_of("tokenizer"), {})
    for _ in range(2):
        sync_all(pipeline, tracker, is_live=lambda stage, key: stage == "tokenizer")
    status = {run.info.run_id: run.info.status for run in runs_of(tracker, "tokenizer")}
    assert len(status) == 2
    assert status[going["run_id"]] == "RUNNING"
    assert tracker.client.get_run(parent["run_id"]).info.status == "RUNNING"


def test_what_a_killed_driver_left_running_is_closed(tmp_path: Path) -> None:
    pipeline, tracker = TinyPipeline(tmp_path), fresh_tracker(tmp_path)
    pipeline.put_run_on_record(None)
    parent = tracker.start_pipeline("tiny", RUN, RECIPE)
    stage = tracker.start_stage(parent, stage_of("seed", {}), key_of("seed"), {})
    elsewhere = MlflowTracker(tracker.tracking_uri, str(tmp_path / "other"))
    other = elsewhere.start_pipeline("tiny", "of another store", RECIPE)
    other_stage = elsewhere.start_stage(other, stage_of("seed", {}), key_of("seed"), {})

    def status(handle: Any) -> str:
        return str(tracker.client.get_run(handle["run_id"]).info.status)

    sync_all(pipeline, tracker, is_live=lambda stage, key: stage == "seed")
    assert status(parent) == status(stage) == "RUNNING"
    sync_all(pipeline, tracker)
    assert status(parent) == status(stage) == "KILLED"
    assert status(other) == status(other_stage) == "RUNNING"


def test_older_records_find_their_recipe_in_the_runs_on_record(tmp_path: Path) -> None:
    pipeline = untracked(tmp_path)
    pipeline.records = {name: replace(record, provenance={}) for name, record in pipeline.records.items()}
    tracker = fresh_tracker(tmp_path)
    sync_all(pipeline, tracker)
    assert experiment_of(tracker, run_of(tracker, "seed")) == "bam/tiny"
    pipeline.runs.remove(RUN)
    tracker = fresh_tracker(tmp_path)
    sync_all(pipeline, tracker)
    assert experiment_of(tracker, run_of(tracker, "seed")) == f"bam/{SYNCED}"


def test_a_missing_parent_leaves_its_key_and_no_edge(tmp_path: Path) -> None:
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)
    pipeline.records = {"expert.law": pipeline.records["expert.law"]}
    sync_all(pipeline, tracker)
    run = run_of(tracker, "expert.law")
    assert run.inputs.model_inputs == []
    (model,) = tracker.client.search_logged_models([run.info.experiment_id])
    assert model.tags["bam.parent.seed"] == key_of("seed")


def test_a_model_that_was_half_registered_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)

    def refuse(*_: object) -> None:
        raise RuntimeError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "finalize_logged_model", refuse)
        with pytest.raises(RuntimeError):
            sync_all(pipeline, tracker)
    sync_all(pipeline, tracker)
    models = tracker.client.search_logged_models([run_of(tracker, "seed").info.experiment_id])
    assert sorted(model.name for model in models) == ["expert-law", "mix-bam", "seed", "train-bam"]
    assert {str(model.status) for model in models} == {"READY"}
    assert len(run_of(tracker, "seed").outputs.model_outputs) == 1


def test_a_damaged_artifact_is_named_and_all_else_is_written(tmp_path: Path) -> None:
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)
    (pipeline.folder(pipeline.records["seed"]) / "config.json").write_text("[")
    with SmallFiles(ArtifactStore(str(tmp_path))) as folder_of:
        done = sync(pipeline.records.values(), pipeline.runs.all(), tracker, folder_of)
    assert done.damaged == (f"seed@{key_of('seed')[:12]}: config.json has other bytes than recorded",)
    assert set(done.made) == set(pipeline.records) - {"seed"}
    assert runs_of(tracker, "seed") == []


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 18, 19, 20, 21, 22, 23, 51])
def test_wherever_it_is_cut_off_it_goes_on_and_ends_the_same(
    synced: Both, tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cut: how many calls that write came through."""
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)
    with monkeypatch.context() as patch:
        count_down(patch, tracker, cut)
        with pytest.raises(RuntimeError, match="cut"):
            sync_all(pipeline, tracker)
    sync_all(pipeline, tracker)
    for stage in pipeline.records:
        assert content(tracker, run_of(tracker, stage)) == content(synced[1], run_of(synced[1], stage)), stage
    (ended,), (whole,) = pipeline_runs(tracker), pipeline_runs(synced[1])
    assert content(tracker, ended) == content(synced[1], whole)


def count_down(patch: pytest.MonkeyPatch, tracker: MlflowTracker, left: int) -> None:
    calls = [left]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[0] -= 1
            if calls[0] < 0:
                raise RuntimeError("cut")
            return real(*args, **options)

        return call

    for name in ("create_run", "log_batch", "log_inputs", "log_outputs", "create_logged_model", "log_dict",
                 "finalize_logged_model", "set_terminated"):  # fmt: skip
        patch.setattr(tracker.client, name, counted(getattr(tracker.client, name)))


def test_a_recipe_of_any_name_stays_in_its_folder(tmp_path: Path) -> None:
    """A record may say anything: the name is shown as it is, and never part of a path."""
    names = ["a b", "../../up", "it's", 'say "x"', "<b>x</b>", "x" * 300, "é"]
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)
    tokenizer = pipeline.records["tokenizer"]
    pipeline.runs.remove(RUN)
    for place, name in enumerate(names):
        made_in = {"run": "r", "pipeline": name}
        key = sha256(name)
        record = replace(tokenizer, provenance=made_in, key=key, stage=f"tokenizer.t{place}")
        sync([record], [], tracker, lambda _: pipeline.folder(tokenizer))
        (run,) = runs_of(tracker, record.stage, key)
        assert experiment_of(tracker, run) == f"bam/{name}"
        root = (tmp_path / "mlflow").as_uri()
        assert run.info.artifact_uri.startswith(f"{root}/")
        assert ".." not in run.info.artifact_uri


def test_an_adopted_expert_leads_into_the_other_store(tmp_path: Path) -> None:
    pipeline, tracker = untracked(tmp_path), fresh_tracker(tmp_path)
    theirs = replace(
        pipeline.records["expert.law"], key="f" * 64, inputs={"data": InputRef("data.theirs", "e" * 64, "d" * 64)}
    )
    origin = {"name": "law", "origin": dict(vars(theirs.ref))}
    stage = stage_of("adopted.law", origin, "seed")
    adopted = pipeline.write(stage, model_files("adopted.law"), {})
    adopted = replace(adopted, provenance={"run": "adopt-1", "pipeline": "adopted", "adopted_from": "s3://theirs"})
    pipeline.put_on_record(adopted)
    mix = stage_of("mix.two", {}, "adopted.law")
    pipeline.put_on_record(pipeline.write(mix, model_files("mix.two", mixture=True), {}))

    def brought(records: Any) -> list[ForeignRecord]:
        return [ForeignRecord(theirs, "s3://theirs")] if adopted in list(records) else []

    for _ in range(2):
        sync_all(pipeline, tracker, foreign_of=brought)
    run = run_of(tracker, "adopted.law")
    assert experiment_of(tracker, run) == "bam/adopted"
    assert theirs.key in run.data.tags["bam.origin"]
    assert run.data.tags["bam.adopted_from"] == "s3://theirs"
    assert not runs_of(tracker, "expert.law", theirs.key)
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    found = tracker.client.search_runs(experiments, f"tags.`bam.ancestor.expert.law` = '{theirs.key}'")
    assert {run.info.run_name for run in found} == {"adopted.law", "mix.two"}


def test_sync_says_what_is_wrong(tmp_path: Path) -> None:
    pipeline = untracked(tmp_path)
    (tmp_path / "none.db").write_text("no database at all" * 100)
    with pytest.raises(Exception, match="not a database"):
        sync_all(pipeline, MlflowTracker(f"sqlite:///{tmp_path}/none.db", str(tmp_path)))
