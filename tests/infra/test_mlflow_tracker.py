"""What MLflow holds after a whole pipeline was played through the tracker."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from bam_core.graph.record import InputRef
from infra.mlflow_artifacts import shown_card
from infra.mlflow_pages import RUNS_AND_MODELS, describe
from infra.mlflow_runs import PARENT_RUN
from infra.mlflow_tracker import MlflowTracker
from tests.infra.mlflow_pipeline import (
    COMMIT,
    DOMAINS,
    HISTORY,
    MLFLOW_WARNINGS,
    MODELS,
    RECIPE,
    TinyPipeline,
    fresh_tracker,
    key_of,
    sha256,
    stage_of,
)

pytestmark = MLFLOW_WARNINGS


class Played:
    """A played pipeline and short ways to what MLflow says of it."""

    def __init__(self, store: Path) -> None:
        self.warnings: list[str] = []
        self.tracker = fresh_tracker(store, self.warnings.append)
        self.pipeline = TinyPipeline(store)
        self.handle = self.pipeline.play(self.tracker)
        self.client = self.tracker.client

    def run_id(self, stage: str) -> str:
        return str(self.pipeline.records[stage].mlflow["run_id"])

    def run(self, stage: str) -> Any:
        return self.client.get_run(self.run_id(stage))

    def model(self, stage: str) -> Any:
        return self.client.get_logged_model(self.pipeline.records[stage].mlflow["model_id"])

    def files(self, run_id: str, folder: str | None = None) -> set[str]:
        return {entry.path for entry in self.client.list_artifacts(run_id, folder)}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("store"))


def test_nothing_goes_wrong(played: Played) -> None:
    assert played.warnings == []


def test_every_stage_is_a_finished_run_nested_under_the_pipelines(played: Played) -> None:
    parent = played.client.get_run(played.handle["run_id"])
    nested = played.client.search_runs(
        [played.handle["experiment_id"]], f"tags.`{PARENT_RUN}` = '{parent.info.run_id}'"
    )
    assert parent.info.run_name == "tiny-1"
    assert parent.info.status == "FINISHED"
    assert {run.info.run_name for run in nested} == set(played.pipeline.records)
    assert {run.info.status for run in nested} == {"FINISHED"}


def test_the_recipe_is_kept_whole_and_as_flat_parameters(played: Played) -> None:
    run_id = played.handle["run_id"]
    params = played.client.get_run(run_id).data.params
    kept = yaml.safe_load(Path(played.client.download_artifacts(run_id, "recipe.yaml")).read_text())
    assert params["domains.law.source.kind"] == "text"
    assert params["seed"] == "0"
    assert kept == RECIPE


def test_a_stages_run_says_what_it_is_and_was_made_from(played: Played) -> None:
    run = played.run("mix.bam")
    address = played.pipeline.folder(played.pipeline.records["mix.bam"])
    assert run.data.tags["bam.key"] == key_of("mix.bam")
    assert run.data.tags["bam.artifact"] == str(address)
    assert run.data.tags["bam.parent.seed"] == key_of("seed")
    assert run.data.tags["bam.parent.expert.law"] == key_of("expert.law")
    assert run.data.tags["mlflow.source.git.commit"] == COMMIT
    assert run.data.tags["mlflow.source.name"] == "bam run tiny"
    assert run.data.tags["mlflow.user"] == "ada"
    assert json.loads(run.data.params["experts"]) == list(DOMAINS)


def test_a_description_links_to_the_pages_of_parent_models(played: Played) -> None:
    seed = played.model("seed")
    note = played.run("mix.bam").data.tags["mlflow.note.content"]
    link = (
        f"[`seed@{key_of('seed')[:12]}`](#/experiments/{seed.experiment_id}/models/{seed.model_id}?{RUNS_AND_MODELS})"
    )
    assert link in note.splitlines()[0], "MLflow cuts off what comes later"
    assert f"`bam lineage mix.bam@{key_of('mix.bam')[:12]}`" in note


def test_curves_are_whole_with_one_point_a_step(played: Played) -> None:
    points = played.client.get_metric_history(played.run_id("seed"), "loss")
    by_step = {point.step: point.value for point in points}
    assert by_step == {row["step"]: row["loss"] for row in HISTORY}
    # The final figure of the record ends the curve again, at the last step, since the model's page needs it.
    assert len(points) == len(HISTORY) + 1


def test_a_model_is_ready_and_points_at_weights_that_stay_in_the_store(played: Played) -> None:
    model, record = played.model("train.bam"), played.pipeline.records["train.bam"]
    assert model.status == "READY"
    assert model.name == "train-bam"
    assert model.source_run_id == played.run_id("train.bam")
    assert model.model_type == "mixture"
    assert played.model("seed").model_type == "dense"
    assert model.params["d_model"] == "8"
    assert model.params["ffn.n_experts"] == "2"
    assert "bam.stage" not in model.params
    assert model.tags["bam.artifact"] == str(played.pipeline.folder(record))
    assert model.tags["bam.digest"] == record.digest
    assert model.tags["bam.parent.mix"] == key_of("mix.bam")
    files = {Path(entry.path).name for entry in played.client.list_logged_model_artifacts(model.model_id)}
    assert files == {"config.json", "MODEL_CARD.md"}
    uploaded = (played.pipeline.store / "mlflow").rglob("*")
    assert not [path for path in uploaded if path.suffix in (".safetensors", ".arrow")]


def test_a_model_carries_its_final_figures_and_its_scores(played: Played) -> None:
    for number, stage in enumerate(MODELS):
        figures = {metric.key: metric.value for metric in played.model(stage).metrics}
        assert figures["perplexity/general"] == 10.0
        assert figures["perplexity/law"] == 11.0
        assert figures["average_perplexity"] == 10.5 + number
    assert figures["loss"] == HISTORY[-1]["loss"]
    assert figures["train_flops"] == 1e12


def test_scores_are_in_the_run_that_made_the_model(played: Played) -> None:
    assert played.run("train.bam").data.metrics["perplexity/law"] == 11.0
    assert set(played.run("evaluate").data.metrics) == {f"average_perplexity.{stage}" for stage in MODELS}


def test_edges_between_models(played: Played) -> None:
    ids = {stage: played.model(stage).model_id for stage in MODELS}
    reads = {
        "seed": set(),
        "expert.law": {"seed"},
        "mix.bam": {"seed", "expert.law"},
        "train.bam": {"mix.bam"},
    }
    for stage, parents in reads.items():
        run = played.run(stage)
        assert {link.model_id for link in run.inputs.model_inputs} == {ids[parent] for parent in parents}
        assert [link.model_id for link in run.outputs.model_outputs] == [ids[stage]]
    evaluated = played.run("evaluate")
    assert {link.model_id for link in evaluated.inputs.model_inputs} == set(ids.values())
    assert evaluated.outputs.model_outputs == []


def test_edges_to_data(played: Played) -> None:
    def datasets(stage: str) -> dict[str, tuple[str, str]]:
        inputs = played.run(stage).inputs.dataset_inputs
        return {entry.dataset.name: (entry.dataset.digest, entry.tags[0].value) for entry in inputs}

    law = played.pipeline.records["data.law"]
    assert datasets("expert.law")["data.law"] == (law.digest[:32], "expert")
    assert datasets("data.law") == {"source.law": (sha256("text of law")[:32], "source")}
    assert set(datasets("tokenizer")) == {"source.general", "source.law"}


def test_small_files_are_artifacts_of_the_run(played: Played) -> None:
    assert played.files(played.run_id("report")) == {"report.html", "tables"}
    assert played.files(played.run_id("report"), "tables") == {"tables/perplexity.csv"}
    assert played.files(played.run_id("mix.bam")) == {"mix.json", "config.json", "MODEL_CARD.md", "lineage.html"}
    assert played.files(played.run_id("data.law")) == {"stats.json"}
    assert played.files(played.run_id("tokenizer")) == set()


def test_the_pipelines_run_has_the_report_the_whole_graph_and_links_to_its_stages(played: Played) -> None:
    run_id = played.handle["run_id"]
    assert played.files(run_id) == {"recipe.yaml", "lineage.html", "report.html", "tables"}
    page = Path(played.client.download_artifacts(run_id, "lineage.html")).read_text()
    note = played.client.get_run(run_id).data.tags["mlflow.note.content"]
    for stage, record in played.pipeline.records.items():
        assert record.key in page, stage
        name = f"`{stage}@{record.key[:12]}`"
        assert f"[{name}](#/experiments/{played.handle['experiment_id']}/" in note, stage
    assert "done after 100.0 s" in note


def test_a_runs_lineage_holds_its_ancestors_and_no_more(played: Played) -> None:
    page = Path(played.client.download_artifacts(played.run_id("expert.law"), "lineage.html")).read_text()
    assert key_of("seed") in page
    assert key_of("mix.bam") not in page


def test_whatever_was_made_from_it_is_one_click_away(played: Played) -> None:
    """By a search that the address holds: a parent's page needs no change when it gets a child."""
    note = played.model("seed").tags["mlflow.note.content"]
    address = re.search(r"\[runs of this experiment\]\(([^)]*)\)", note)
    assert address is not None
    place, _, query = address[1].partition("?searchFilter=")
    assert place == f"#/experiments/{played.handle['experiment_id']}/runs"
    query, _, rest = query.partition("&")
    assert rest == RUNS_AND_MODELS
    found = played.client.search_runs([played.handle["experiment_id"]], unquote(query))
    assert {run.info.run_name for run in found} == {"expert.law", "mix.bam", "train.bam", "evaluate", "report"}


