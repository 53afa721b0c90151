"""`bam show mix.<variant>`: what the mixture was at step 0, whole in JSON, and within the terminal for people."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from click import unstyle

from bam_core.graph.record import Record, artifact_digest
from infra.store import ArtifactStore
from pipelines.cli.step0 import step0_text, within

REPORT: dict[str, Any] = {
    "tokens_per_domain": {"general": 64, "law": 64},
    "seed": "general",
    "layers": [
        {
            "attention_gate_sum": 1.0,
            "attention_accuracy": 0.875,
            "attention_condition": 1.234,
            "ffn_gate_sum": 0.52,
            "ffn_shrink": 0.26,
            "ffn_accuracy": 0.5,
            "ffn_condition": None,
            "distance": {"general": 0.125, "law": 12.345},
        },
        {
            "attention_gate_sum": None,
            "attention_accuracy": None,
            "attention_condition": None,
            "ffn_gate_sum": 0.6,
            "ffn_shrink": 0.3,
            "ffn_accuracy": 0.25,
            "ffn_condition": 7.5,
            "distance": {"general": 0.5, "law": None},
        },
    ],
    "perplexity": {
        "general": {"general": 31.98, "law": 12.92, "average": 22.45},
        "law": {"general": 87.82, "law": 6.53, "average": 47.175},
        "mixture": {"general": 127.4, "law": None, "average": None},
    },
    "warnings": ["ffn routers of 1 of 2 layers tell some experts apart far worse than others: " + "more text " * 8],
}


def plain(report: dict[str, Any], width: int) -> str:
    return unstyle(step0_text(report, width))


def cells(words: str, first: str) -> list[str]:
    """The line that begins with this cell, split."""
    return next(line.split() for line in words.splitlines() if line.split()[:1] == [first])


def test_the_router_of_what_experts_share_is_a_sentence_where_there_is_one():
    words = " ".join(plain(REPORT | {"shared": {"accuracy": 0.966, "own": 0.9, "condition": 1.5}}, 80).split())
    assert (
        "the router of what experts share: 97% of held-out tokens are given most to their own domain's model, which "
        "has 90% of their mix on average; condition 1.500"
    ) in words
    assert "experts share" not in plain(REPORT, 80)


def test_each_layer_has_its_gates_its_routers_and_its_distances():
    words = plain(REPORT, width=120)
    assert words.splitlines()[0].split("  ") == [
        *("layer", "attn gates", "FFN shrink", "attn acc.", "FFN acc.", "attn cond.", "FFN cond."),
        *("from general", "from law"),
    ]
    assert cells(words, "0") == ["0", "1.000", "0.260", "88%", "50%", "1.234", "-", "0.125", "12.35"]
    assert cells(words, "1") == ["1", "-", "0.300", "-", "25%", "-", "7.500", "0.500", "-"]


def test_perplexities_of_the_dense_models_and_the_mixture():
    words = plain(REPORT, width=120)
    assert cells(words, "perplexity") == ["perplexity", "general", "law", "average"]
    assert cells(words, "general") == ["general", "(seed)", "31.98", "12.92", "22.45"]
    assert cells(words, "mixture") == ["mixture", "127.40", "-", "-"]
    assert "warning: ffn routers of 1 of 2 layers" in words


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_asked_for(width: int):
    report = deepcopy(REPORT)
    for layer in report["layers"]:
        layer["distance"] = {f"domain{i}": i / 10 for i in range(12)}
    words = plain(report, width)
    assert max(len(line) for line in words.splitlines()) <= width
    assert all(f"from domain{i}" in words for i in range(12))
    assert [line.split()[0] for line in words.splitlines()[1:3]] == ["0", "1"]


def test_a_branch_without_experts_has_no_columns_and_an_empty_report_no_tables():
    report = deepcopy(REPORT)
    for layer in report["layers"]:
        layer |= {name: None for name in layer if name.startswith("attention")}
    assert "attn" not in plain(report, 120)
    assert plain({"warnings": ["no text"]}, 120) == "warning: no text"


def test_a_wide_table_is_cut_between_columns_and_repeats_the_first():
    assert unstyle(within(["layer", "aaaa", "bbbb", "cc"], [["0", "1", "2", "3"]], width=17)) == (
        "layer  aaaa  bbbb\n0         1     2\n\nlayer  cc\n0       3"
    )


def make(store: ArtifactStore, mix: str) -> Record:
    with store.scratch("mix.bam", "a" * 64) as out:
        (out / "mix.json").write_text(mix)
        outputs = store.hash_outputs(out)
        record = Record("mix.bam", "a" * 64, {}, {}, outputs, artifact_digest(outputs), {}, {}, 0.0, 1.0, 1)
        store.commit(out, record)
    return record


def test_show_has_the_record_and_then_step_0(bam, here, monkeypatch):
    record = make(ArtifactStore(str(here / "bam_store")), json.dumps({"receipt": {"step0": REPORT}}))
    answer = json.loads(bam("show", "mix.bam", "--json").out)
    assert answer.pop("step0") == REPORT
    assert answer.pop("artifact").endswith("mix.bam/aaaaaaaaaaaa")
    assert answer == record.to_json()
    monkeypatch.setenv("COLUMNS", "60")
    words = bam("show", "mix.bam").out
    head, _, step0 = words.partition("\nstep 0\n")
    assert record.digest in head
    assert cells(step0, "0")[1:3] == ["1.000", "0.260"]
    assert max(len(line) for line in step0.splitlines()) <= 60


@pytest.mark.parametrize("mix", ["{", "[]", '{"variant": {}}'])
def test_a_mix_json_that_cannot_be_read_is_said_beside_the_record(bam, here, mix: str):
    make(ArtifactStore(str(here / "bam_store")), mix)
    done = bam("show", "mix.bam")
    assert done.status == 0
    assert "a" * 64 in done.out
    assert "warning: mix.json cannot be read" in done.out
    assert "`bam verify mix.bam@aaaaaaaaaaaa`" in " ".join(done.out.split())
