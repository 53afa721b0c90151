"""docs/performance.md is what its results give: a changed figure is noticed, and none is there without a result."""

from __future__ import annotations

import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import page
from tests.benchmarks.all import BENCHMARKS, module
from tests.benchmarks.goals import GOALS
from tests.benchmarks.growth import entry, exponent

CURVE: dict[str, Any] = {
    "row": "growth_experts",
    "model": "BAM",
    "unit": "experts",
    "sizes": [2, 4, 8],
    "seconds": [0.1, 0.21, 0.5],
    "low": [0.09, 0.2, 0.4],
    "high": [0.2, 0.3, 0.6],
    "order": [0.1, 0.2, 0.4],
    "exponent": 1.16,
    "standard_error": 0.05,
    "exponents": {"order": 1.0, "flops": 0.9},
    "rounds": 3,
}


def result(device: str, table: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    head = {"device": device, "cpus": 2, "date": "2026-01-02T03:04:05+00:00", "commit": "0123456789abcdef+"}
    return {**head, "command": "python -m tests.benchmarks.x", "table": table, **more}


def steps(value: float, **more: Any) -> dict[str, Any]:
    return {"row": "dense_step", "value": value, "low": 0.5, "high": 0.8, "n": 7, "unit": "ratio", **more}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A page of two devices and a growth, made and not stale."""
    (tmp_path / page.RESULTS).mkdir()
    bench = tmp_path / "bench"
    bench.mkdir()
    for device, value in (("Slow CPU", 0.61), ("Fast CPU", 0.72)):
        (bench / "train.json").write_text(json.dumps(result(device, [steps(value)])))
        page.take(bench, tmp_path)
    (bench / "growth.json").write_text(json.dumps(result("Fast CPU", [entry(CURVE)], curves=[CURVE])))
    (bench / "older.json").write_text("{}")
    assert page.take(bench, tmp_path) == ["growth-fast-cpu.json", "train-fast-cpu.json"]
    (tmp_path / page.RESULTS / page.NOTES).write_text("# Why\n\n## growth_experts\nRouting.\n\n## data_wait\nNone.\n")
    page.write(tmp_path)
    assert page.stale(tmp_path) == []
    return tmp_path


def test_the_page_is_what_the_results_give() -> None:
    assert page.stale() == [], "run `python -m tests.benchmarks.page`"


def test_a_changed_figure_is_noticed_on_the_page_and_in_a_result(docs: Path) -> None:
    path = docs / page.PAGE
    made = path.read_text()
    path.write_text(made.replace("**0.61**", "**0.71**"))
    assert path.read_text() != made
    assert page.stale(docs) == [page.PAGE]
    path.write_text(made)
    source = docs / page.RESULTS / "growth-fast-cpu.json"
    source.write_text(source.read_text().replace("0.21", "0.31"))
    assert page.stale(docs) == ["performance/growth_experts.svg"]


def test_a_drawing_of_nothing_is_noticed_and_goes(docs: Path) -> None:
    (docs / page.RESULTS / "growth-fast-cpu.json").unlink()
    assert "performance/growth_experts.svg" in page.stale(docs)
    assert page.write(docs) == [docs / page.PAGE]
    assert page.stale(docs) == []


def test_devices_of_a_row_stand_below_each_other_and_what_has_no_result_says_so(docs: Path) -> None:
    lines = (docs / page.PAGE).read_text().splitlines()
    [first] = [i for i, line in enumerate(lines) if line.startswith("| `dense_step`")]
    assert "**0.72** (0.50 to 0.80, n 7) | yes" in lines[first]
    assert "Fast CPU (2 CPUs) | 2026-01-02 | 012345678+ | `python -m tests.benchmarks.x` |" in lines[first]
    assert lines[first + 1].startswith("|  |  |  | at least 0.70 | **0.61** (0.50 to 0.80, n 7) | no")
    assert sum("| not measured |" in line for line in lines) == len(GOALS) - 2
    for line in lines:
        row = re.match(r"\| `(\w+)`", line)
        assert not row or "**" not in line or row[1] in ("dense_step", "growth_experts")


def test_what_fell_short_is_named_with_its_note_or_the_lack_of_one(docs: Path) -> None:
    text = (docs / page.PAGE).read_text().partition("fell short, and why")[2]
    said = re.findall(r"\*\*`(\w+)`\*\* \(.*?\)\. (.*)", text)
    assert said == [
        ("dense_step", "It fell short; why has not been found out."),
        ("data_wait", "None."),
        ("growth_experts", "Routing."),
    ]


def test_tables_that_a_result_brings_are_shown_under_its_conditions(docs: Path) -> None:
    table = {"title": "Pareto", "columns": ["a", "b|c"], "rows": [[1, 2]], "note": "Below."}
    found = result("Fast CPU", [], page_tables=[table])
    (docs / page.RESULTS / "pareto.json").write_text(json.dumps(found))
    text = page.page(page.read_results(docs / page.RESULTS), {})
    assert "## Pareto\n\n| a | b\\|c |\n| --- | --- |\n| 1 | 2 |\n\nBelow.\nMeasured: Fast CPU (2 CPUs), 2026" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", json.dumps(result("CPU", [{"row": "densestep", "value": 1}])), "a row among dense_step"),
        ("x.json", json.dumps(result("CPU", [{"row": "dense_step"}])), "needs a value"),
        ("x.json", '{"device": "CPU", "table": []}', "no date, commit, command"),
        ("x.json", '{"device"', "not JSON"),
        ("notes.md", "## dense\nx\n", "dense: no such row"),
    ],
)
def test_what_no_page_can_be_made_from_is_named(docs: Path, name: str, content: str, words: str) -> None:
    (docs / page.RESULTS / name).write_text(content)
    with pytest.raises(page.BadResult, match=words) as error:
        page.files(docs)
    assert name in str(error.value)


def test_drawings_are_whole_svg_files(docs: Path) -> None:
    root = ET.fromstring((docs / page.RESULTS / "growth_experts.svg").read_text())
    circles = root.findall(".//{*}circle")
    heights = [float(circle.get("cy", "nan")) for circle in circles]
    assert heights == sorted(heights, reverse=True)
    assert len(circles) == len(CURVE["sizes"])


@pytest.mark.parametrize(
    ("row", "value", "met"),
    [("dense_step", 0.7, True), ("dense_step", 0.69, False), ("reused_s", 5.0, True), ("reused_s", 5.1, False)],
)
def test_a_goal_is_met_from_its_side(row: str, value: float, met: bool) -> None:
    assert GOALS[row].is_met(value) is met


@pytest.mark.parametrize(("low", "met"), [(0.9, True), (1.1, False)])
def test_an_exponent_meets_its_order_within_its_error(low: float, met: bool) -> None:
    assert GOALS["growth_width"].is_met(1.2, 1.0, low) is met


def test_exponent_of_a_power_is_its_power_and_the_error_is_that_of_least_squares() -> None:
    assert exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx((1.0, 0.0), abs=1e-9)
    # y = log seconds at x = 0, 1, 2 (base e): slope 1, residuals 1/3, -2/3, 1/3: se^2 = (6/9) / 1 / 2.
    e = 2.718281828459045
    assert exponent([1, e, e * e], [e**1, e**1, e**3]) == pytest.approx((1.0, (1 / 3) ** 0.5))


def test_every_benchmark_that_is_run_exists() -> None:
    assert [name for name in BENCHMARKS if importlib.util.find_spec(module(name)) is None] == []