def test_a_stage_says_which_run_of_which_recipe_made_it(played: Played) -> None:
    for tags in (played.run("mix.bam").data.tags, played.model("mix.bam").tags):
        assert (tags["bam.run"], tags["bam.pipeline"]) == ("tiny-1", "tiny")


def test_text_of_others_stays_text_on_a_page(tmp_path: Path) -> None:
    record = TinyPipeline(tmp_path).write(stage_of("seed", {}), {"a|b`]<b>.json": "{}"}, {})
    record = replace(record, inputs={"x|`<i>": InputRef("data.law", "a" * 64, "b" * 64)})
    note = describe(record, "/a`b", {}, "#/x")
    assert "| `a b <b>.json` | 2 |" in note
    assert "| x i | `data.law@aaaaaaaaaaaa` |" in note


def test_a_page_of_many_parents_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    record = TinyPipeline(tmp_path).write(stage_of("seed", {}), {f"{n}.json": "{}" for n in range(500)}, {})
    refs = {f"data.d{number}": InputRef(f"data.d{number}", "a" * 64, "b" * 64) for number in range(300)}
    note = describe(replace(record, inputs=refs), "/store/artifacts/seed", {}, "#/x")
    assert len(note) <= 8000
    shown_inputs, shown_files = note.count("| `data.d"), note.count(".json`")
    assert f"| and {300 - shown_inputs} more | |" in note
    assert f"| and {500 - shown_files} more | |" in note


