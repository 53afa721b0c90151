"""Lineage as a page and as Mermaid: nothing from a record becomes markup, everything of it is there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from typing import Any

import pytest

from bam_core.graph.lineage import ForeignRecord, Graph, lineage
from bam_core.graph.lineage_layout import BOX_H, BOX_W, layout
from bam_core.graph.lineage_render import to_html, to_mermaid
from infra.job_package import job_package
from tests.lineage_kit import HOSTILE, chain, hostile, key, many, quickstart, record, small


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        """Text of each script and style."""
        self.policy = ""
        self._is_inline = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag in ("script", "style"):
            self.inline.append("")
            self._is_inline = True
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._is_inline:
            self.inline[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._is_inline = False

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def count(self, tag: str, style: str) -> int:
        return sum(tag == name and style in (attrs.get("class") or "").split() for name, attrs in self.elements)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert not set("<>&") & set(found[1]), "nothing in it can end its element"
    return json.loads(found[1])


def exact(value: Any) -> Any:
    """As the page has it: whole numbers that JavaScript would round are texts."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return str(value) if type(value) is int and abs(value) > 2**53 else value


def whole() -> Graph:
    records = quickstart()
    return lineage(records, records[-1].key)


def test_the_page_is_one_file_without_network() -> None:
    graph = whole()
    text = to_html(graph)
    page = Page(text)
    assert page.count("g", "box") == len(graph.nodes)
    assert page.count("path", "edge") == len(graph.edges)
    assert page.count("g", "root") == 1
    assert not [attrs for _, attrs in page.elements if {"src", "href", "style", "onclick"} & attrs.keys()]
    assert not re.findall(r"https?://|@import|url\(", text)
    assert to_html(graph) == text


def test_only_its_own_script_and_style_may_run() -> None:
    page = Page(to_html(whole()))
    for kind, text in (("style-src", page.inline[0]), ("script-src", page.inline[-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'")
    assert "unsafe" not in page.policy


def test_the_record_of_every_artifact_is_in_the_page() -> None:
    graph = whole()
    data = data_of(to_html(graph))
    assert [node["stage"] for node in data["nodes"]] == [node.stage for node in graph.nodes]
    assert [node["record"] for node in data["nodes"]] == [
        None if node.record is None else exact(json.loads(json.dumps(node.record.to_json()))) for node in graph.nodes
    ]
    assert '"init_seed":"' in to_html(graph), "a seed is longer than a number of JavaScript"
    assert data["nodes"][data["root"]]["stage"] == "report"
    ends = {(data["nodes"][edge["a"]]["stage"], data["nodes"][edge["b"]]["stage"]) for edge in data["edges"]}
    assert ends == {(edge.parent[0], edge.child[0]) for edge in graph.edges}


def test_hostile_names_are_text_in_the_page() -> None:
    records = hostile()
    origin = {"stage": HOSTILE[0], "key": HOSTILE[0], "digest": HOSTILE[0]}
    records.append(record("adopted.x", {HOSTILE[-1]: HOSTILE[-1]}, {"origin": origin}))
    foreign = [ForeignRecord(record("expert.y", {HOSTILE[0]: HOSTILE[1]}), HOSTILE[0])]
    text = to_html(lineage(records, key("adopted.x"), "both", foreign))
    page = Page(text)
    assert page.tags() == Page(to_html(whole())).tags()
    assert {name for _, attrs in page.elements for name in attrs} <= {
        name for _, attrs in Page(to_html(whole())).elements for name in attrs
    } | {"aria-current"}
    assert {node["stage"] for node in data_of(text)["nodes"]} >= set(HOSTILE)
    assert len(page.inline) == 3
    styles = {style for tag, attrs in page.elements if tag == "g" for style in (attrs.get("class") or "").split()}
    assert styles <= {"box", "root", "missing", "foreign", "source", "text", "dense", "mixture", "figures", "other"}


def test_a_job_on_a_cluster_has_the_pages_parts_too() -> None:
    parts = [part.name for part in resources.files("bam_core.graph").joinpath("page").iterdir()]
    assert sorted(parts) == ["lineage.css", "lineage.html", "lineage.js"]
    assert {f"bam_core/graph/page/{name}" for name in parts} <= job_package({}).files.keys()


def test_numbers_that_json_has_not_do_not_break_the_page() -> None:
    bad = record("seed", metrics={"loss": float("nan"), "deep": {"list": [float("inf"), 1.5]}})
    (node,) = data_of(to_html(lineage([bad], bad.key)))["nodes"]
    assert node["record"]["metrics"] == {"loss": "nan", "deep": {"list": ["inf", 1.5]}}


@pytest.mark.parametrize(
    "graph",
    [
        whole(),
        lineage(small(), key("train.bam"), "both"),
        lineage(many(400), key("seed"), "down"),
        lineage(chain(300), key("edit.299")),
    ],
    ids=["quickstart", "small", "bush", "chain"],
)
def test_boxes_do_not_overlap_and_parents_are_on_the_left(graph: Graph) -> None:
    drawn = layout(graph)
    columns: dict[float, list[float]] = {}
    for x, y in drawn.boxes.values():
        columns.setdefault(x, []).append(y)
        assert 0 <= x <= drawn.width - BOX_W
        assert 0 <= y <= drawn.height - BOX_H
    for rows in columns.values():
        rows.sort()
        assert all(below - above >= BOX_H for above, below in pairwise(rows))
    assert all(drawn.boxes[edge.parent][0] < drawn.boxes[edge.child][0] for edge in graph.edges)


def test_no_arrow_that_says_something_new_runs_through_a_box() -> None:
    """Along a column an arrow keeps to its lane."""
    drawn = layout(whole())
    for arrow in drawn.arrows:
        lanes = list(zip(arrow.way[1::2], arrow.way[2::2], strict=False))
        for (x1, y1), (x2, y2) in lanes:
            assert y1 == y2
            assert not [(x, y) for x, y in drawn.boxes.values() if x1 <= x < x2 and y < y1 < y + BOX_H]
        if not arrow.implied:
            columns = round((arrow.way[-1][0] - arrow.way[0][0]) / (lanes[0][1][0] - lanes[0][0][0])) if lanes else 0
            assert len(lanes) >= columns - 1


def test_an_arrow_is_implied_where_another_way_leads() -> None:
    graph = lineage(small(), key("mix.bam"))
    implied = {(arrow.edge.parent[0], arrow.edge.child[0]) for arrow in layout(graph).arrows if arrow.implied}
    assert implied == {
        ("source.law", "data.law"),
        ("tokenizer", "seed"),
        ("data.law", "expert.law"),
        ("seed", "mix.bam"),
    }


# --- Mermaid ----------------------------------------------------------------------------------------------------------


def test_mermaid() -> None:
    text = to_mermaid(lineage(small(), key("train.bam"), "down"))
    assert text.splitlines() == ["flowchart LR", '  n0["train.bam@key of train"]', "  style n0 stroke-width:3px"]
    drawn = to_mermaid(lineage(small(), key("train.bam")))
    assert len(re.findall(r"n\d+ -->", drawn)) == 10
    assert '-->|"mix"|' in drawn


def test_mermaid_of_hostile_names() -> None:
    records = hostile()
    text = to_mermaid(lineage(records, records[-1].key))
    allowed = (
        r'  n\d+\["[^"<>`\n]*"\]|  n\d+ --> ?n\d+|  n\d+ -->\|"[^"<>`]*"\| n\d+|  style n\d+ [a-z0-9:\- ]+|flowchart LR'
    )
    assert all(re.fullmatch(allowed, line) for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 1000
