"""How shares changed, as the report draws and lists it."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import build_report
from pipelines.report.data_path import data_path_panels, data_path_table
from tests.report.fakes import DOMAINS, fake_run

RULE = [
    {"step": 0, "shares": dict.fromkeys(DOMAINS, 0.25), "losses": dict.fromkeys(DOMAINS, 3.0)},
    {
        "step": 40,
        "shares": {"general": 0.1, "code": 0.2, "law": 0.3, "math": 0.4},
        "losses": dict.fromkeys(DOMAINS, 2.5),
    },
]
PLAN = [{"step": step, "shares": {"law": 1 - step / 100, "code": step / 100}, "losses": {}} for step in (0, 50, 100)]
PATHS = {"train.bam": RULE, "dense": PLAN}


def run(**paths: Any) -> Any:
    history = [{"step": step, "tokens": step * 64, "loss": 2.0} for step in (1, 101)]
    return fake_run(data_paths=paths or PATHS, training={"train.bam": history, "dense": history})


def lines(panel: Any) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(panel.standalone())
    found = [node.get("points", "") for node in root.iter() if node.tag.endswith("polyline")]
    return [[tuple(map(float, point.split(","))) for point in points.split()] for points in found]  # type: ignore[misc]


def test_shares_that_follow_losses_stay_between_updates_and_a_plans_do_not() -> None:
    panels = data_path_panels(run())
    assert list(panels) == ["dense", "train.bam"]
    steps = lines(panels["train.bam"])
    assert [len(line) for line in steps] == [4] * 4
    for (x0, y0), (x1, y1), (x2, y2), (x3, y3) in steps:
        assert (y0, y2) == (y1, y3)
        assert x0 < x1 == x2 < x3
    code, maths = steps[1], steps[3]
    assert code[0][1] < code[2][1], "code falls, and y grows downwards"
    assert maths[0][1] > maths[2][1]
    straight = lines(panels["dense"])
    assert [len(line) for line in straight] == [4] * 2
    assert straight[0][0][1] - straight[0][1][1] == pytest.approx(straight[0][1][1] - straight[0][2][1], abs=0.2)


def test_it_is_told_in_words_too() -> None:
    label = data_path_panels(run())["train.bam"].label
    assert label.startswith("train.bam: share of each domain. general from 25.0% to 10.0%, code from 25.0% to 20.0%")


def test_the_table_has_every_share_and_loss(tmp_path: Path) -> None:
    build_report(run(), tmp_path)
    with (tmp_path / "tables" / "data_path.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 + 3 * 2
    assert rows[-1] == {"model": "train.bam", "step": "40", "domain": "math", "share": "0.4", "loss": "2.5"}
    assert {row["loss"] for row in rows if row["model"] == "dense"} == {""}
    page = (tmp_path / "report.html").read_text()
    assert "tables/data_path.csv" in page
    assert (tmp_path / "figures" / "data-train.bam.svg").exists()


def test_a_run_whose_shares_stay_has_none_of_it(tmp_path: Path) -> None:
    build_report(fake_run(), tmp_path)
    assert not list(tmp_path.rglob("*data_path*"))
    assert "data_path" not in (tmp_path / "report.html").read_text()
    assert data_path_table(fake_run()).rows == ()


def test_many_domains_and_a_domain_that_comes_later() -> None:
    names = [f"domain{number}" for number in range(9)]
    path = [
        {"step": 0, "shares": dict.fromkeys(names[:8], 0.125), "losses": {}},
        {"step": 9, "shares": {names[8]: 1.0}, "losses": {}},
    ]
    panel = data_path_panels(run(dense=path))["dense"]
    assert len(lines(panel)) == 9
    assert panel.label.endswith("domain8 from 0.0% to 100.0%.")
