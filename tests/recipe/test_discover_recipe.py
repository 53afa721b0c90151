"""Domains that are clusters: what is built from what, which keys a change reaches, and every mistake in words."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from recipes import spoiled

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from pipelines import bam
from pipelines.recipe import recipe_from
from pipelines.recipe.schema import Recipe

WEB = {"source": {"kind": "jsonl", "path": "web.jsonl", "licence": "CC0-1.0"}, "n": 3}
CLUSTERS = {
    "discover.web": WEB,
    "domains.general.source": {"kind": "cluster", "of": "web", "index": 0},
    "domains.code.source": {"kind": "cluster", "of": "web", "index": 2},
}
DIGESTS = {"discover.web": "of the web", "math": "of math"}


def recipe(**changes: Any) -> Recipe:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return recipe_from(spoiled(deepcopy(CLUSTERS | changes)), "here")


def pipeline(digests: dict[str, str] | None = None, **changes: Any) -> Pipeline:
    return bam.build(recipe(**changes), digests or DIGESTS)


def reached(digests: dict[str, str] | None = None, **changes: Any) -> set[str]:
    before, after = pipeline_keys(pipeline()), pipeline_keys(pipeline(digests, **changes))
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_a_cluster_is_read_from_the_text_that_was_divided() -> None:
    made = pipeline()
    assert [stage.name for stage in made][:5] == ["discover.web", "tokenizer", "data.general", "data.code", "data.math"]
    assert made["discover.web"].inputs == {}
    assert made["data.code"].inputs == {"tokenizer": "tokenizer", "discover.web": "discover.web"}
    assert made["data.code"].config["cluster"] == {"of": "web", "index": 2}
    assert made["data.code"].config["source"] == {"kind": "jsonl", "column": "text", "digest": "of the web"}
    assert made["data.code"].runtime["source"] == made["discover.web"].runtime["source"]
    assert made["data.code"].runtime["source"]["path"] == "web.jsonl"
    assert made["data.math"].inputs == {"tokenizer": "tokenizer"}
    assert made["tokenizer"].inputs == {"discover.web": "discover.web"}
    assert pipeline(tokenizer__domains=["math"])["tokenizer"].inputs == {}
    assert recipe().licence("code") == "CC0-1.0"
    assert made["data.code"].runtime["licence"] == "CC0-1.0"


def test_what_reaches_which_domains() -> None:
    everything = {stage.name for stage in pipeline()}
    assert reached(DIGESTS | {"discover.web": "other text"}) == everything
    assert reached(discover__web=WEB | {"seed": 1}) == everything
    assert reached(discover__web=WEB | {"seed": 0, "dims": 100, "features": "20k", "balance": "bytes"}) == set()
    moved = WEB | {"source": WEB["source"] | {"path": "elsewhere/*.jsonl", "licence": "MIT"}}
    assert reached(discover__web=moved) == set()
    own = reached(domains__code__source={"kind": "cluster", "of": "web", "index": 1}, tokenizer__domains=["math"])
    assert "discover.web" not in own
    assert reached(seed=1).isdisjoint({"discover.web", "tokenizer", "data.general", "overlap"})


def test_several_seeds_share_what_was_discovered_and_the_check() -> None:
    names = [stage.name for stage in pipeline(seeds=[0, 1])]
    assert "seed.s1" in names
    assert not {name for name in names if name.startswith(("discover", "data", "overlap")) and name.endswith(".s1")}
    assert pipeline(seeds=[0, 1])["seed.s1"].checks == ("overlap",)


def test_clusters_that_nobody_takes_are_a_warning() -> None:
    assert bam.warnings(recipe()) == ["discover.web: no domain is cluster 1: that text is left out"]
    four, one = WEB | {"n": 4}, {"kind": "cluster", "of": "web", "index": 1}
    assert bam.warnings(recipe(discover__web=four, domains__math__source=one)) == [
        "discover.web: no domain is cluster 3: that text is left out"
    ]


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"domains.code.source.of": "wob"}, "domains.code.source.of", "is not under discover .did you mean 'web'"),
        ({"domains.code.source.index": 3}, "domains.code.source.index", "from 0 to 2: discover.web has 3"),
        ({"domains.code.source.index": -1}, "domains.code.source.index", "from 0 to 2"),
        ({"domains.code.source.index": 0}, "domains.code.source.index", "is the text of general already"),
        ({"domains.code.source.index": "one"}, "domains.code.source.index", "whole number"),
        ({"domains.code.source.path": "x"}, "domains.code.source.path", "is not a known key"),
        ({"discover.web.n": 1}, "discover.web.n", "must be at least 2"),
        ({"discover.web.dims": 0}, "discover.web.dims", "must be at least 1"),
        ({"discover.web.features": 0}, "discover.web.features", "must be at least 1"),
        ({"discover.web.balance": "words"}, "discover.web.balance", "must be bytes or documents"),
        ({"discover.web.k": 3}, "discover.web.k", "is not a known key"),
        ({"discover.web.source.licence": "two\nlines"}, "discover.web.source.licence", "must be one line"),
        ({"discover.web.source": {"kind": "cluster"}}, "discover.web.source.kind", "must be one of .*parquet, hf"),
        ({"discover.Web!": WEB}, "discover.'Web!'", "a name has 1 to 64"),
        ({"discover.more": WEB}, "discover.more", "no domain is one of its clusters"),
        ({"evaluate.max_overlap": 1.5}, "evaluate.max_overlap", "must be from 0 to 1"),
        ({"evaluate.max_contaminated": -0.1}, "evaluate.max_contaminated", "must be from 0 to 1"),
        ({"evaluate.allow_overlap": "yes"}, "evaluate.allow_overlap", "must be true or false"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        recipe_from(spoiled(deepcopy(CLUSTERS) | changes), "here")
    assert path in {problem.path for problem in caught.value.problems}


# the check for overlap


def test_trainings_wait_for_the_check_and_only_results_read_it() -> None:
    made = pipeline()
    assert made["overlap"].inputs == {
        **{"tokenizer": "tokenizer"},
        **{f"data.{domain}": f"data.{domain}" for domain in ("general", "code", "math")},
    }
    waiting = {stage.name for stage in made if "overlap" in stage.checks}
    assert waiting == {"seed", "expert.code", "expert.math", "train.bam", "train.btx", "dense"}
    assert {stage.name for stage in made if "overlap" in stage.inputs} == {"evaluate", "report"}
    assert reached(evaluate__allow_overlap=True) == {"overlap", "evaluate", "report"}
    assert reached(evaluate__max_overlap=0.5) == set()
