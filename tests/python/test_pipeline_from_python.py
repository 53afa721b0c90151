"""`bam` from Python: the command line's wiring, its words and its results, on one finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bam
from bam.pipeline import _set_words
from bam.runs import Run
from bam.words import html_table, in_words
from bam_core.errors import StoreError
from infra.ray_jobs import Job
from pipelines import wiring
from pipelines.cli import main
from pipelines.recipe.document import parse
from pipelines.runner import RunResult, StageResult
from pipelines.wiring import Submitted
from tests.e2e.kit import MODELS, NO_MLFLOW, STAGES, Place


@pytest.fixture
def pipeline(finished: Place) -> bam.Pipeline:
    return bam.load(finished.recipe, store=finished.store, executor="local", tracking_uri=NO_MLFLOW[1])


def words_of(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says is wrong."""
    assert main(list(argv)) == 2
    return capsys.readouterr().err.removeprefix("bam: ").rstrip("\n")


def test_a_plan_is_the_command_lines(pipeline: bam.Pipeline, finished: Place, capsys: Any) -> None:
    plan = pipeline.plan()
    assert plan.actions == dict.fromkeys(STAGES, "reuse")
    assert len(plan) == len(STAGES)
    assert plan["train.bam"].key == plan.keys["train.bam"]
    assert "train.bam" in plan
    assert list(plan.frame()["stage"]) == list(STAGES)
    assert set(plan.models().index) == set(MODELS)
    capsys.readouterr()
    main(["plan", str(finished.recipe), "--store", str(finished.store)])
    assert capsys.readouterr().out.rstrip("\n") == repr(plan)
    html = plan._repr_html_()
    assert html.count("<tr>") == 1 + len(STAGES)
    assert f"{len(STAGES)} stages: {len(STAGES)} reuse" in html
    assert pipeline.plan(only="expert.*", force=["expert.law"]).actions["expert.law"] == "run"


def test_running_what_is_done_reuses_it(pipeline: bam.Pipeline) -> None:
    run = pipeline.run(quiet=True)
    assert run.status == "done"
    assert {stage.status for stage in run} == {"reused"}
    assert list(run.frame()["stage"]) == list(STAGES)
    assert run.report is not None
    assert run.report in run._repr_html_()
    assert repr(run).startswith("perplexity")
    assert pipeline.stage("expert.law", quiet=True).stage == "expert.law"


def test_results_are_the_reports_files(pipeline: bam.Pipeline, finished: Place) -> None:
    results = pipeline.results()
    [report] = (finished.store / "artifacts" / "report").iterdir()
    tables = {file.stem for file in (report / "tables").glob("*.csv")}
    assert set(results) == tables | {"documents", "routing_tokens"}
    assert "perplexity" in results
    assert results["costs"].equals(pd.read_csv(report / "tables" / "costs.csv"))
    judged = json.loads(next((finished.store / "artifacts" / "evaluate").glob("*/perplexity.json")).read_text())[
        "models"
    ]
    for model, row in results.perplexity.iterrows():
        assert row["law"] == pytest.approx(judged[model]["domains"]["law"]["perplexity"], rel=1e-9)
        assert row["average"] == pytest.approx(judged[model]["average_perplexity"], rel=1e-9)
    assert results["documents"].groupby("model")["tokens"].sum().nunique() == 1
    drawn = {file.stem: file.read_text() for file in (report / "figures").glob("*.svg")}
    assert {name: figure._repr_svg_() for name, figure in results.figures.items()} == drawn
    assert results.figures._repr_html_().count("<img") == len(drawn)
    assert results.get("no such") is None
    with pytest.raises(bam.UsageError, match="did you mean 'perplexity'"):
        results["perplexities"]


