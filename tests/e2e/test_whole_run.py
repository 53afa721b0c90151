"""One command from text to a report: what is there afterwards, what it says, and that it can be made again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import DOMAINS, MODELS, STAGES, Place

MODEL_FOLDER = {"config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"}
FILES = {
    "tokenizer": {"tokenizer.json"},
    **{f"data.{domain}": {"train/00000.arrow", "valid/00000.arrow", "stats.json"} for domain in DOMAINS},
    **dict.fromkeys(MODELS, MODEL_FOLDER),
    **{name: MODEL_FOLDER | {"mix.json"} for name in ("mix.bam", "mix.btx")},
    "evaluate": {"perplexity.json", "documents.parquet", "tasks.json", "routing.json"},
    "overlap": {"overlap.json"},
    "routing": {"routing.parquet", "routing_summary.json", "knock_out.json"},
    "report": {"report.html"},
}
RECORD_KEYS = {
    "schema", "stage", "key", "payload", "inputs", "outputs", "digest", "metrics", "provenance", "started", "ended",
    "attempt", "mlflow", "checksum",
}  # fmt: skip
SCORE_KEYS = {"perplexity", "nll", "tokens", "bits_per_byte"}
MODEL_KEYS = {
    "domains", "average_perplexity", "token_average_nll", "token_average_perplexity", "forgetting", "params_total",
    "params_active", "flops_per_token", "train_tokens", "train_flops", "seeds",
}  # fmt: skip

REUSE = """
import sys
from pipelines.cli import main
status = main(sys.argv[1:])
heavy = sorted({"ray", "mlflow", "torch"} & set(sys.modules))
print("imported:", *heavy, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("stage", STAGES)
def test_each_artifact_has_the_files_of_its_contract_and_a_whole_record(finished: Place, stage: str) -> None:
    folder, record = finished.artifact(stage), finished.record(stage)
    paths = {output["path"] for output in record["outputs"]}
    assert paths >= FILES[stage]
    assert all((folder / path).is_file() for path in paths)
    assert set(record) == RECORD_KEYS
    assert folder.name == record["key"][:12]
    for parent in record["inputs"].values():
        made = finished.record(parent["stage"])
        assert (parent["key"], parent["digest"]) == (made["key"], made["digest"])


def test_a_finished_run_leaves_no_lease_scratch_or_checkpoint(finished: Place) -> None:
    left = [path for path in finished.store.rglob("*") if path.name.startswith(("lease", "scratch-", "step-", "."))]
    assert left == []
    assert not list((finished.store / "training").glob("*"))


def test_the_report_comes_with_tables_and_figures(finished: Place) -> None:
    folder = finished.artifact("report")
    assert list(folder.glob("tables/*.csv"))
    assert list(folder.glob("figures/*.svg"))


def test_perplexity_json_keeps_its_contract(finished: Place) -> None:
    perplexity = json.loads(finished.perplexity())
    models = perplexity["models"]
    assert perplexity["scoring"] == {"context": 32, "stride": 16}
    assert set(models) == {*MODELS, "ensemble"}
    for name, model in models.items():
        assert set(model) >= MODEL_KEYS
        assert set(model["domains"]) == set(DOMAINS)
        for score in model["domains"].values():
            assert set(score) == SCORE_KEYS
            assert score["perplexity"] == pytest.approx(math.exp(score["nll"]))
            assert score["tokens"] > 0
        assert model["seeds"] == [0]
        if name == "ensemble":  # no stage made it
            assert model["experts"] == ["seed", "expert.code", "expert.law"]
            continue
        made = finished.record(name)["metrics"]
        assert model["train_tokens"] == made.get("train_tokens", 0)
        assert model["params_total"] == made["params_total"]


def test_training_taught_each_expert_its_own_domain(finished: Place) -> None:
    models = json.loads(finished.perplexity())["models"]

    def on(model: str, domain: str) -> float:
        return models[model]["domains"][domain]["perplexity"]

    for domain in ("code", "law"):
        assert on(f"expert.{domain}", domain) < on("seed", domain)
        assert on("train.bam", domain) < on("mix.bam", domain)


def test_mix_json_says_where_each_tensor_came_from(finished: Place) -> None:
    mix = json.loads((finished.artifact("mix.bam") / "mix.json").read_text())
    assert mix["experts"] == {"general": "seed", "code": "expert.code", "law": "expert.law"}
    stacked = mix["tensors"]["blocks.0.ffn.w_gate"]
    assert stacked["op"] == "stack"
    assert [source["expert"] for source in stacked["from"]] == ["general", "code", "law"]
    assert mix["tensors"]["embed.weight"]["op"] == "mean"


def test_a_second_run_reuses_everything_and_imports_no_heavy_library(finished: Place) -> None:
    before = _files(finished.store)
    words = finished.words("run", str(finished.recipe), "--json", tracking=(), executor="ray")
    ended = subprocess.run([sys.executable, "-c", REUSE, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    value = json.loads(ended.stdout)
    assert {stage["action"] for stage in value["stages"]} == {"reuse"}
    assert ended.stderr.splitlines()[-1].split() == ["imported:"]
    new = [path for path, state in _files(finished.store).items() if before.get(path) != state]
    assert [Path(path).parent for path in new] == [finished.store / "runs"], "that it ran, and nothing else"


def test_run_json_keeps_its_contract(finished: Place) -> None:
    value = finished.run().json
    assert set(value) == {"run", "status", "seconds", "stages", "report"}
    assert value["status"] == "done"
    assert [stage["stage"] for stage in value["stages"]] == list(STAGES)
    assert all(set(stage) >= {"stage", "key", "action", "seconds", "artifact"} for stage in value["stages"])
    assert value["report"] == f"{finished.artifact('report')}/report.html"
    for stage in value["stages"]:
        assert Path(stage["artifact"]) == finished.artifact(stage["stage"])


def test_plan_json_keeps_its_contract(finished: Place) -> None:
    value = finished.plan().json
    assert set(value) == {"stages", "models", "searches", "data", "recipe", "warnings", "plugins"}
    assert {stage["action"] for stage in value["stages"]} == {"reuse"}
    assert all(set(stage) >= {"stage", "key", "action", "reason", "cause"} for stage in value["stages"])
    assert set(value["models"]) == set(MODELS)
    scores = json.loads(finished.perplexity())["models"]
    for name, model in value["models"].items():
        for figure in ("params_total", "params_active", "flops_per_token", "train_tokens", "train_flops"):
            assert model[figure] == scores[name][figure]


def test_the_same_recipe_gives_the_same_bytes_in_another_store(finished: Place, empty: Place) -> None:
    """Texts elsewhere, checkpoints at other steps: neither is part of the result."""
    answer = empty.run("--set", "runtime.checkpoint_steps=7")
    assert answer.status == 0, answer.err
    for stage in STAGES[:-1]:
        assert empty.record(stage)["key"] == finished.record(stage)["key"]
        assert empty.record(stage)["outputs"] == finished.record(stage)["outputs"]
    assert empty.perplexity() == finished.perplexity()


def test_the_installed_script_runs_a_pipeline(up_to: Any, finished: Place) -> None:
    """By a relative path, from another folder, with the store in the environment."""
    place = up_to("tokenizer", "data.*", "overlap", "seed", "expert.*", "mix.*", "train.*", "dense")
    script = Path(sys.executable).with_name("bam")
    environment = {**os.environ, "BAM_STORE": "store", "BAM_EXECUTOR": "local"}
    ended = subprocess.run(
        [script, "run", place.recipe.name, "--only", "evaluate"],
        cwd=place.recipe.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "train.bam" in ended.stdout
    assert place.perplexity() == finished.perplexity()


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}
