"""Lineage: tables of records in, graphs out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bam_core.errors import UsageError
from bam_core.graph.lineage import ForeignRecord, Graph, Node, levels, lineage, origin_of, raw_sources
from bam_core.graph.record import InputRef, Record
from tests.lineage_kit import COMMIT, SOURCE, key, many, record, small


def stages(graph: Graph) -> list[str]:
    return [node.stage for node in graph.nodes]


def edges(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.parent[0], edge.child[0]) for edge in graph.edges}


def node(graph: Graph, stage: str) -> Node:
    (found,) = [node for node in graph.nodes if node.stage == stage]
    return found


MADE_FROM = {"source.law", "tokenizer", "data.law", "seed", "expert.law"}


def test_up_is_all_that_it_was_made_from_and_nothing_else() -> None:
    graph = lineage(small(), key("mix.bam"), "up")
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
    assert set(stages(lineage(small(), key(stage), direction))) == expected


def test_parents_come_first_whatever_the_order_of_the_records() -> None:
    graph = lineage(small(), key("train.bam"))
    order = stages(graph)
    assert all(order.index(parent) < order.index(child) for parent, child in edges(graph))
    assert lineage(reversed(small()), key("train.bam")) == graph


def test_a_node_says_who_made_it_where_and_what_it_cost() -> None:
    provenance = {
        "git_commit": COMMIT,
        "dirty": True,
        "packages": {"torch": "2.13.0"},
        "host": "laptop",
        "ran_on": [{"host": "b", "rank": 0}, {"host": "a", "rank": 1}, {"host": "b", "rank": 2}],
        "run": "quickstart-1",
        "pipeline": "quickstart",
    }
    made = record("seed", payload={"function": "seed", "config": {}}, provenance=provenance)
    found = lineage([made], key("seed")).nodes[-1]
    assert (found.stage, found.key, found.digest) == ("seed", key("seed"), "bytes of seed")
    assert (found.started, found.ended, found.seconds) == (10.0, 14.0, 4.0)
    assert (found.tokens, found.flops) == (1000, 10**9)
    assert (found.git_commit, found.dirty, found.packages) == (COMMIT, True, {"torch": "2.13.0"})
    assert (found.function, found.hosts, found.run, found.pipeline) == (
        "seed",
        ("b", "a"),
        "quickstart-1",
        "quickstart",
    )
    assert found.metrics == {"loss": 2.5, "train_tokens": 1000, "train_flops": 10**9}
    assert not found.missing
    assert found.store is None
    assert found.record is made


def test_an_older_record_ran_where_its_command_was_given() -> None:
    assert lineage([record("seed", provenance={"host": "laptop"})], key("seed")).nodes[0].hosts == ("laptop",)


def test_a_source_is_one_leaf_keyed_by_its_content() -> None:
    leaf = node(lineage(small(), key("seed")), "source.law")
    assert leaf.key == leaf.digest == "law text"
    assert leaf.source == {"kind": "text", "column": "text"}
    assert not leaf.missing


def test_a_parent_whose_record_is_gone_is_a_missing_node() -> None:
    left = [found for found in small() if found.stage != "seed"]
    graph = lineage(left, key("mix.bam"))
    assert node(graph, "seed").missing
    assert node(graph, "seed").digest == "bytes of seed"
    assert ("seed", "expert.law") in edges(graph)


def test_a_parent_made_again_with_other_bytes_is_a_replaced_edge() -> None:
    again = record("seed", {"tokenizer": "tokenizer", "data.law": "data.law"}, digest="other bytes")
    graph = lineage([again if found.stage == "seed" else found for found in small()], key("mix.bam"))
    replaced = {(edge.parent[0], edge.child[0]) for edge in graph.edges if edge.replaced}
    assert replaced == {("seed", "expert.law"), ("seed", "mix.bam")}
    assert not [edge for edge in lineage(small(), key("mix.bam")).edges if edge.replaced]


def test_unknown_key() -> None:
    with pytest.raises(UsageError, match="nothing12345: `bam ls`"):
        lineage(small(), "nothing12345 and the rest")


@pytest.mark.parametrize(
    ("loop", "named"),
    [
        ({"a": "b", "b": "a"}, ["a@", "b@"]),
        ({"a": "a"}, ["a@"]),
        ({"a": "b", "b": "c", "c": "b"}, ["b@", "c@"]),  # what was asked for hangs on the circle, not in it
    ],
)
def test_artifacts_that_are_their_own_ancestors_are_named(loop: dict[str, str], named: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        lineage([record(child, {parent: parent}) for child, parent in loop.items()], key("a"))
    words = str(raised.value)
    assert "ancestors" in words
    assert "bam verify" in words
    assert all(f"{name}key of" in words for name in named)
    assert ("a@" in words) == ("a@" in named)


def test_a_long_circle_is_not_named_in_full() -> None:
    loop = [record(f"s{i}", {"x": f"s{(i + 1) % 500}"}) for i in range(500)]
    with pytest.raises(UsageError) as raised:
        lineage(loop, key("s0"))
    assert len(str(raised.value)) < 600
    assert "more" in str(raised.value)


def test_a_circle_elsewhere_in_the_store_harms_nobody() -> None:
    loop = [record("x", {"y": "y"}), record("y", {"x": "x"})]
    assert lineage([*small(), *loop], key("train.bam"), "both") == lineage(small(), key("train.bam"), "both")


DAMAGED: dict[str, Any] = {
    "payload": [
        {},
        {"config": []},
        {"config": {"domain": ["law"], "source": {"digest": 3}}},
        {"config": {"domains": {"law": "text"}}},
        {"config": {"origin": {"stage": 1, "key": [], "digest": None}}, "function": 7},
    ],
    "metrics": [{"train_tokens": "many", "train_flops": float("inf"), "loss": float("nan"), "n": 10**400}],
    "provenance": [
        {"packages": ["torch"], "git_commit": 5, "dirty": "yes", "host": 3, "ran_on": "here", "run": {}},
        {"packages": {"torch": None}, "ran_on": [7, {"host": None}], "pipeline": []},
    ],
    "started": [float("nan"), float("-inf")],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in DAMAGED.items() for value in values])
def test_values_that_no_stage_of_ours_writes_are_left_out(field: str, value: Any) -> None:
    graph = lineage([replace(record("seed"), **{field: value})], key("seed"))
    text = json.dumps(graph.to_json(), allow_nan=False)
    assert '"seed"' in text
    assert [node for node in graph.nodes if not node.missing][0].stage == "seed"  # noqa: RUF015


# --- other stores -----------------------------------------------------------------------------------------------------

THEIRS = "s3://theirs/store"


def adopted(**provenance: Any) -> Record:
    origin = {"stage": "expert.law", "key": key("expert.law"), "digest": "bytes of expert.law"}
    config = {"name": "law", "digest": origin["digest"], "origin": origin}
    return record("adopted.law", {"seed": "seed"}, config, provenance={"adopted_from": THEIRS, **provenance})


def ours() -> list[Record]:
    return [record("seed"), adopted(), record("mix.bam", {"adopted.law": "adopted.law"})]


def theirs(*left_out: str) -> list[ForeignRecord]:
    made = [
        record("seed", digest="their record of the same seed"),
        record("data.law", {}, {"domain": "law", "source": SOURCE}),
        record("expert.law", {"seed": "seed", "data.law": "data.law"}),
    ]
    return [ForeignRecord(found, THEIRS) for found in made if found.stage not in left_out]


def test_lineage_crosses_into_the_store_where_an_expert_was_made() -> None:
    graph = lineage(ours(), key("mix.bam"), "up", theirs())
    assert {(e.parent[0], e.child[0], e.role) for e in graph.edges if e.parent[0] != e.role} == {
        ("expert.law", "adopted.law", "origin"),
        ("source.law", "data.law", "source"),
    }
    assert {found.stage: found.store for found in graph.nodes} == {
        "seed": None,  # ours, though they have it too
        "adopted.law": None,
        "mix.bam": None,
        "source.law": None,
        "expert.law": THEIRS,
        "data.law": THEIRS,
    }
    assert node(graph, "seed").digest == "bytes of seed"
    assert not any(found.missing for found in graph.nodes)


def test_a_foreign_expert_knows_who_adopted_it() -> None:
    assert "mix.bam" in stages(lineage(ours(), key("expert.law"), "down", theirs()))


@pytest.mark.parametrize(("gone", "left"), [("expert.law", "expert.law"), ("data.law", "data.law")])
def test_what_no_record_came_along_for_is_missing_in_their_store(gone: str, left: str) -> None:
    found = node(lineage(ours(), key("mix.bam"), "up", theirs(gone)), left)
    assert found.missing
    assert found.store == THEIRS


def test_what_ours_and_theirs_lack_is_missing_here() -> None:
    lacking = [found for found in ours() if found.stage != "seed"]
    for records in (lacking, lacking[::-1]):
        found = node(lineage(records, key("mix.bam"), "up", theirs("seed")), "seed")
        assert (found.missing, found.store) == (True, None)


def test_without_their_records_the_origin_is_still_named() -> None:
    found = node(lineage(ours(), key("mix.bam")), "expert.law")
    assert (found.missing, found.store, found.digest) == (True, THEIRS, "bytes of expert.law")


def test_an_expert_that_changed_hands_twice() -> None:
    origin = {"stage": "adopted.law", "key": key("adopted.law"), "digest": "bytes of adopted.law"}
    again = record("adopted.ours", {}, {"origin": origin}, provenance={"adopted_from": "s3://second"})
    foreign = [ForeignRecord(adopted(), "s3://second"), *theirs()]
    graph = lineage([again], again.key, "up", foreign)
    assert {"adopted.law", "expert.law", "data.law"} <= set(stages(graph))


def test_origin_is_what_the_configuration_names() -> None:
    assert origin_of(adopted()) == InputRef("expert.law", key("expert.law"), "bytes of expert.law")
    assert origin_of(record("seed")) is None


# --- levels, sources, JSON --------------------------------------------------------------------------------------------


def test_raw_sources_of_a_stage_that_names_domains_without_texts() -> None:
    assert raw_sources({"domains": ["law"], "models": []}) == []
    assert raw_sources({"domain": "law", "phase": {}}) == []


def test_a_checkpoint_is_a_source_of_what_imports_it() -> None:
    [found] = raw_sources({"domain": "law", "import": {"digest": "ab" * 32, "family": "llama"}, "model": {}})
    assert (found.domain, found.digest, found.spec["kind"]) == ("checkpoint", "ab" * 32, "llama checkpoint")
    assert raw_sources({"import": {"family": "llama"}}) == []


def test_levels_are_longest_ways() -> None:
    graph = lineage(small(), key("mix.bam"))
    level = {node[0]: number for node, number in levels((n.id for n in graph.nodes), graph.edges).items()}
    assert level == {"source.law": 0, "tokenizer": 1, "data.law": 2, "seed": 3, "expert.law": 4, "mix.bam": 5}


def test_every_one_of_many_artifacts_is_there() -> None:
    records = many(3000)
    graph = lineage(records, records[0].key, "down")
    assert len(graph.nodes) == 3000
    order = {found.id: number for number, found in enumerate(graph.nodes)}
    assert all(order[edge.parent] < order[edge.child] for edge in graph.edges)


def test_json_is_the_contract() -> None:
    data = json.loads(json.dumps(lineage(small(), key("seed")).to_json()))
    assert data["root"] == {"stage": "seed", "key": key("seed")}
    assert data["edges"][-1] == {
        "from": {"stage": "data.law", "key": key("data.law")},
        "to": {"stage": "seed", "key": key("seed")},
        "role": "data.law",
        "replaced": False,
    }
    needed = {"stage", "key", "digest", "started", "ended", "seconds", "git_commit", "dirty", "packages", "metrics"}
    needed |= {"tokens", "flops", "missing", "hosts", "run", "pipeline", "function", "store", "source"}
    assert all(needed == node.keys() for node in data["nodes"])