def test_a_tracker_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TinyPipeline(tmp_path).play(fresh_tracker(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_secrets_of_a_recipe_are_hidden(tmp_path: Path) -> None:
    tracker = fresh_tracker(tmp_path)
    source = {"kind": "jsonl", "path": "https://ada:pw@host/law.jsonl?sig=abc", "hub_token": "hf_abc"}
    run_id = tracker.start_pipeline("tiny", "r", {"domains": {"law": {"source": source}}})["run_id"]
    params = tracker.client.get_run(run_id).data.params
    kept = Path(tracker.client.download_artifacts(run_id, "recipe.yaml")).read_text()
    assert params["domains.law.source.path"] == "https://***@host/law.jsonl?***"
    assert params["domains.law.source.hub_token"] == "***"
    assert not [secret for secret in ("pw@", "abc") if secret in kept]


def test_more_parameters_and_metrics_than_one_call_takes(tmp_path: Path) -> None:
    tracker = fresh_tracker(tmp_path)
    handle = tracker.start_pipeline("tiny", "r", {f"p{number}": number for number in range(250)})
    tracker.log(handle, 1, {"loss": float("nan"), "odd name é!": 1.0, "nested": {"a": 2}, "flag": True})
    data = tracker.client.get_run(handle["run_id"]).data
    assert len(data.params) == 250
    assert data.metrics["nested/a"] == 2.0
    assert data.metrics["loss"] != data.metrics["loss"]
    assert "flag" not in data.metrics


@pytest.mark.parametrize("name", ["a b", "100%", "what?", "é", "a%20b"])
def test_a_store_may_have_any_name(tmp_path: Path, name: str) -> None:
    from infra.mlflow_connect import default_tracking_uri

    store = tmp_path / name
    tracker = fresh_tracker(store)
    uri = default_tracking_uri(str(store))
    assert uri is not None
    run_id = MlflowTracker(uri, str(store)).start_pipeline("tiny", "r", RECIPE)["run_id"]
    assert (store / "mlflow" / "tiny" / run_id / "artifacts" / "recipe.yaml").is_file()
    tracker = MlflowTracker(uri, str(store))
    assert tracker.client.get_run(run_id).info.run_name == "r"


def test_a_card_is_shown_with_its_front_matter_last_and_fenced() -> None:
    assert shown_card("---\nlicense: mit\n---\n\n# m\n\ntext\n") == "# m\n\ntext\n\n```yaml\nlicense: mit\n```\n"
    assert shown_card("# no front matter\n\n---\n") == "# no front matter\n\n---\n"
