"""Mixtures other than BAM and BTX: copies and column groups, layers without experts, soft layers; and the ensemble."""

from __future__ import annotations

import csv
import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from bam_core.config import FFNExperts, ModelConfig
from pipelines.report import ReportInputs, build_report
from pipelines.report.findings import find, routing_findings
from pipelines.report.heatmaps import heat_maps
from pipelines.report.inputs import is_of
from pipelines.report.svg import Panel
from pipelines.report.tables import data_tables
from tests.report.fakes import EXPERTS, fake_run

MODEL = "train.btx"


def plain(text: Markup) -> str:
    return str(text.striptags())


def with_ffn(labels: list[str], shares: list[Any], **routing: Any) -> ReportInputs:
    """The run in which train.btx has these FFN experts; shares: of each layer, on every domain."""
    found = deepcopy(fake_run().routing)
    gates = [None if row is None else [share / 2 for share in row] for row in shares]
    ffn = {"fraction": shares, "mean_gate": gates, "entropy": [None if row is None else 0.5 for row in shares]}
    domains = {domain: {"attention": None, "ffn": ffn} for domain in found["models"][MODEL]["domains"]}
    found["models"][MODEL] |= {"ffn_experts": labels, "layers": len(shares), "domains": domains} | routing
    return fake_run(routing=found)


def ffn_panels(inputs: ReportInputs) -> list[Panel]:
    return list(next(m for m in heat_maps(inputs) if (m.model, m.router) == (MODEL, "ffn")).panels)


def texts(panel: Panel, class_: str = "") -> list[str]:
    found = [e for child in panel.children for e in child.iter("text") if class_ in (e.get("class") or "")]
    return [e.text or "" for e in found]


SIX = ["general", "code", "law", "math", "general#2", "general#3"]


def test_what_there_is_too_much_of_is_folded(tmp_path: Path):
    few, found = fake_run(), deepcopy(fake_run().routing)
    found["models"] |= {f"train.b{place}": found["models"]["train.bam"] for place in range(9)}
    pages = []
    for name, inputs in (("few", few), ("many", fake_run(routing=found, costs=few.costs * 4))):
        build_report(inputs, tmp_path / name)
        pages.append((tmp_path / name / "report.html").read_text())
    for what in ("<code>train.bam</code>, FFN router: share of tokens, in percent", "Each stage"):
        assert [f"<h3>{what}</h3>" in page for page in pages] == [True, False]
        assert [f"<details><summary>{what}</summary>" in page for page in pages] == [False, True]
    assert [page.count("<svg") for page in pages] == [pages[0].count("<svg"), pages[0].count("<svg") + 9 * 8]


def test_copies_have_columns_of_their_own_all_outlined_as_their_domains():
    even = [[1 / 6] * 6] * 2
    general, code, *_ = ffn_panels(with_ffn(SIX, even))
    assert texts(general, "mid")[:6] == ["general", "code", "law", "math", "ge…#2", "ge…#3"]
    outlined = [[e for e in panel.children if e.get("class") == "own"] for panel in (general, code)]
    assert [len(found) for found in outlined] == [3, 1]
    assert len({e.get("x") for e in outlined[0]}) == 3


@pytest.mark.parametrize(
    ("label", "domain", "belongs"),
    [
        ("law", "law", True),
        ("law#2", "law", True),
        ("law/1", "law", True),
        ("law#2/1", "law", True),
        ("laws", "law", False),
        ("law#x", "law", False),
        ("a.c", "abc", False),
        ("abc", "a.c", False),
    ],
)
def test_which_labels_are_a_domains(label: str, domain: str, belongs: bool):
    assert is_of(label, domain) == belongs


def test_labels_are_understood_as_the_config_gives_them():
    ffn = FFNExperts(6, 2, split=2, slots=("law", "code", "law"))
    config = ModelConfig(9, 8, 1, 2, 2, 8, 8, ffn=ffn, experts=("law", "code")).checked("a test")
    found = config.expert_labels("ffn")
    assert len(set(found)) == 6
    assert [is_of(label, "law") for label in found] == [True, True, False, False, True, True]


def test_layers_without_experts_have_no_row():
    inputs = with_ffn(["general", "code", "law", "math"], [None, [0.1, 0.2, 0.3, 0.4], None, [0.4, 0.3, 0.2, 0.1]])
    panel = ffn_panels(inputs)[0]
    assert texts(panel, "mid")[4:] == ["10", "20", "30", "40", "40", "30", "20", "10"]
    assert [text for text in texts(panel, "end") if text.isdigit()] == ["1", "3"]
    table = next(table for table in data_tables(inputs) if table.name == "routing")
    rows = [row for row in csv.DictReader(io.StringIO(table.csv())) if row["model"] == MODEL]
    assert {row["layer"] for row in rows} == {"1", "3"}
    assert [row["fraction"] for row in rows[:4]] == ["0.1", "0.2", "0.3", "0.4"]
    lines = [plain(line) for line in routing_findings(inputs)]
    assert "train.btx: every FFN expert is used in every layer." in lines


