"""The report's section on experts: knock-out maps, what routers know, alarms; and reports without them."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from copy import deepcopy
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import ReportInputs, build_report
from pipelines.report.routed import routed
from pipelines.report.routing_knock_out import change, knock_out_findings, knock_outs
from pipelines.report.routing_layers import collapse_findings, layer_findings, routing_layers
from tests.report.fakes import DOMAINS, fake_run

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e{{7*7}}../../x"
HURT = {"general": 0.004, "code": 0.20, "law": 0.36, "math": 12.0}
"""What masking a domain's own expert does to it; to the others a tenth of that."""


def _row(expert: str) -> dict[str, Any]:
    own = expert.split("#")[0]
    changes = {domain: HURT[own] if domain == own else HURT[own] / 10 for domain in DOMAINS}
    if own == "general":
        changes["code"] = 0.05
    return {domain: {"nll": 2.0, "perplexity": 10 * (1 + c), "change": c} for domain, c in sorted(changes.items())}


def _matrix(attention: bool) -> dict[str, Any]:
    rows = {expert: _row(expert) for expert in sorted(DOMAINS)}
    return {
        "experts": {"attention": list(DOMAINS) if attention else [], "ffn": list(DOMAINS), "both": list(DOMAINS)},
        "intact": {domain: {"perplexity": 10.0, "nll": 2.3, "tokens": 4000} for domain in sorted(DOMAINS)},
        "attention": deepcopy(rows) if attention else None,
        "ffn": rows,
        "both": deepcopy(rows) if attention else None,
    }


def _layer(told: float) -> dict[str, Any]:
    return {
        "entropy": 0.4,
        "load": [0.4, 0.3, 0.2, 0.1],
        "load_max": 0.4,
        "load_min": 0.1,
        "load_variation": 0.447,
        "mutual_information": told * 1.386,
        "mutual_information_frac": told,
        "soft_mutual_information": told / 2,
        "soft_mutual_information_frac": told / 3,
        "purity": 0.8,
        "own_domain_frac": 0.75,
        "first": {domain: [1, 2, 3, 4] for domain in DOMAINS},
    }


def _summary(attention: bool) -> dict[str, Any]:
    return {
        "layers": 3,
        "experts": list(DOMAINS),
        "tokens": dict.fromkeys(DOMAINS, 4000),
        "attention_experts": list(DOMAINS) if attention else [],
        "ffn_experts": list(DOMAINS),
        "attention": [_layer(0.5), _layer(0.7), _layer(0.6)] if attention else None,
        "ffn": [_layer(0.2), None, _layer(0.4)],
        "agreement": [{"frac": 0.5, "kappa": -0.25}, None, {"frac": 0.9, "kappa": None}] if attention else [None] * 3,
    }


def run(**changes: Any) -> ReportInputs:
    models = {"train.btx": False, "train.bam": True}
    routed_files = {
        "summary": {"models": {name: _summary(both) for name, both in models.items()}},
        "knock_out": {"models": {name: _matrix(both) for name, both in models.items()}},
    }
    return fake_run(**({"routed": routed_files} | changes))


def texts(panel: Any) -> list[str]:
    return [node.text or "" for node in ET.fromstring(panel.standalone()).iter(f"{SVG}text")]


def built(inputs: ReportInputs, out: Path) -> str:
    build_report(inputs, out)
    return (out / "report.html").read_text(encoding="utf-8")


def test_a_map_has_a_row_for_each_masked_expert_as_they_are_stacked() -> None:
    bam, btx = sorted(knock_outs(run()), key=lambda item: item.model)
    assert [len(item.panels) for item in (bam, btx)] == [3, 1]
    shown = texts(btx.panels[0])
    assert shown[0] == "FFN expert masked"
    assert shown[1:5] == list(DOMAINS)
    rows = [shown[5 + 5 * row : 10 + 5 * row] for row in range(4)]
    assert rows == [
        ["general", "0%", "+5%", "0%", "0%"],
        ["code", "+2%", "+20%", "+2%", "+2%"],
        ["law", "+4%", "+4%", "+36%", "+4%"],
        ["math", "+120%", "+120%", "+120%", "\u00d713"],
    ]


def test_an_experts_own_domain_is_outlined_and_the_worst_is_darkest() -> None:
    root = ET.fromstring(knock_outs(run())[0].panels[0].standalone())
    outlines = [box for box in root.iter(f"{SVG}rect") if box.get("class") == "own"]
    assert len(outlines) == 4
    assert len({(box.get("x"), box.get("y")) for box in outlines}) == 4
    shades = [float(box.get("fill-opacity", "0")) for box in root.iter(f"{SVG}rect") if box.get("class") == "cell"]
    assert max(shades) == shades[-1] == 1.0
    assert shades.count(1.0) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.354, "+35%"),
        (-0.021, "\u22122%"),
        (0.001, "0%"),
        (-0.001, "0%"),
        (9.4, "+940%"),
        (11.0, "\u00d712"),
        (nan, "\u2013"),
    ],
)
def test_changes_are_short_enough_for_a_cell(value: float, shown: str) -> None:
    assert change(value) == shown
    assert len(change(value)) <= 5


