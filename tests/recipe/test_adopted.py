"""`domains.NAME.expert: NAME`: an adopted expert in the place of one that the recipe would train."""

from __future__ import annotations

from typing import Any

import pytest
from recipes import spoiled

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from pipelines import bam
from pipelines.recipe import load_recipe, recipe_from
from pipelines.stages import KINDS

DIGESTS = {domain: domain * 8 for domain in ("general", "code", "law", "math")}
NAME = "law-by-other-team"
ORIGIN = {"stage": "expert.law", "key": "ab" * 32, "digest": "cd" * 32}
THERE = {NAME: {"name": NAME, "digest": "cd" * 32, "origin": ORIGIN}}
ADOPT = f"domains.law.expert={NAME}"


def test_it_takes_the_place_of_the_experts_stage() -> None:
    recipe = load_recipe("quickstart", [ADOPT])
    pipeline = bam.build(recipe, DIGESTS, THERE)
    own, adopted = "expert.law", f"adopted.{NAME}"
    plain = [stage.name for stage in bam.build(load_recipe("quickstart"), DIGESTS)]
    assert {stage.name for stage in pipeline} == {*plain} - {own} | {adopted}
    stage = pipeline[adopted]
    assert (stage.function, stage.version, stage.inputs) == ("adopt", KINDS["adopt"].version, {"seed": "seed"})
    assert stage.config == THERE[NAME]
    assert not stage.resources.trains
    assert pipeline["mix.bam"].config["experts"] == [
        ["general", "seed"],
        ["code", "expert.code"],
        ["law", adopted],
        ["math", "expert.math"],
    ]
    assert adopted in pipeline["mix.bam"].inputs
    assert adopted in pipeline["evaluate"].config["models"]
    assert pipeline["evaluate"].config["ensemble"] == ["seed", "expert.code", adopted, "expert.math"]
    assert adopted in pipeline["report"].config["models"]
    assert "data.law" in pipeline["evaluate"].inputs, "its domain's text is still read"


def test_it_is_a_model_that_is_not_trained() -> None:
    recipe = load_recipe("quickstart", [ADOPT])
    assert bam.model_configs(recipe)[f"adopted.{NAME}"] == recipe.dense_config()
    assert bam.model_configs(recipe)["mix.bam"].experts == ("general", "code", "law", "math")
    assert bam.trainings(recipe).keys() == {"seed", "expert.code", "expert.math", "train.bam", "train.btx", "dense"}


def test_only_what_is_made_of_it_gets_another_key() -> None:
    plain = pipeline_keys(bam.build(load_recipe("quickstart"), DIGESTS))
    adopted = pipeline_keys(bam.build(load_recipe("quickstart", [ADOPT]), DIGESTS, THERE))
    changed = {stage for stage in plain if adopted.get(stage) != plain[stage]}
    mixtures = {"mix.bam", "mix.btx", "train.bam", "train.btx", "routing"}
    assert changed == {"expert.law", "evaluate", "report"} | mixtures
    other = {NAME: THERE[NAME] | {"digest": "ef" * 32}}
    replaced = pipeline_keys(bam.build(load_recipe("quickstart", [ADOPT]), DIGESTS, other))
    assert {stage for stage in replaced if replaced[stage] != adopted[stage]} == {
        f"adopted.{NAME}",
        *mixtures,
        "evaluate",
        "report",
    }


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"domains.general.expert": NAME}, "domains.general.expert", "the seed model itself"),
        ({"domains.code.expert": ""}, "domains.code.expert", "must not be empty"),
        ({"domains.code.expert": "../x"}, "domains.code.expert", "1 to 64 letters"),
        ({"domains.code.expert": "x" * 300}, "domains.code.expert", "1 to 64 letters"),
        ({"domains.code.expert": "<b>'\""}, "domains.code.expert", "1 to 64 letters"),
        ({"domains.code.expert": 7}, "domains.code.expert", "or the name of an adopted expert"),
        ({"domains.code.expert": {"lrr": 1}}, "domains.code.expert.lrr", "did you mean 'lr'?"),
        (
            {"domains.code.expert": NAME, "domains.math.expert": NAME},
            "domains.math.expert",
            "is the expert of code already",
        ),
        (
            {
                "domains.code.expert": NAME,
                "tune.x": {"stage": "expert.code", "search": {"phases.expert.lr": {"choice": [1e-3]}}},
            },
            "tune.x.stage",
            "is no stage that trains",
        ),
        (
            {
                "domains.code.expert": NAME,
                "tune.x": {"stage": "expert.math", "search": {"domains.code.expert.lr": {"choice": [1e-3]}}},
            },
            "tune.x.search.'domains.code.expert.lr'",
            "no domain whose expert is trained",
        ),
    ],
)
def test_what_cannot_be_meant(changes: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        recipe_from(spoiled(changes), "here")
    found = {problem.path: str(problem) for problem in caught.value.problems}
    assert words in found.get(where, ""), found


def test_a_search_over_all_experts_leaves_it_alone() -> None:
    search = {"stage": "expert.math", "search": {"phases.expert.lr": {"choice": [1e-3, 2e-3]}}, "rungs": 1}
    recipe = recipe_from(spoiled({"domains.code.expert": NAME, "tune.x": search}), "here")
    pipeline = bam.build(recipe, DIGESTS, THERE)
    assert pipeline[f"adopted.{NAME}"].inputs == {"seed": "seed"}
    assert "tune.x" in pipeline["expert.math"].inputs


def test_a_recipe_is_written_down_as_it_was_read() -> None:
    recipe = load_recipe("quickstart", [ADOPT])
    written = recipe.model_dump(mode="json", exclude_none=True)
    assert written["domains"]["law"]["expert"] == NAME
    assert recipe_from(written, "again") == recipe