def test_a_soft_layer_shows_its_gates_and_says_so():
    """There every expert gets every token: equal shares say nothing."""
    shares = [[0.25] * 4, [0.0, 0.2, 0.3, 0.5]]
    inputs = with_ffn(["general", "code", "law", "math"], shares, ffn_soft_layers=[0])
    heat_map = next(m for m in heat_maps(inputs) if m.model == MODEL)
    assert heat_map.caption == "FFN router: share of tokens, in percent; * soft layer: mean gate"
    assert texts(heat_map.panels[0], "mid")[4:] == ["12", "12", "12", "12", "0", "20", "30", "50"]
    assert [text for text in texts(heat_map.panels[0], "end") if text.strip("*").isdigit()] == ["0*", "1"]
    assert "nearly unused FFN experts: general in layer 1." in plain(routing_findings(inputs)[1])
    idle_in_soft = with_ffn(["general", "code", "law", "math"], [[0.0, 0.2, 0.3, 0.5]] * 2, ffn_soft_layers=[0])
    assert "general in layer 1." in plain(routing_findings(idle_in_soft)[1])
    assert "layer 0" not in plain(routing_findings(idle_in_soft)[1])


def test_unused_is_measured_against_an_even_share():
    """Of 40 column groups each gets 1 in 40: 2% is no sign of neglect, 0.05% is."""
    labels = [f"{name}/{i + 1}" for name in ("general", "code", "law", "math") for i in range(10)]
    row = [0.02] * 39 + [0.22]
    assert "every FFN expert is used" in plain(routing_findings(with_ffn(labels, [row]))[1])
    row = [0.0005] + [0.02] * 38 + [0.2395]
    assert "general/1 in layer 0" in plain(routing_findings(with_ffn(labels, [row]))[1])


def test_old_routing_files_with_one_list_of_experts_are_read():
    routing = deepcopy(fake_run().routing)
    for model in routing["models"].values():
        for name in ("attention_experts", "ffn_experts", "ffn_soft_layers"):
            del model[name]
    old, new = heat_maps(fake_run(routing=routing)), heat_maps(fake_run())
    assert [[texts(p) for p in m.panels] for m in old] == [[texts(p) for p in m.panels] for m in new]


def test_sparse_upcycling_is_not_called_btx():
    def caveats(inputs: ReportInputs) -> str:
        return " ".join(plain(caveat) for caveat in find(inputs).caveats)

    even = [[0.25] * 4]
    assert "a BTX with as many active parameters" in caveats(with_ffn(["general", "code", "law", "math"], even))
    copies = ["general", "general#2", "general#3", "general#4"]
    assert "a BTX with as many active parameters" not in caveats(with_ffn(copies, even))


def test_the_ensemble_is_told_apart_from_models_that_stages_made(tmp_path: Path):
    build_report(fake_run(), tmp_path)
    html = (tmp_path / "report.html").read_text()
    words = "is the branch-train-merge ensemble of <code>seed</code>, <code>expert.code</code>"
    assert html.count(words) == 2  # beside the headline and under the table
    assert list(fake_run().perplexity["models"]["ensemble"]["experts"]) == list(EXPERTS)


def test_an_ensemble_that_wins_is_reproduced_by_its_evaluation(tmp_path: Path):
    perplexity = deepcopy(fake_run().perplexity)
    perplexity["models"]["ensemble"]["average_perplexity"] = 9.0
    inputs = fake_run(perplexity=perplexity)
    found = find(inputs)
    assert plain(found.headline).startswith(
        "ensemble has the lowest average perplexity: 9.00, against train.bam (11.58)"
    )
    text = " ".join(plain(caveat) for caveat in found.caveats)
    assert "ensemble uses 3.04 times the active parameters and 2.07 times the FLOPs per token of train.bam" in text
    build_report(inputs, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "bam lineage ensemble" not in html
    key = next(node["key"] for node in inputs.lineage["nodes"] if node["stage"] == "evaluate")
    assert f"bam lineage evaluate@{key[:12]}" in html


def test_without_an_ensemble_nothing_is_said_of_one(tmp_path: Path):
    perplexity = deepcopy(fake_run().perplexity)
    del perplexity["models"]["ensemble"]
    build_report(fake_run(perplexity=perplexity), tmp_path)
    assert "ensemble" not in (tmp_path / "report.html").read_text()
