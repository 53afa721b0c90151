"""A run with plug-ins: a routing rule that is ours under another name gives the same models, a metric its figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bam_core.plugins import METRICS, ROUTING_RULES
from tests.e2e.kit import MODELS, Place
from tests.plugin_kit import Visible, install, visible

__all__ = ["visible"]

SOURCE = """
from bam_core.nn.routing import softmax_topk

def gate(logits_NE, top_k, balance_E=None):
    return softmax_topk(logits_NE, top_k, balance_E)

def n_documents(judged):
    return len(judged.scored.nll)
"""
GATE, METRIC = "--set=variants.bam.ffn.gate=acme.same", "--set=evaluate.metrics=[acme.documents]"


@pytest.fixture
def acme(tmp_path: Path, visible: Visible) -> None:
    entries = {ROUTING_RULES: {"acme.same": "acme_run:gate"}, METRICS: {"acme.documents": "acme_run:n_documents"}}
    visible(install(tmp_path / "site", "bam-acme", "0.3", entries, {"acme_run": SOURCE}))


def test_a_plugged_run(acme: None, up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "overlap", "seed", "expert.*", "mix.btx", "train.btx", "dense")
    answer = place.run(GATE, METRIC)
    assert answer.status == 0, answer.err
    made = {stage for stage, entry in answer.stages().items() if entry["status"] == "done"}
    assert made == {"mix.bam", "train.bam", "evaluate", "routing", "report"}
    for stage in ("mix.bam", "train.bam"):
        own, ours = place.artifact(stage) / "model.safetensors", finished.artifact(stage) / "model.safetensors"
        assert own.read_bytes() == ours.read_bytes()
    assert place.perplexity() == finished.perplexity()

    used = {"acme.same": {"distribution": "bam-acme", "version": "0.3"}}
    for stage in ("mix.bam", "train.bam", "routing"):
        record = place.record(stage)
        assert record["payload"]["config"]["plugins"] == record["provenance"]["plugins"] == {ROUTING_RULES: used}
    assert "plugins" not in place.record("seed")["provenance"]
    assert METRICS in place.record("evaluate")["provenance"]["plugins"]

    metrics = json.loads((place.artifact("evaluate") / "metrics.json").read_text())["models"]
    assert metrics.keys() == set(MODELS)
    with (place.artifact("report") / "tables" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["acme.documents"] * len(MODELS)
    assert {float(row["law"]) for row in rows} == {metrics["seed"]["acme.documents"]["law"]}
    assert "Metrics of plug-ins" in (place.artifact("report") / "report.html").read_text()
    assert "Metrics of plug-ins" not in (finished.artifact("report") / "report.html").read_text()
