"""The tables say what the inputs say: all digits in the CSV, rounded on the page, the best marked."""

from __future__ import annotations

import csv
import io
from math import inf, isnan, nan
from typing import Any

import pytest

from pipelines.report import formats
from pipelines.report.inputs import ReportInputs
from pipelines.report.tables import (
    Column,
    Table,
    bits_per_byte_table,
    costs_table,
    data_tables,
    mixes_table,
    perplexity_table,
)
from tests.report.fakes import DOMAINS, PERPLEXITY, fake_run

MODELS = [
    "seed",
    "expert.code",
    "expert.law",
    "expert.math",
    "dense",
    "ensemble",
    "mix.bam",
    "mix.btx",
    "train.bam",
    "train.btx",
]


def read(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv())))


def best(table: Table) -> dict[str, list[str]]:
    """Column title -> the first cells of the rows whose cell is marked."""
    marked: dict[str, list[str]] = {}
    for row in table.shown():
        for column, cell in zip(table.page_columns, row.cells, strict=True):
            if cell.is_best:
                marked.setdefault(column.title, []).append(row.cells[0].text)
    return marked


def long_table(inputs: ReportInputs, name: str) -> list[dict[str, str]]:
    return read(next(table for table in data_tables(inputs) if table.name == name))


def test_perplexity_csv_holds_every_figure_of_every_model():
    inputs = fake_run()
    rows = {row.pop("model"): row for row in read(perplexity_table(inputs))}
    for name, model in inputs.perplexity["models"].items():
        for domain in DOMAINS:
            assert float(rows[name][f"perplexity.{domain}"]) == model["domains"][domain]["perplexity"]
        for figure in (
            "average_perplexity",
            "params_total",
            "params_active",
            "flops_per_token",
            "train_tokens",
        ):
            assert float(rows[name][figure]) == model[figure]
        for figure in ("train_flops", "lineage_tokens", "lineage_flops"):
            assert float(rows[name][figure]) == model[figure]


def test_models_and_domains_come_in_reading_order():
    rows = read(perplexity_table(fake_run()))
    assert [row["model"] for row in rows] == MODELS
    assert list(rows[0])[1:6] == [*(f"perplexity.{d}" for d in DOMAINS), "average_perplexity"]


def test_experts_follow_the_given_domain_order_and_unknown_models_come_last():
    models = {name: {"domains": {}} for name in ("other", "train.x", "adopted.z", "expert.b", "expert.a")}
    models["seed"] = {"domains": {domain: {} for domain in "abg"}}
    inputs = ReportInputs("r", {"models": models}, domains=("g", "b", "a"))
    assert list(inputs.models) == ["seed", "expert.b", "expert.a", "adopted.z", "train.x", "other"]
    assert inputs.domain_names == ["g", "b", "a"]


def test_page_rounds_what_the_csv_keeps():
    table = perplexity_table(fake_run())
    shown = {row.cells[0].text: [cell.text for cell in row.cells] for row in table.shown()}
    assert shown["train.bam"] == [
        *("train.bam", "26.02", "9.45", "7.04", "3.81", "11.58"),
        *("3.28M", "1.66M", "4.92M", "1.00M", "53.0T"),
    ]
    exact = {row.cells[0].text: row.cells[6].exact for row in table.shown()}
    assert exact["train.bam"] == "3,281,536"


def test_lowest_of_each_column_is_marked():
    assert best(perplexity_table(fake_run())) == {
        "general": ["train.bam"],
        "code": ["expert.code"],
        "law": ["expert.law"],
        "math": ["expert.math"],
        "average": ["train.bam"],
    }
    lowest = {d: min(PERPLEXITY, key=lambda name: PERPLEXITY[name][i]) for i, d in enumerate(DOMAINS)}
    assert best(bits_per_byte_table(fake_run())) == {domain: [name] for domain, name in lowest.items()}


@pytest.mark.parametrize(
    ("values", "marked"),
    [
        ([2.0, 1.0, 3.0], ["1"]),
        ([1.0, 1.0, 3.0], ["0", "1"]),
        ([nan, 2.0, inf], ["1"]),
        ([-inf, 2.0, None], ["1"]),
        ([nan, None, inf], []),
    ],
)
def test_best_ignores_what_is_not_finite_and_marks_ties(values: list[Any], marked: list[str]):
    columns = (Column("row", "row"), Column("x", "x", formats.perplexity, best=True))
    table = Table("t", columns, tuple({"row": str(i), "x": value} for i, value in enumerate(values)))
    assert best(table).get("x", []) == marked


def test_not_finite_values_are_written_as_such():
    columns = (Column("x", "x", formats.perplexity),)
    table = Table("t", columns, tuple({"x": value} for value in (nan, inf, -inf, None)))
    assert [row.cells[0].text for row in table.shown()] == ["NaN", "∞", "\u2212∞", formats.MISSING]
    first, *others = [row["x"] for row in read(table)]
    assert isnan(float(first))
    assert others == ["inf", "-inf", ""]


def test_rows_of_a_new_group_start_with_a_rule():
    shown = perplexity_table(fake_run()).shown()
    assert [row.cells[0].text for row in shown if row.starts_group] == [
        *("expert.code", "dense", "ensemble", "mix.bam", "train.bam")
    ]


