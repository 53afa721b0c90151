"""Lineage: tables of records in, graphs and drawings out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import pytest

from bam_core.errors import UsageError
from bam_core.graph.lineage import Graph, levels, lineage, raw_sources
from bam_core.graph.lineage_render import RENDERERS, to_html, to_json, to_mermaid, to_text
from bam_core.graph.record import InputRef, Record

SOURCE = {"kind": "text", "digest": "law text", "column": "text"}


def key(stage: str) -> str:
    return f"key of {stage}"


def record(stage: str, inputs: Mapping[str, str] = {}, config: Mapping[str, Any] = {}, **changes: Any) -> Record:
    """inputs: role -> parent stage."""
    values: dict[str, Any] = {
        "stage": stage,
        "key": key(stage),
        "payload": {"config": dict(config)},
        "inputs": {role: InputRef(parent, key(parent), f"bytes of {parent}") for role, parent in inputs.items()},
        "outputs": (),
        "digest": f"bytes of {stage}",
        "metrics": {"loss": 2.5, "train_tokens": 1000, "train_flops": 10**9, "flag": True, "words": "no number"},
        "provenance": {"git_commit": "c0ffee" + "0" * 34, "dirty": True, "packages": {"torch": "2.13.0"}},
        "started": 10.0,
        "ended": 14.0,
        "attempt": 1,
    }
    return Record(**{**values, **changes})


def records() -> list[Record]:
    """tokenizer -> data.law -> seed -> expert.law -> mix.bam, and a dense that nothing below mix needs."""
    return [
        record("tokenizer", config={"domains": {"law": {"source": SOURCE, "valid_frac": 0.1}}}),
        record("data.law", {"tokenizer": "tokenizer"}, {"domain": "law", "source": SOURCE}),
        record("seed", {"tokenizer": "tokenizer", "data.law": "data.law"}, {"domain": "law", "phase": {}}),
        record("expert.law", {"seed": "seed", "data.law": "data.law"}),
        record("mix.bam", {"seed": "seed", "expert.law": "expert.law"}),
        record("dense", {"seed": "seed"}),
        record("train.bam", {"mix": "mix.bam"}),
    ]


def stages(graph: Graph) -> list[str]:
    return [node.stage for node in graph.nodes]


def edges(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.parent[0], edge.child[0]) for edge in graph.edges}


MADE_FROM = {"source.law", "tokenizer", "data.law", "seed", "expert.law"}


def test_up_is_all_that_it_was_made_from_and_nothing_else() -> None:
    graph = lineage(records(), key("mix.bam"), "up")
    assert set(stages(graph)) == MADE_FROM | {"mix.bam"}
    assert edges(graph) == {
        ("source.law", "tokenizer"),
        ("source.law", "data.law"),
        ("tokenizer", "data.law"),
        ("tokenizer", "seed"),
        ("data.law", "seed"),
        ("seed", "expert.law"),
        ("data.law", "expert.law"),
        ("seed", "mix.bam"),
        ("expert.law", "mix.bam"),
    }


@pytest.mark.parametrize(
    ("stage", "direction", "expected"),
    [
        ("seed", "down", {"seed", "expert.law", "mix.bam", "train.bam", "dense"}),
        ("expert.law", "both", MADE_FROM | {"mix.bam", "train.bam"}),
        ("train.bam", "down", {"train.bam"}),
        ("tokenizer", "up", {"tokenizer", "source.law"}),
    ],
)
def test_directions(stage: str, direction: Any, expected: set[str]) -> None:
    assert set(stages(lineage(records(), key(stage), direction))) == expected


def test_parents_come_first_whatever_the_order_of_the_records() -> None:
    graph = lineage(records(), key("train.bam"))
    order = stages(graph)
    assert all(order.index(parent) < order.index(child) for parent, child in edges(graph))
    assert lineage(reversed(records()), key("train.bam")) == graph


def test_a_node_says_who_made_it_and_what_it_cost() -> None:
    node = lineage(records(), key("seed")).nodes[-1]
    assert (node.stage, node.key, node.digest) == ("seed", key("seed"), "bytes of seed")
    assert (node.started, node.seconds, node.tokens, node.flops) == (10.0, 4.0, 1000, 10**9)
    assert (node.git_commit, node.dirty, node.packages) == ("c0ffee" + "0" * 34, True, {"torch": "2.13.0"})
    assert node.metrics == {"loss": 2.5, "train_tokens": 1000, "train_flops": 10**9}
    assert not node.missing


def test_a_source_is_one_leaf_keyed_by_its_content() -> None:
    graph = lineage(records(), key("seed"))
    (leaf,) = [node for node in graph.nodes if node.stage == "source.law"]
    assert leaf.key == leaf.digest == "law text"
    assert leaf.source == {"kind": "text", "column": "text"}
    assert not leaf.missing


def test_a_parent_whose_record_is_gone_is_a_missing_node() -> None:
    left = [found for found in records() if found.stage != "seed"]
    graph = lineage(left, key("mix.bam"))
    (seed,) = [node for node in graph.nodes if node.stage == "seed"]
    assert seed.missing
    assert seed.digest == "bytes of seed"
    assert ("seed", "expert.law") in edges(graph)
    assert "seed@key of seed  missing" in to_text(graph)


def test_a_parent_made_again_with_other_bytes_is_a_replaced_edge() -> None:
    again = record("seed", {"tokenizer": "tokenizer", "data.law": "data.law"}, digest="other bytes")
    graph = lineage([again if found.stage == "seed" else found for found in records()], key("mix.bam"))
    replaced = {(edge.parent[0], edge.child[0]) for edge in graph.edges if edge.replaced}
    assert replaced == {("seed", "expert.law"), ("seed", "mix.bam")}
    assert to_text(graph).count("(replaced since)") == 2
    assert not [edge for edge in lineage(records(), key("mix.bam")).edges if edge.replaced]


def test_unknown_key() -> None:
    with pytest.raises(UsageError, match="nothing12345: `bam ls`"):
        lineage(records(), "nothing12345 and the rest")


def test_records_that_contradict_each_other() -> None:
    loop = [record("a", {"b": "b"}), record("b", {"a": "a"})]
    with pytest.raises(UsageError, match="own ancestors"):
        lineage(loop, key("a"))


def test_raw_sources_of_a_stage_that_names_domains_without_texts() -> None:
    assert raw_sources({"domains": ["law"], "models": []}) == []
    assert raw_sources({"domain": "law", "phase": {}}) == []


def test_levels_are_longest_ways() -> None:
    graph = lineage(records(), key("mix.bam"))
    level = {node[0]: number for node, number in levels((n.id for n in graph.nodes), graph.edges).items()}
    assert level == {"source.law": 0, "tokenizer": 1, "data.law": 2, "seed": 3, "expert.law": 4, "mix.bam": 5}


def test_json_is_the_contract() -> None:
    data = json.loads(to_json(lineage(records(), key("seed"))))
    assert data["root"] == {"stage": "seed", "key": key("seed")}
    assert data["edges"][-1] == {
        "from": {"stage": "data.law", "key": key("data.law")},
        "to": {"stage": "seed", "key": key("seed")},
        "role": "data.law",
        "replaced": False,
    }
    needed = {"stage", "key", "digest", "started", "seconds", "git_commit", "dirty", "packages", "metrics", "missing"}
    assert all(needed | {"tokens", "flops"} <= node.keys() for node in data["nodes"])


FACTS = "4.0 s  1,000 tokens  1.00e+09 FLOPs  loss 2.500  commit c0ffee0000+changes"


def test_text_draws_shared_nodes_once() -> None:
    text = to_text(lineage(records(), key("expert.law"), "both"), width=120)
    assert text.splitlines() == [
        f"expert.law@key of exper  {FACTS}",
        "made from",
        f"├─ data.law@key of data.  {FACTS}",
        "│  ├─ source.law@law text  text",
        f"│  └─ tokenizer@key of token  {FACTS}",
        "│     └─ source.law@law text",
        f"└─ seed@key of seed  {FACTS}",
        "   ├─ tokenizer@key of token  (above)",
        "   └─ data.law@key of data.  (above)",
        "used by",
        f"└─ mix.bam@key of mix.b  {FACTS}",
        f"   └─ mix: train.bam@key of train  {FACTS}",
    ]


def test_text_fits_its_width() -> None:
    lines = to_text(lineage(records(), key("mix.bam")), width=40).splitlines()
    assert max(map(len, lines)) == 40
    assert lines[0].endswith("…")


def test_mermaid() -> None:
    text = to_mermaid(lineage(records(), key("train.bam"), "down"))
    assert text.splitlines() == ["flowchart LR", '  n0["train.bam@key of train"]', "  style n0 stroke-width:3px"]
    drawn = to_mermaid(lineage(records(), key("train.bam")))
    assert len(re.findall(r"n\d+ -->", drawn)) == 10
    assert '-->|"mix"|' in drawn


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def count(self, tag: str, style: str) -> int:
        return sum(tag == name and style in (attrs.get("class") or "").split() for name, attrs in self.elements)


def test_html_is_one_page_without_network() -> None:
    graph = lineage(records(), key("train.bam"))
    text = to_html(graph)
    page = Page(text)
    assert page.count("g", "box") == len(graph.nodes)
    assert page.count("path", "edge") == len(graph.edges)
    assert page.count("g", "root") == 1
    assert not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    assert not re.findall(r"https?://|@import|url\(", text)
    assert to_html(graph) == text


def test_boxes_do_not_overlap_and_parents_are_on_the_left() -> None:
    graph = lineage(records(), key("train.bam"), "both")
    places = re.findall(r'translate\((\d+) (\d+)\)"', to_html(graph))
    at = dict(zip((node.id for node in graph.nodes), ((int(x), int(y)) for x, y in places), strict=True))
    assert len(set(at.values())) == len(graph.nodes)
    assert all(at[edge.parent][0] < at[edge.child][0] for edge in graph.edges)


HOSTILE = '"]</script><img src=x onerror=alert(1)> @facts@ &amp; #quot; `x`'


@pytest.mark.parametrize("form", ["html", "mermaid"])
def test_hostile_names_stay_names(form: str) -> None:
    hostile = [
        record("data.x", {HOSTILE: HOSTILE}, {"domain": HOSTILE, "source": {"kind": HOSTILE, "digest": HOSTILE}})
    ]
    hostile.append(record(HOSTILE))
    text = RENDERERS[form](lineage(hostile, key("data.x")))
    if form == "html":
        page = Page(text)
        assert page.tags() <= Page(to_html(lineage(records(), key("seed")))).tags()
        facts = re.search(r"const nodes = (.*);", text)
        assert facts is not None
        assert HOSTILE in [node["stage"] for node in json.loads(facts[1])]
    else:
        assert all(re.fullmatch(r'  n\d+\["[^"]*"\]', line) for line in text.splitlines() if "[" in line)
        assert "<" not in text
