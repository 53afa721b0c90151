"""The section `distil`: which stages it makes, what is in their keys, and every mistake at its key path."""

from __future__ import annotations

from typing import Any

import pytest

from bam_core.config import Distillation
from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from bam_core.seeds import child_seed
from pipelines import bam
from pipelines.recipe import Recipe, load_recipe, recipe_from
from tests.recipe.recipes import GOOD, MISSING, spoiled

TOP_1 = {"from": "bam", "attention": {"routing": "top_k", "top_k": 1}, "tokens": 320}
SHARED = {"from": "bam", "attention": {"kv": "shared"}, "tokens": "320", "lr": "2e-3", "kl": 0.9, "temperature": 2}


def recipe(**changes: Any) -> Recipe:
    distil = {"distil": {"bam_top1": TOP_1, "bam_shared": SHARED}}
    return recipe_from(spoiled(distil | {path.replace("__", "."): value for path, value in changes.items()}), "recipe")


def built(made: Recipe) -> Pipeline:
    return bam.build(made, dict.fromkeys(GOOD["domains"], "text"))


def test_a_stage_reads_the_trained_variant_and_the_data_of_the_mixture() -> None:
    stages = {stage.name: stage for stage in built(recipe())}
    made = stages["distil.bam_shared"]
    assert made.inputs == {"teacher": "train.bam"} | {f"data.{domain}": f"data.{domain}" for domain in GOOD["domains"]}
    assert made.config["attention"] == {"kv": "shared"}
    assert made.config["distil"] == {"kl": 0.9, "temperature": 2.0}
    assert made.resources == stages["train.bam"].resources
    names = list(stages)
    assert names.index("train.bam") < names.index("distil.bam_top1") < names.index("evaluate")
    for judge in ("evaluate", "routing", "report"):
        assert stages[judge].inputs["distil.bam_top1"] == "distil.bam_top1"


def test_its_model_is_the_variants_with_the_attention_that_is_asked_for() -> None:
    models = bam.model_configs(recipe())
    teacher, top_1, shared = (models[name] for name in ("train.bam", "distil.bam_top1", "distil.bam_shared"))
    assert (top_1.attention.top_k, top_1.attention.kv) == (1, "expert")
    assert (shared.attention.top_k, shared.attention.kv) == (3, "shared")
    assert top_1.ffn == shared.ffn == teacher.ffn
    assert top_1.experts == teacher.experts


def test_its_phase_is_the_mixtures_but_for_what_it_says_and_what_is_for_a_start() -> None:
    of_start = {"router_freeze_frac": 0.5, "attention_soft_frac": 0.5, "expert_freeze_frac": 0.5}
    changes = {f"phases__mixture__{name}": value for name, value in of_start.items()}
    made = recipe(**changes, distil__bam_top1__attention_soft_frac=0.25)
    phase, other = bam.trainings(made)["distil.bam_shared"], bam.trainings(made)["train.bam"]
    assert (phase.tokens, phase.lr, phase.batch_tokens) == (320, 2e-3, other.batch_tokens)
    assert (phase.shares, phase.dtype, phase.seed) == (other.shares, other.dtype, child_seed(0, "distil"))
    assert (phase.router_freeze_frac, phase.expert_freeze_frac, phase.attention_soft_frac) == (0, 0, 0)
    assert bam.trainings(made)["distil.bam_top1"].attention_soft_frac == 0.25


def test_it_changes_no_key_but_those_of_what_reads_its_model() -> None:
    plain = pipeline_keys(built(recipe_from(spoiled({}), "recipe")))
    found = pipeline_keys(built(recipe()))
    assert {name for name in plain if plain[name] != found[name]} == {"evaluate", "routing", "report"}
    other = pipeline_keys(built(recipe(distil__bam_top1__kl=0.75)))
    assert {name for name in found if found[name] != other[name]} == {
        *("distil.bam_top1", "evaluate", "routing", "report")
    }
    said = pipeline_keys(built(recipe(distil__bam_top1__kl=Distillation().kl, distil__bam_top1__data="uniform")))
    assert said == found, "what is said and is the default is in no key"


def test_a_search_over_the_mixture_phase_sets_what_the_distillation_does_not_say() -> None:
    search = {"stage": "train.bam", "search": {"phases.mixture.lr": {"uniform": [1e-3, 1e-2]}}, "trials": 2, "rungs": 1}
    stages = {stage.name: stage for stage in built(recipe(tune={"lr": search}))}
    assert "tune.lr" in stages["distil.bam_top1"].inputs
    assert "tune.lr" not in stages["distil.bam_shared"].inputs


def test_data_that_follow_the_losses_are_compared_with_the_same_models() -> None:
    stages = {s.name: s for s in built(recipe(distil__bam_top1__data={"adaptive": {"eval_tokens": 64}}))}
    assert stages["distil.bam_top1"].inputs["reference.code"] == "expert.code"
    assert "reference.code" not in stages["distil.bam_shared"].inputs


def test_several_seeds_distil_each_their_own() -> None:
    stages = {stage.name: stage for stage in built(recipe(seeds=[0, 1]))}
    assert stages["distil.bam_top1.s1"].inputs["teacher"] == "train.bam.s1"