def test_costs_csv_equals_the_inputs_and_adds_tokens_per_second():
    inputs = fake_run()
    for row, cost in zip(read(costs_table(inputs)), inputs.costs, strict=True):
        assert row["stage"] == cost["stage"]
        assert float(row["seconds"]) == cost["seconds"]
        for figure in ("tokens", "train_flops", "params"):
            assert row[figure] == ("" if cost[figure] is None else str(cost[figure]))
        speed = "" if cost["tokens"] is None else repr(cost["tokens"] / cost["seconds"])
        assert row["tokens_per_s"] == speed


def test_mixes_are_counted_by_origin_with_their_receipt():
    rows = read(mixes_table(fake_run()))
    assert [list(row.values())[:4] for row in rows] == [
        ["mix.bam", "28", "2", "4"],
        ["mix.btx", "12", "18", "4"],
    ]
    assert list(rows[0])[:4] == ["model", "stack", "mean", "fresh"]
    assert float(rows[0]["max_abs_diff"]) == 3.1e-14


def test_training_csv_holds_every_logged_step():
    inputs = fake_run()
    rows = long_table(inputs, "training")
    assert len(rows) == sum(len(history) for history in inputs.training.values())
    for model, history in inputs.training.items():
        found = [row for row in rows if row["model"] == model]
        for row, logged in zip(found, history, strict=True):
            assert {name: float(row[name]) for name in logged} == logged


def test_routing_csv_holds_both_routers():
    inputs = fake_run()
    rows = long_table(inputs, "routing")
    models = inputs.routing["models"]
    assert {(row["model"], row["router"]) for row in rows} == {
        *((model, "ffn") for model in models),
        *((model, "attention") for model in ("mix.bam", "train.bam")),
    }
    for row in rows:
        shown = models[row["model"]]["domains"][row["domain"]][row["router"]]
        layer, expert = int(row["layer"]), models[row["model"]]["experts"].index(row["expert"])
        assert float(row["mean_gate"]) == shown["mean_gate"][layer][expert]
        assert float(row["entropy"]) == shown["entropy"][layer]
        if row["router"] == "ffn":
            assert float(row["fraction"]) == shown["fraction"][layer][expert]
        else:
            assert row["fraction"] == ""


def test_lineage_csv_holds_every_edge():
    inputs = fake_run()
    rows = [
        (r["from_stage"], r["from_key"], r["role"], r["to_stage"], r["to_key"]) for r in long_table(inputs, "lineage")
    ]
    edges = inputs.lineage["edges"]
    assert rows == [(*e["from"].values(), e["role"], *e["to"].values()) for e in edges]


def test_evaluation_csv_holds_every_score():
    inputs = fake_run()
    rows = long_table(inputs, "evaluation")
    assert len(rows) == 40
    for row in rows:
        score = inputs.perplexity["models"][row["model"]]["domains"][row["domain"]]
        assert {name: float(row[name]) for name in score} == score


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x"])
def test_csv_text_cannot_become_a_formula(name: str):
    table = Table("t", (Column("x", "x"), Column("y", "y", formats.count)), ({"x": name, "y": -3},))
    assert read(table) == [{"x": f"'{name}", "y": "-3"}]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (formats.perplexity, 3.449, "3.45"),
        (formats.perplexity, 999.994, "999.99"),
        (formats.perplexity, 1234.5, "1,234"),
        (formats.perplexity, 3e9, "3.00e+09"),
        (formats.bits, 0.52149, "0.521"),
        (formats.tiny, 3.14e-14, "3.1e\u221214"),
        (formats.tiny, 0.0, "0"),
        (formats.count, 0, "0"),
        (formats.count, 512, "512"),
        (formats.count, 999_499, "999k"),
        (formats.count, 999_500, "1.00M"),
        (formats.count, 662_756_352, "663M"),
        (formats.count, 7_000_000_000, "7.00B"),
        (formats.flops, 48_257_024, "48.3M"),
        (formats.flops, 7.64e12, "7.64T"),
        (formats.flops, 9.999e9, "10.0G"),
        (formats.duration, 0.04, "0.0 s"),
        (formats.duration, 9.96, "10 s"),
        (formats.duration, 59.6, "1 min 00 s"),
        (formats.duration, 185, "3 min 05 s"),
        (formats.duration, 7620, "2 h 07 min"),
        (formats.duration, 3599.7, "1 h 00 min"),
        (formats.count, True, formats.MISSING),
        (formats.count, "12", formats.MISSING),
        (formats.tick, 2.5e6, "2.5M"),
        (formats.tick, -0.5, "\u22120.5"),
    ],
)
def test_numbers_as_a_person_reads_them(show: Any, value: Any, text: str):
    assert show(value) == text


def test_change_has_a_sign_unless_it_rounds_to_nothing():
    assert formats.change(9.70, 10.72) == "\u22129.5%"
    assert formats.change(11.0, 10.0) == "+10.0%"
    assert formats.change(10.0001, 10.0) == "0.0%"
    assert formats.change(9.9999, 10.0) == "0.0%"


def test_names_lose_what_xml_forbids_and_paths_what_leaves_a_folder():
    assert formats.clean("a\x00b\u202ec\ud800d") == "a\ufffdb\ufffdc\ufffdd"
    assert formats.clean("é中🙂<&>") == "é中🙂<&>"
    assert formats.file_name("../../etc/passwd") == "_.._etc_passwd"
    assert formats.file_name("..") == "_"
    assert formats.file_name("a\\b:c") == "a_b_c"
