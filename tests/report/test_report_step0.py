"""What mixtures were at step 0: the figures of `receipt.step0`, whole in the CSV, rounded on the page, and drawn."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import ReportInputs, build_report, formats
from pipelines.report.step0 import data_tables, steps_zero, summary_table, warnings_of
from pipelines.report.tables import Table
from tests.report.fakes import DOMAINS, fake_run

FIGURES = ("gate_sum", "accuracy", "condition")


def read(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv())))


def reports(inputs: ReportInputs) -> dict[str, Any]:
    return {name: mix["receipt"]["step0"] for name, mix in inputs.mixes.items()}


def changed(**step0: Any) -> ReportInputs:
    """The run whose mix.bam has these figures at step 0."""
    mixes = deepcopy(dict(fake_run().mixes))
    mixes["mix.bam"]["receipt"]["step0"] |= step0
    return fake_run(mixes=mixes)


def page(inputs: ReportInputs, out: Path) -> str:
    build_report(inputs, out)
    return (out / "report.html").read_text(encoding="utf-8")


def test_a_shared_router_has_a_column_where_some_mixture_has_one():
    columns = [column.key for column in summary_table(fake_run()).columns]
    routed = summary_table(changed(shared={"accuracy": 0.97, "own": 0.9, "condition": 1.5}))
    assert [column.key for column in routed.columns] == [*columns, "shared_accuracy"]
    assert [row["shared_accuracy"] for row in routed.rows] == [0.97, None]


def test_csv_holds_every_figure_of_every_layer():
    inputs = fake_run()
    layers, perplexity = (read(table) for table in data_tables(inputs))
    assert [(row["model"], row["layer"]) for row in layers] == [
        (model, str(layer)) for model in ("mix.bam", "mix.btx") for layer in range(4)
    ]
    for row in layers:
        found = reports(inputs)[row["model"]]["layers"][int(row["layer"])]
        for name in ("ffn_shrink", *(f"{branch}_{figure}" for branch in ("attention", "ffn") for figure in FIGURES)):
            assert row[name] == ("" if found[name] is None else repr(found[name])), name
        assert {domain: float(row[f"distance.{domain}"]) for domain in DOMAINS} == found["distance"]
    for row in perplexity:
        name = row["of"].removesuffix(" (seed)")
        found = reports(inputs)[row["model"]]["perplexity"][name]
        assert [float(row[f"perplexity.{domain}"]) for domain in DOMAINS] == [found[domain] for domain in DOMAINS]
        assert float(row["average"]) == found["average"]
        assert ("(seed)" in row["of"]) == (name == "general")
    assert len(perplexity) == 2 * 5


def test_summary_compares_the_mixtures():
    inputs = fake_run()
    bam, btx = read(summary_table(inputs))
    layers = reports(inputs)["mix.bam"]["layers"]
    assert (bam["model"], float(bam["average"]), float(bam["seed"])) == ("mix.bam", 27.455, 17.16)
    assert float(bam["attention_accuracy"]) == pytest.approx(sum(la["attention_accuracy"] for la in layers) / 4)
    assert float(bam["ffn_shrink"]) == pytest.approx(0.275)
    assert float(bam["distance"]) == pytest.approx(sum(layers[3]["distance"].values()) / 4)
    assert btx["attention_accuracy"] == ""


def test_page_has_columns_only_for_branches_with_experts():
    bam, btx = steps_zero(fake_run())
    assert [column.title for column in bam.layers.page_columns] == [
        *("layer", "attention gate sum", "attention accuracy", "attention condition"),
        *("FFN shrink", "FFN accuracy", "FFN condition"),
    ]
    assert [column.title for column in btx.layers.page_columns] == [
        *("layer", "FFN shrink", "FFN accuracy", "FFN condition")
    ]
    shown = [cell.text for cell in btx.layers.shown()[3].cells]
    accuracy = reports(fake_run())["mix.btx"]["layers"][3]["ffn_accuracy"]
    assert shown == ["3", "0.290", f"{100 * accuracy:.0f}%", "7.25"]


def test_distance_map_has_a_row_per_layer_and_a_column_per_domain():
    inputs = fake_run()
    (start, _), layers = steps_zero(inputs), reports(inputs)["mix.bam"]["layers"]
    texts = [e.text for child in start.distance.children for e in child.iter("text")]
    assert texts[0] == "distance"
    assert texts[1:5] == list(DOMAINS)
    values = [layer["distance"][domain] for layer in layers for domain in DOMAINS]
    assert [text for text in texts[5:] if "." in text] == [f"{value:.2f}" for value in values]
    cells = [e for child in start.distance.children for e in child.iter("rect") if e.get("class") == "cell"]
    assert [float(e.get("fill-opacity", "")) for e in cells] == [round(min(1.0, value), 3) for value in values]


def test_domains_come_in_the_order_of_the_run():
    inputs = fake_run(domains=("math", "general", "law", "code"))
    assert [c.title for c in steps_zero(inputs)[0].perplexity.page_columns][1:5] == ["math", "general", "law", "code"]


def test_a_warning_of_several_mixtures_is_told_once():
    mixes = deepcopy(dict(fake_run().mixes))
    for mix in mixes.values():
        mix["receipt"]["step0"]["warnings"] = ["copies <b>tie</b>."]
    mixes["mix.btx"]["receipt"]["step0"]["warnings"].append("another")
    found = [str(line) for line in warnings_of(steps_zero(fake_run(mixes=mixes)))]
    assert found == [
        "<code>mix.bam</code> and <code>mix.btx</code>: copies &lt;b&gt;tie&lt;/b&gt;.",
        "<code>mix.btx</code>: another.",
    ]


def test_unknown_figures_are_dashes_and_never_best(tmp_path: Path):
    layers = deepcopy(reports(fake_run())["mix.bam"]["layers"])
    layers[1] |= {"ffn_condition": None, "distance": {"law": None}}
    layers[2] = {}
    perplexity = {"general": {"general": 30.0, "average": None}, "mixture": {}}
    inputs = changed(layers=layers, perplexity=perplexity)
    start = steps_zero(inputs)[0]
    assert [cell.text for cell in start.layers.shown()[2].cells] == ["2", *[formats.MISSING] * 6]
    assert [cell.is_best for row in start.perplexity.shown() for cell in row.cells] == [False, True, *[False] * 10]
    assert '<section id="step0">' in page(inputs, tmp_path)


@pytest.mark.parametrize("step0", [None, {}, {"perplexity": {}, "layers": [], "warnings": [], "tokens_per_domain": {}}])
def test_a_mixture_that_was_not_measured_or_has_no_layers(step0: Any, tmp_path: Path):
    mixes = deepcopy(dict(fake_run().mixes))
    for mix in mixes.values():
        mix["receipt"]["step0"] = step0
    html = page(fake_run(mixes=mixes), tmp_path)
    assert ('id="step0"' in html) == bool(step0)
    assert 'href="#step0"' not in html or step0


def test_a_soup_has_perplexities_and_distances_only(tmp_path: Path):
    nothing = dict.fromkeys(name for name in reports(fake_run())["mix.bam"]["layers"][0] if name != "distance")
    layers = [layer | nothing for layer in reports(fake_run())["mix.bam"]["layers"]]
    start = steps_zero(changed(layers=layers))[0]
    assert [column.key for column in start.layers.page_columns] == ["layer"]
    assert start.distance is not None
    assert page(changed(layers=layers), tmp_path).count("Routers and gates of each layer") == 1


def test_warnings_are_shown_once_as_sentences(tmp_path: Path):
    html = page(changed(warnings=["copies of <b>law</b>.", "another"]), tmp_path)
    assert "<li><code>mix.bam</code>: copies of &lt;b&gt;law&lt;/b&gt;.</li>" in html
    assert "<li><code>mix.bam</code>: another.</li>" in html


def test_hostile_names_stay_text(tmp_path: Path):
    hostile = "<script>\u202e\x00{{7*7}}"
    layers = [{"ffn_shrink": 0.5, "distance": {hostile: 0.5}}]
    perplexity = {hostile: {hostile: 3.0, "average": 3.0}}
    inputs = changed(layers=layers, perplexity=perplexity, seed=hostile, tokens_per_domain={hostile: 9})
    html = page(inputs, tmp_path)
    assert html.count("<script") == 1, "ours, and no other"
    assert "&lt;script&gt;\ufffd\ufffd{{7*7}} (seed)" in html
    drawing = ET.fromstring((tmp_path / "figures" / "step0-mix.bam.svg").read_bytes())
    assert not [e for e in drawing.iter() if e.tag.endswith("script")]


def test_mixtures_whose_names_fall_together_keep_their_own_figures(tmp_path: Path):
    mix = fake_run().mixes["mix.bam"]
    page(fake_run(mixes={"mix.a/b": mix, "mix.a:b": mix}), tmp_path)
    assert {path.name for path in (tmp_path / "figures").glob("step0-*")} == {
        "step0-mix.a_b.svg",
        "step0-mix.a_b-2.svg",
    }
