"""How documents were scored, and the two averages beside the domains', on the page and in the tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipelines.report import ReportInputs, build_report
from pipelines.report.formats import MINUS, MISSING, gain
from pipelines.report.tables import bits_per_byte_table, perplexity_table
from tests.report.fakes import fake_run


def scored_run() -> ReportInputs:
    models = {}
    for place, (name, model) in enumerate(fake_run().perplexity["models"].items()):
        forgetting = None if name == "seed" else 0.031 * place
        models[name] = model | {"token_average_perplexity": 10.0 + place, "forgetting": forgetting}
    return fake_run(perplexity={"models": models, "scoring": {"context": 256, "stride": 64}})


def test_the_page_says_how_documents_were_scored(tmp_path: Path):
    build_report(scored_run(), tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "a window of 256 tokens moves over it by 64 (the stride)" in page
    assert "predicted from at least 192 before it" in page
    assert "perplexity by token" in page
    assert "is above the seed's" in page
    assert "+3.1%" in page


def test_an_older_evaluation_is_not_said_to_be_of_documents(tmp_path: Path):
    build_report(fake_run(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "On held-out text of each domain" in page
    assert "stride" not in page
    assert "Forgetting" not in page


def test_both_averages_are_in_the_tables():
    inputs = scored_run()
    for table in (perplexity_table(inputs), bits_per_byte_table(inputs)):
        rows = {row["model"]: row for row in csv.DictReader(table.csv().splitlines())}
        assert rows["seed"]["forgetting"] == ""
        for name, model in inputs.models.items():
            assert float(rows[name]["token_average_perplexity"]) == model["token_average_perplexity"]
            if name != "seed":
                assert float(rows[name]["forgetting"]) == model["forgetting"]
    titles = [column.title for column in perplexity_table(inputs).page_columns]
    assert titles == [column.title for column in perplexity_table(fake_run()).page_columns], "the page has no room"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.0%"), (0.0312, "+3.1%"), (-0.02, f"{MINUS}2.0%"), (None, MISSING)]
)
def test_a_gain_reads_as_a_change(value: float | None, shown: str):
    assert gain(value) == shown
