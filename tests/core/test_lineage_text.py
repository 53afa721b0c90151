"""Lineage as trees for a terminal: they fit, they line up, and they say everything once."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bam_core.graph.lineage import ForeignRecord, Graph, lineage
from bam_core.graph.lineage_text import to_text
from bam_core.graph.words import clip, count, duration, printable, width
from tests.lineage_kit import chain, hostile, key, many, quickstart, record, small


def graph_of(stage: str, direction: str = "up") -> Graph:
    records = quickstart()
    return lineage(records, next(found.key for found in records if found.stage == stage), direction)  # type: ignore[arg-type]


def test_the_tree_draws_shared_artifacts_once() -> None:
    text = to_text(lineage(small(), key("expert.law"), "both"), 60)
    rows = [re.sub(r"  +[\d.]+s .*$", "", line) for line in text.splitlines()]
    assert rows == [
        "                              took  tokens     FLOPs   loss",
        "expert.law@key of exper",
        "made from",
        "├─ data.law@key of data.",
        "│  ├─ source.law@law text (text)",
        "│  └─ tokenizer@key of token",
        "│     └─ above: source.law",
        "└─ seed@key of seed",
        "   └─ above: tokenizer, data.law",
        "used by",
        "└─ mix.bam@key of mix.b",
        "   └─ train.bam@key of train",
        "all: code c0ffee0000+",
        "+ with changes that no commit has",
    ]


def test_every_artifact_and_every_edge_of_the_quickstart_is_named() -> None:
    graph = graph_of("report")
    text = to_text(graph, 200)
    assert len(graph.nodes) == 22
    for node in graph.nodes:
        assert len(re.findall(rf"{re.escape(node.stage)}@{node.key[:12]}", text)) == 1
    above = sum(len(line.split("above: ")[1].split(", ")) for line in text.splitlines() if "above: " in line)
    assert above + len(graph.nodes) - 1 == len(graph.edges)


@pytest.mark.parametrize("columns", [60, 80, 100, 132, 160, 200])
@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.parametrize("stage", ["report", "seed", "mix.bam", "tokenizer"])
def test_the_quickstart_fits_and_lines_up(columns: int, direction: str, stage: str) -> None:
    lines = to_text(graph_of(stage, direction), columns).splitlines()
    assert max(map(width, lines)) <= columns
    assert "…" not in "".join(lines), "no name is cut where 60 columns are enough for all"
    places = {
        len(line) - len("12s") if line.endswith("12s") else line.find("  12s") + 2 for line in lines if " 12s" in line
    }
    assert len(places) == 1


def test_a_wider_terminal_says_more() -> None:
    heads = [to_text(graph_of("train.bam"), columns).splitlines()[0].split() for columns in (60, 80, 120)]
    assert heads[0][:2] == ["took", "tokens"] or heads[0] == ["took", "loss"]
    assert set(heads[0]) < set(heads[1]) < set(heads[2])
    assert heads[2] == ["took", "tokens", "FLOPs", "loss", "made", "host"]


def test_what_all_share_is_said_once() -> None:
    records = quickstart()
    text = to_text(graph_of("train.bam"), 200)
    assert text.count("c0ffee") == 1
    assert text.splitlines()[-1] == "all: code c0ffee0000, run quickstart-1"
    changed = replace(records[-1], provenance={**records[-1].provenance, "git_commit": "beef" * 10, "dirty": True})
    other = to_text(lineage([*records[:-1], changed], changed.key), 200)
    assert "commit" in other.splitlines()[0]
    assert "beefbeefbe+" in other
    assert other.splitlines()[-1] == "+ with changes that no commit has"


def test_what_is_missing_foreign_or_replaced_is_said_where_it_stands() -> None:
    left = [found for found in small() if found.stage not in ("tokenizer", "seed")]
    again = record("seed", digest="other bytes")
    text = to_text(lineage([*left, again], key("mix.bam")), 120)
    assert "tokenizer@key of token (missing)" in text
    assert text.count("replaced since") == 2
    origin = {"stage": "expert.law", "key": key("expert.law"), "digest": "bytes of expert.law"}
    adopted = record("adopted.law", {}, {"origin": origin})
    foreign = [ForeignRecord(record("expert.law"), "s3://theirs")]
    crossed = to_text(lineage([adopted], adopted.key, "up", foreign), 120)
    assert "origin: expert.law@key of exper (in s3://theirs)" in crossed


@pytest.mark.parametrize("columns", [1, 40, 60, 100, 200])
def test_hostile_names_stay_in_their_line(columns: int) -> None:
    records = hostile()
    text = to_text(lineage(records, records[-1].key), columns)
    assert max(map(width, text.splitlines())) <= max(columns, 40)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("records", [chain(1500), many(1500)], ids=["a chain", "a bush"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_deep_and_broad_graphs_are_drawn(records: list, direction: str) -> None:
    graph = lineage(records, records[0 if direction == "down" else -1].key, direction)  # type: ignore[arg-type]
    text = to_text(graph, 100)
    assert max(map(width, text.splitlines())) <= 100
    assert sum("@" in line for line in text.splitlines()) >= len(graph.nodes)


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("名前は", 4, "名…"), ("名前", 4, "名前"), ("abc", 0, ""), ("é", 1, "é")],
)
def test_clip_counts_columns(text: str, columns: int, expected: str) -> None:
    assert clip(text, columns) == expected


def test_printable_leaves_letters_and_takes_control() -> None:
    assert printable("naïve 名前") == "naïve 名前"
    assert printable("a\nb\x1b[2J\u202ec\u0085") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2J" + (
        "\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"
    )


def test_figures_are_short() -> None:
    assert [count(n) for n in (999, 400_000, 1_234_567)] == ["999", "400k", "1.23M"]
    assert [duration(s) for s in (4.0, 75.2, 7200)] == ["4.0s", "1m 15s", "2h 00m"]