def test_the_recipe_says_itself_again() -> None:
    made = recipe()
    assert made.to_json()["distil"]["bam_top1"]["from"] == "bam"
    assert recipe_from(made.to_json(), "again") == made


MISTAKES = {
    "unknown source": ({"distil.bam_top1.from": "bm"}, "distil.bam_top1.from", "is not a variant"),
    "source without attention experts": ({"distil.bam_top1.from": "btx"}, "distil.bam_top1.from", "is merged"),
    "no source": ({"distil.bam_top1.from": MISSING}, "distil.bam_top1.from", "is missing"),
    "soft target": ({"distil.bam_top1.attention": {"routing": "soft"}}, "distil.bam_top1.attention", "is soft"),
    "empty target": ({"distil.bam_top1.attention": {}}, "distil.bam_top1.attention", "no token would cost less"),
    "all experts": ({"distil.bam_top1.attention.top_k": 3}, "distil.bam_top1.attention", "is soft"),
    "too many": ({"distil.bam_top1.attention.top_k": 4}, "distil.bam_top1.attention.top_k", "at most the number"),
    "not a count": ({"distil.bam_top1.attention.top_k": "x"}, "distil.bam_top1.attention.top_k", "whole number"),
    "top_k left out": (
        {"distil.bam_top1.attention": {"routing": "top_k"}},
        "distil.bam_top1.attention.top_k",
        "is missing",
    ),
    "top_k alone": ({"distil.bam_top1.attention": {"top_k": 1}}, "distil.bam_top1.attention.top_k", "has no effect"),
    "unknown kv": ({"distil.bam_top1.attention.kv": "none"}, "distil.bam_top1.attention.kv", "must be one of"),
    "FFN gate": ({"distil.bam_top1.attention.gate": "sample_top1"}, "distil.bam_top1.attention.gate", "FFN experts"),
    "softer than the teacher": (
        {"variants.bam.attention": {"routing": "top_k", "top_k": 2}, "distil.bam_top1.attention": {"routing": "soft"}},
        "distil.bam_top1.attention.routing",
        "would cost more than bam",
    ),
    "tokens left out": ({"distil.bam_top1.tokens": MISSING}, "distil.bam_top1.tokens", "is missing"),
    "less than a batch": ({"distil.bam_top1.tokens": 32}, "distil.bam_top1.tokens", "at least one batch"),
    "lr": ({"distil.bam_top1.lr": 0}, "distil.bam_top1.lr", "positive"),
    "kl": ({"distil.bam_top1.kl": 1.5}, "distil.bam_top1.kl", "between 0 and 1"),
    "temperature": ({"distil.bam_top1.temperature": 0}, "distil.bam_top1.temperature", "positive"),
    "gate": ({"distil.bam_top1.gate": -1}, "distil.bam_top1.gate", "0 or more"),
    "data": ({"distil.bam_top1.data": {"low": 1}}, "distil.bam_top1.data.low", "is not a domain"),
    "soft start": (
        {"distil.bam_top1.attention_soft_frac": 2},
        "distil.bam_top1.attention_soft_frac",
        "between 0 and 1",
    ),
    "unknown key": ({"distil.bam_top1.teacher": "bam"}, "distil.bam_top1.teacher", "is not a known key"),
    "unknown key within": ({"distil.bam_top1.attention.topk": 1}, "distil.bam_top1.attention.topk", "not a known key"),
    "name of a variant": ({"distil.bam": TOP_1}, "distil.bam", "is the name of a variant"),
    "name": ({"distil.A B": TOP_1}, "distil.'A B'", "a name has"),
    "a search of it": (
        {
            "tune.x": {
                "stage": "distil.bam_top1",
                "search": {"phases.mixture.lr": {"uniform": [1e-3, 1e-2]}},
                "rungs": 1,
            }
        },
        "tune.x.stage",
        "is no stage that trains",
    ),
}


@pytest.mark.parametrize(("changes", "path", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_at_its_key(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled({"distil": {"bam_top1": TOP_1}} | changes), "recipe")
    assert [problem.path for problem in raised.value.problems] == [path], raised.value
    assert words in raised.value.problems[0].expected


def test_all_mistakes_come_at_once() -> None:
    wrong = {"from": "bm", "attention": {"top_k": "x"}, "kl": 7}
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled({"distil": {"one": wrong, "two": TOP_1 | {"lr": -1}}}), "recipe")
    assert {problem.path for problem in raised.value.problems} == {
        *("distil.one.from", "distil.one.attention.top_k", "distil.one.kl", "distil.one.tokens", "distil.two.lr")
    }


def test_the_shipped_recipe_shares_the_quickstarts_models() -> None:
    sparse, plain = load_recipe("quickstart_sparse"), load_recipe("quickstart")
    digests = dict.fromkeys([*plain.texts], "text")
    found, known = (pipeline_keys(bam.build(made, digests)) for made in (sparse, plain))
    assert found["train.bam"] == known["train.bam"]
    assert {name for name in found if name.startswith("distil.")} == {f"distil.{name}" for name in sparse.distil}
