"""A whole run on text without labels: two domains are clusters of one file, and the third has a text of its own."""

from __future__ import annotations

import json
import random

import pyarrow.parquet as pq

from tests.e2e.kit import WORDS, Place, executed, lines_of, merged, write_jsonl


def unlabelled(place: Place) -> None:
    """The general and the code documents shuffled in one file."""
    texts = place.recipe.parent / "texts"
    lines = lines_of("general") + lines_of("code")
    random.Random(0).shuffle(lines)
    write_jsonl(texts / "web.jsonl", lines)
    source = {"kind": "jsonl", "path": str(texts / "web.jsonl")}
    recipe = merged(place.recipe_dict(), {"domains": {"general": None, "code": None, "law": None}})
    law = place.recipe_dict()["domains"]["law"]
    domains = {
        "general": {"source": {"kind": "cluster", "of": "web", "index": 0}, "valid_frac": 0.1},
        "code": {"source": {"kind": "cluster", "of": "web", "index": 1}, "valid_frac": 0.1},
        "law": law,
    }
    place.set_recipe(merged(recipe, {"discover": {"web": {"source": source, "n": 2}}, "domains": domains}))


def test_clusters_are_domains_of_a_whole_run(empty: Place) -> None:
    unlabelled(empty)
    answer = empty.run()
    assert answer.status == 0, answer.err
    told = json.loads((empty.artifact("discover.web") / "clusters.json").read_text())
    kinds = [
        {kind for kind, words in WORDS.items() if set(cluster["terms"]) & set(words.lower().split())}
        for cluster in told["clusters"]
    ]
    assert {"general"} in kinds
    assert any("code" in kind and "general" not in kind for kind in kinds)
    table = pq.read_table(empty.artifact("discover.web") / "clusters.parquet").to_pydict()
    sizes = [table["cluster"].count(index) for index in range(2)]
    stats = [json.loads((empty.artifact(f"data.{d}") / "stats.json").read_text()) for d in ("general", "code")]
    assert [its["train"]["documents"] + its["valid"]["documents"] for its in stats] == sizes
    perplexity = json.loads(empty.perplexity())["models"]
    assert set(perplexity["train.bam"]["domains"]) == {"general", "code", "law"}
    graph = empty.bam("lineage", "train.bam", "--format", "json").json
    edges = {(edge["from"]["stage"], edge["to"]["stage"]) for edge in graph["edges"]}
    assert {("discover.web", "data.general"), ("discover.web", "data.code"), ("discover.web", "tokenizer")} <= edges

    before = empty.attempts()
    again = empty.run()
    assert again.status == 0
    assert executed(before, empty.attempts()) == set()
    assert empty.bam("verify", "train.bam", "--deep", "--sources").status == 0