def test_findings_say_whom_each_experts_absence_hurts_most() -> None:
    words = [str(line) for line in knock_out_findings(run())]
    assert len(words) == 3
    assert any(
        "train.btx</code>: masking general&#39;s FFN expert hurts code most: +5% (general by 0%), "
        "code&#39;s hurts code most: +20%, law&#39;s hurts law most: +36% and math&#39;s hurts math most: \u00d713."
        in line.replace("'", "&#39;")
        for line in words
    )


def test_layers_show_what_each_router_tells_and_where_there_is_none() -> None:
    bam = next(item for item in routing_layers(run()) if item.model == "train.bam")
    titles = [texts(panel)[0] for panel in bam.panels]
    assert titles == ["attention router", "load, attention router", "FFN router", "load, FFN router", "agreement"]
    ffn = texts(bam.panels[2])
    assert ffn[1:6] == ["told", "soft", "own", "purity", "entropy"]
    assert ffn[6:12] == ["0", "20", "7", "75", "80", "40"]
    assert ffn[12] == "2", "layer 1 has no FFN experts"
    assert texts(bam.panels[4])[3:] == ["0", "50", "\u221225", "2", "90", "\u2013"]
    words = [str(line) for line in layer_findings(run())]
    assert any("tells 60% (attention router) and 30% (FFN router) of" in line for line in words)
    assert any("the two choose the same expert for 70% of tokens" in line for line in words)


def test_alarms_of_trainings_are_told() -> None:
    alarms = [{"branch": "ffn", "layer": 2, "expert": "law", "since": 30, "until": until} for until in (None, 47)]
    words = collapse_findings(run(collapses={"train.bam": alarms * 5}))
    assert len(words) == 1
    assert "ffn law in layer 2 from step 30 to the end, ffn law in layer 2 from step 30 to step 47" in str(words[0])
    assert "(and 4 more)" in str(words[0])


def test_the_page_has_the_section_its_tables_and_figures(tmp_path: Path) -> None:
    page = built(run(), tmp_path)
    assert '<section id="experts">' in page
    assert '<a href="#experts">' in page
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names >= {f"{kind}-train.{name}.svg" for kind in ("knock-out", "routers") for name in ("bam", "btx")}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "knock_out.csv").read_text())))
    assert len(rows) == 16 * 4
    [law] = [
        r for r in rows if (r["model"], r["branch"], r["expert"], r["domain"]) == ("train.btx", "ffn", "law", "law")
    ]
    assert (law["change"], law["intact_perplexity"], float(law["perplexity"])) == (
        "0.36",
        "10.0",
        10 * (1 + HURT["law"]),
    )
    layers = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "routing_layers.csv").read_text())))
    assert [(row["model"], row["branch"], row["layer"]) for row in layers][:2] == [
        ("train.btx", "ffn", "0"),
        ("train.btx", "ffn", "2"),
    ]
    assert [row["agreement"] for row in layers if row["model"] == "train.bam"] == ["0.5", "", "0.9", "0.5", "0.9"]


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    assert built(run(), tmp_path / "one") == built(run(), tmp_path / "two")


def test_a_report_without_these_files_has_no_such_section(tmp_path: Path) -> None:
    assert not routed(fake_run())
    page = built(fake_run(), tmp_path)
    assert 'id="experts"' not in page
    assert "#experts" not in page
    assert not (tmp_path / "tables" / "knock_out.csv").exists()


def test_a_mixture_without_a_matrix_or_a_file_that_is_missing_leaves_the_rest(tmp_path: Path) -> None:
    summary_alone = {"summary": {"models": {"train.bam": _summary(True)}}, "knock_out": {"models": {}}}
    page = built(run(routed=summary_alone), tmp_path / "one")
    assert "one expert masked" not in page
    assert "What the routers know" in page
    matrix_alone = {"summary": None, "knock_out": {"models": {"train.bam": _matrix(True)}}}
    assert "one expert masked" in built(run(routed=matrix_alone), tmp_path / "two")


def test_hostile_names_and_wild_numbers_break_nothing(tmp_path: Path) -> None:
    inputs = run()
    models = deepcopy(dict(inputs.routed or {}))
    matrix, summary = models["knock_out"]["models"].pop("train.bam"), models["summary"]["models"].pop("train.bam")
    row = matrix["ffn"].pop("law")
    row["law"]["change"], row["code"]["change"] = inf, nan
    matrix["ffn"][HOSTILE] = row
    matrix["experts"]["ffn"][2] = HOSTILE
    summary["ffn_experts"][2] = HOSTILE
    models["knock_out"]["models"][f"train.{HOSTILE}"] = matrix
    models["summary"]["models"][f"train.{HOSTILE}"] = summary
    alarm = {"branch": "ffn", "layer": 0, "expert": HOSTILE, "since": 1, "until": None}
    page = built(run(routed=models, collapses={HOSTILE: [alarm]}), tmp_path)
    assert page.count("<script") == 1, "ours, and no other"
    assert "{{7*7}}" in page
    for figure in (tmp_path / "figures").iterdir():
        ET.fromstring(figure.read_text(encoding="utf-8"))
        assert figure.parent == tmp_path / "figures"