def test_artifacts(pipeline: bam.Pipeline, finished: Place, capsys: Any) -> None:
    store = bam.open_store(finished.store)
    made = store["train.bam"]
    assert made.ref == pipeline["train.bam"].ref
    assert made.record.stage == "train.bam"
    assert {artifact.stage for artifact in store} == set(STAGES)
    assert len(store) == len(STAGES) == len(store.frame())
    assert made.ref in store
    assert "train.bam@ffffffff" not in store
    assert made.config["variant"] == "bam"
    assert made.read("config.json")["d_model"] == 16
    assert len(made.training()) > 1
    assert made.card().startswith("---") or "# " in made.card()

    model, tokenizer = made.model(), made.tokenizer()
    assert isinstance(model, bam.MixtureLM)
    assert made.model("fp64").embed.weight.dtype is torch.float64
    assert tokenizer.decode(tokenizer.encode_batch(["the old river"])[0]) == "the old river"
    capsys.readouterr()
    main(["generate", made.ref, "the old", "--max-new-tokens", "5", "--store", str(finished.store)])
    assert capsys.readouterr().out == made.generate("the old", 5) + "\n"
    assert made.score(["the old river walks"] * 20).perplexity > 1
    assert made.extract("law").config == model.config.dense()

    lineage = made.lineage()
    assert "mix.bam" in {node.stage for node in lineage}
    assert lineage._repr_svg_().startswith("<?xml")
    assert set(lineage.frame()["stage"]) == {node.stage for node in lineage.graph.nodes}
    assert json.loads(lineage.to("json"))["root"]["stage"] == "train.bam"
    why = store.compare("train.bam", "train.btx")
    assert str(why[0].changes[0]).startswith("variant.attention")
    assert "mix.bam" in repr(why)
    assert "variant.attention" in why._repr_html_()
    assert store.compare("seed", "seed").is_empty


def test_what_is_wrong_is_said_as_on_the_command_line(finished: Place, tmp_path: Path, capsys: Any) -> None:
    store, recipe = str(finished.store), str(finished.recipe)
    with pytest.raises(bam.InvalidInput) as caught:
        bam.load(recipe, set={"model.d_modle": 3, "phases.seed.lr": -1})
    said = words_of("plan", recipe, "--set", "model.d_modle=3", "--set", "phases.seed.lr=-1", capsys=capsys)
    assert str(caught.value) == said
    assert {problem.path for problem in caught.value.problems} == {"model.d_modle", "phases.seed.lr"}
    with pytest.raises(bam.UsageError) as wrong_name:
        bam.load("quikstart")
    assert str(wrong_name.value) == words_of("plan", "quikstart", capsys=capsys)
    with pytest.raises(bam.UsageError) as wrong_ref:
        bam.open_store(store)["train.bma"]
    assert str(wrong_ref.value) == words_of("show", "train.bma", "--store", store, capsys=capsys)
    with pytest.raises(bam.UsageError) as no_model:
        bam.open_store(store)["tokenizer"].model()
    assert "makes no model; try one of seed" in str(no_model.value)
    with pytest.raises(bam.UsageError) as wrong_stage:
        bam.load(recipe, store=store).plan(only="trian.bam")
    assert str(wrong_stage.value) == words_of("plan", recipe, "--only", "trian.bam", "--store", store, capsys=capsys)
    nothing = bam.load(recipe, store=tmp_path / "none", executor="local")
    with pytest.raises(bam.UsageError, match=r"no results yet \(evaluate: never made; report: never made\); run"):
        nothing.results()
    with pytest.raises(bam.UsageError, match=r"seed: not made yet \(never made\)"):
        nothing["seed"]
    assert not (tmp_path / "none").exists()
    with pytest.raises(bam.UsageError, match=r"submit\(\) runs it there as a job"):
        bam.load(recipe, store=store, address="http://127.0.0.1:8265").run()
    with pytest.raises(bam.UsageError, match="is no value of a recipe"):
        bam.load(recipe, set={"seed": object()})


