"""The drawing and the table of what forms of a model cost."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.pareto import front, pareto_csv, pareto_panel

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, average: float, flops: float, rate: float | None, optimal: bool) -> dict[str, Any]:
    return {
        "name": name,
        "perplexity": {"law": average - 1, "code": average + 1},
        "average_perplexity": average,
        "attention_experts_per_token": None,
        "flops_per_token": flops,
        "cache_bytes_per_token": 2048,
        "tokens_per_s": rate,
        "tokens_per_s_of_rounds": [],
        "optimal": optimal,
    }


ROWS = [row("<soft & slow>", 5.0, 3e6, 10.0, True), row("top-1", 6.5, 1e6, 20.0, True), row("bad", 7, 3e6, 9.0, False)]


@pytest.mark.parametrize("timed", [True, False])
def test_a_panel_for_each_cost_that_is_known(timed: bool) -> None:
    rows = ROWS if timed else [found | {"tokens_per_s": None} for found in ROWS]
    drawn = ET.fromstring(pareto_panel(rows).standalone())
    n_panels = 3 if timed else 2
    circles = list(drawn.iter(f"{SVG}circle"))
    assert len(circles) == n_panels * len(rows)
    assert len([circle for circle in circles if "f1" in circle.get("class", "")]) == n_panels * 2
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "1. <soft & slow>" in texts
    assert ("new tokens per second" in texts) == timed
    assert "Optimal: <soft & slow> 5.00; top-1 6.50." in drawn.get("aria-label", "")
    assert pareto_panel(rows).standalone() == pareto_panel(rows).standalone()


def test_equal_costs_are_drawn_too() -> None:
    ET.fromstring(pareto_panel([ROWS[0], ROWS[0]]).standalone())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1), st.booleans())
def test_a_front_is_what_nothing_is_as_good_as_in_both(points: list[tuple[int, int]], rising: bool) -> None:
    found = front(*zip(*points, strict=True), rising=rising)
    sign = -1 if rising else 1
    for x, y in points:
        better = [(a, b) for a, b in points if sign * a <= sign * x and b <= y and (a, b) != (x, y)]
        assert ((x, y) in found) == (not better)
    assert len(found) == len(set(found))


def test_the_table_keeps_all_digits_and_has_a_column_for_each_domain() -> None:
    found = list(csv.DictReader(pareto_csv([row("a, b", 1 / 3, 1e6 / 7, None, True)]).splitlines()))
    assert found[0]["name"] == "a, b"
    assert float(found[0]["average_perplexity"]) == 1 / 3
    assert float(found[0]["flops_per_token"]) == 1e6 / 7
    assert (found[0]["tokens_per_s"], found[0]["attention_experts_per_token"]) == ("", "")
    assert float(found[0]["perplexity_code"]) == 1 / 3 + 1
