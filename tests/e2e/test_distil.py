"""A trained mixture with cheaper attention, from its recipe to the report, and the table of what it costs."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bam_core.checkpoint import load_model, open_tensors
from tests.e2e.kit import Place, executed, merged

DISTIL = {
    "bam_top1": {"from": "bam", "attention": {"routing": "top_k", "top_k": 1}, "tokens": 8 * 256, "gate": 0.1},
    "bam_shared": {"from": "bam", "attention": {"kv": "shared"}, "tokens": 8 * 256, "attention_soft_frac": 0.5},
}
MADE = ("distil.bam_top1", "distil.bam_shared")


@pytest.fixture
def place(up_to: Callable[..., Place]) -> Place:
    made = up_to("tokenizer", "data.*", "overlap", "seed", "expert.*", "mix.bam", "train.bam")
    changes = {"distil": DISTIL, "variants": {"btx": None}, "dense": False, "ensemble": False}
    made.set_recipe(merged(made.recipe_dict(), changes))
    return made


def test_from_the_recipe_to_the_report_and_to_the_table(place: Place, tmp_path: Path) -> None:
    teacher = (place.artifact("train.bam") / "model.safetensors").read_bytes()
    before = place.attempts()
    answer = place.run()
    assert answer.status == 0, answer.err
    assert executed(before, place.attempts()) == {"evaluate", "routing", "report"}, "beside what is distilled"
    assert (place.artifact("train.bam") / "model.safetensors").read_bytes() == teacher

    _models(place)
    _figures(place)
    _lineage(place)
    _pareto(place, tmp_path / "out")
    assert set(place.plan().actions().values()) == {"reuse"}


def _models(place: Place) -> None:
    start = open_tensors(place.artifact("train.bam"))
    top_1, shared = (load_model(place.artifact(stage)) for stage in MADE)
    assert (top_1.config.attention.top_k, top_1.config.attention.kv) == (1, "expert")
    assert (shared.config.attention.top_k, shared.config.attention.kv) == (3, "shared")
    mean = start.get("blocks.0.attn.w_k").double().mean(0)
    moved = (shared.state_dict()["blocks.0.attn.w_k"] - mean).abs().max()
    assert 0 < float(moved) < 0.1, "it starts from the mean, and learns"
    assert not torch.equal(top_1.state_dict()["blocks.0.attn.router"], start.get("blocks.0.attn.router"))
    card = (place.artifact("distil.bam_top1") / "MODEL_CARD.md").read_text()
    assert "learned from bam as it was trained" in card
    assert "its teacher's probabilities by 0.5, at temperature 1, its gates by 0.1" in card


def _figures(place: Place) -> None:
    planned = place.plan().json["models"]
    models = json.loads(place.perplexity())["models"]
    for stage in MADE:
        made = json.loads((place.artifact(stage) / "training.json").read_text())
        assert made["history"][-1].keys() >= {"loss", "kl"}
        assert ("gate_kl" in made["history"][-1]) == (stage == "distil.bam_top1")
        metrics = place.record(stage)["metrics"]
        assert metrics["train_tokens"] == 8 * 256
        assert metrics["train_flops"] == planned[stage]["train_flops"], "the teacher's forward passes too"
        assert metrics["lineage_tokens"] == 8 * 256 + place.record("train.bam")["metrics"]["lineage_tokens"]
        assert models[stage]["average_perplexity"] < 2 * models["train.bam"]["average_perplexity"]
    assert models["distil.bam_shared"]["params_total"] < models["train.bam"]["params_total"]
    routing = json.loads((place.artifact("routing") / "routing_summary.json").read_text())["models"]
    assert set(routing) == {"train.bam", *MADE}
    report = (place.artifact("report") / "report.html").read_text()
    assert all(stage in report for stage in MADE)


def _lineage(place: Place) -> None:
    record = place.record("distil.bam_top1")
    assert record["inputs"]["teacher"]["stage"] == "train.bam"
    assert set(record["inputs"]) == {"teacher", "data.general", "data.code", "data.law"}
    tree = place.bam("tree", "distil.bam_top1")
    assert "train.bam" in tree.out
    blamed = place.bam("blame", "distil.bam_top1", "blocks.0.attn.w_q", "--json")
    assert blamed.status == 0, blamed.err
    assert "expert.law" in blamed.out, "by way of its teacher"


def _pareto(place: Place, out: Path) -> None:
    answer = place.bam("pareto", "train.bam", *MADE, "--tokens", "500", "--rounds", "2", "--out", str(out), "--json")
    assert answer.status == 0, answer.err
    rows = {row["name"]: row for row in answer.json["rows"]}
    soft, top_1, shared = (rows[f"train.bam: {form}"] for form in ("soft", "top-1", "shared keys and values"))
    assert soft["attention_experts_per_token"] == 3
    assert top_1["attention_experts_per_token"] == 1
    assert top_1["flops_per_token"] < rows["train.bam: threshold 0.3"]["flops_per_token"] <= soft["flops_per_token"]
    assert shared["cache_bytes_per_token"] * 3 == soft["cache_bytes_per_token"]
    assert rows["distil.bam_top1"]["flops_per_token"] == top_1["flops_per_token"]
    assert rows["distil.bam_shared"]["average_perplexity"] != shared["average_perplexity"]
    assert list(soft["perplexity"]) == ["general", "code", "law"], "in the recipe's order"
    assert all(len(row["tokens_per_s_of_rounds"]) == 2 for row in rows.values())
    assert json.loads((out / "pareto.json").read_text()) == answer.json
    table = list(csv.DictReader((out / "pareto.csv").read_text().splitlines()))
    assert [row["name"] for row in table] == list(rows)
    assert float(table[0]["perplexity_law"]) == soft["perplexity"]["law"]
    drawn = ET.parse(out / "pareto.svg").getroot()
    assert len([one for one in drawn.iter() if one.tag.endswith("circle")]) == 3 * len(rows)


def test_pareto_of_what_it_cannot_weigh_says_why(finished: Place) -> None:
    plain = finished.bam("pareto", "train.btx")
    assert plain.status == 2
    assert "has no attention experts" in plain.err
    assert finished.bam("pareto", "evaluate").status == 2
    high = finished.bam("pareto", "train.bam", "--threshold", "0.5")
    assert high.status == 2
    assert "threshold 0.5: must be at most 0.333, one in 3 experts" in high.err