def test_a_job_is_asked_for_as_by_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The same recipe, stages, options and continuing command; what is sent is `pipelines.wiring`'s to test."""
    asked = []

    def submit(recipe: Any, settings: Any, selection: Any, submission: Any, *, again: bool, **_: Any) -> Submitted:
        asked.append((recipe, settings, selection, submission, again))
        return Submitted(Job("bam-1", "PENDING", "", None, None, "", None, {}), True, 1)

    monkeypatch.setattr(wiring, "submit", submit)
    address = "http://127.0.0.1:8265"
    words = ["--set", "seed=3", "--only", "expert.*", "--only", "mix.bam", "--fail-fast", "--again", "--detach"]
    assert main(["submit", "quickstart", *words, "--address", address]) == 0
    pipeline = bam.load("quickstart", set={"seed": 3}, address=address)
    job = pipeline.submit(only=["expert.*", "mix.bam"], keep_going=False, again=True)
    assert job.id == "bam-1"
    assert asked[0] == asked[1]


def test_settings_are_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BAM_STORE", str(tmp_path / "there"))
    monkeypatch.setenv("BAM_EXECUTOR", "local")
    assert bam.load("quickstart").settings.store == str(tmp_path / "there")
    assert bam.load("quickstart").settings.executor == "local"
    assert bam.load("quickstart", store="here", executor="ray").settings.store == "here"
    monkeypatch.setenv("BAM_EXECUTOR", "cloud")
    with pytest.raises(bam.UsageError, match="BAM_EXECUTOR='cloud': must be ray or local"):
        bam.load("quickstart")


def test_a_run_that_has_not_ended_well(pipeline: bam.Pipeline) -> None:
    def ended(status: str) -> RunResult:
        stages = [("seed", "done", None), ("expert.law", "failed", "expert.law: no luck"), ("mix.bam", "skipped", None)]
        made = [StageResult(name, "0" * 64, "run", how, 1.0, None, error) for name, how, error in stages]
        return RunResult("tiny-1", status, 1.0, tuple(made))

    with pytest.raises(bam.StageFailed) as caught:
        Run.of(ended("failed"), pipeline._session)
    assert str(caught.value).splitlines() == [
        "expert.law: no luck",
        "not started, they need it: mix.bam",
        "what is done is kept, and the same call continues",
    ]
    with pytest.raises(KeyboardInterrupt):
        Run.of(ended("interrupted"), pipeline._session)


plain = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=12)
plain |= st.floats(allow_nan=False, allow_infinity=False)


def nested(part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3)


@settings(max_examples=50)
@given(st.recursive(plain, nested))
def test_values_arrive_as_they_were_given(value: Any) -> None:
    [word] = _set_words({"a.b": value})
    key, _, text = word.partition("=")
    read, problems = parse(text, "--set")
    assert (key, read, problems) == ("a.b", value, [])


def test_secrets_are_hidden_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "hunter2hunter2")
    with pytest.raises(StoreError) as caught, in_words():
        raise StoreError("https://me:pass@host/x?sig=1 refused hunter2hunter2")
    assert str(caught.value) == "https://***@host/x?*** refused ***"


def test_html_is_escaped() -> None:
    assert "<script>" not in html_table(["<script>"], [["<script>", 1]], right=[1])


def test_routing_is_drawn_from_models_in_memory() -> None:
    config = bam.ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=8, max_seq_len=8)
    models = {}
    for seed, name in enumerate(("general", "law")):
        models[name] = bam.LM(config)
        bam.init_weights(models[name], seed)
    rows = {name: torch.arange(18).reshape(2, 9) % 11 for name in models}
    figures = bam.plot_routing(bam.upcycle(models, "bam").model, rows)
    assert list(figures) == ["attention", "ffn"]
    assert figures["ffn"].svg.count("general, layer 1, expert law") == 1
    with pytest.raises(bam.InvalidInput, match="a dense model has no router"):
        bam.plot_routing(models["law"], rows)


def test_doctor(tmp_path: Path) -> None:
    checks = bam.doctor(store=str(tmp_path), tracking_uri=NO_MLFLOW[1])
    assert "python" in [check.name for check in checks]
    assert not checks.ok  # that tracking address does not answer
    assert "mlflow tracking" in repr(checks)
    assert "<table>" in checks._repr_html_()


def test_the_shipped_recipes_are_listed() -> None:
    assert "quickstart" in bam.recipes()
