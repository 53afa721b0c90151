"""Searches of a recipe, without running them: what they read, who uses what they find, what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest
from recipes import spoiled

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from pipelines import bam
from pipelines.recipe import recipe_from
from pipelines.recipe.schema import Recipe

DIGESTS = {domain: domain * 8 for domain in ("general", "code", "math")}
LR = {"phases.expert.lr": {"log_uniform": [1e-4, 1e-2]}}


def recipe(changes: dict[str, Any] | None = None, **searches: Any) -> Recipe:
    return recipe_from(spoiled({"tune": searches, **(changes or {})}), "recipe")


def built(changes: dict[str, Any] | None = None, **searches: Any) -> Pipeline:
    return bam.build(recipe(changes, **searches), DIGESTS)


def users(pipeline: Pipeline, name: str) -> dict[str, dict[str, str]]:
    """Stage -> {key: field} that it takes from the search."""
    role = f"tune.{name}"
    found = {stage.name: stage.config["tuned"][role] for stage in pipeline if role in stage.config.get("tuned", {})}
    assert found.keys() == {stage.name for stage in pipeline if role in stage.inputs} - {"report"}
    return found


def search(stage: str, **search: Any) -> dict[str, Any]:
    return {"stage": stage, "search": {key.replace("__", "."): space for key, space in search.items()}, "rungs": 2}


def test_a_search_for_experts() -> None:
    pipeline = built(lr={"stage": "expert.code", "search": LR, "trials": 4, "tokens": 320, "rungs": 2})
    names = [stage.name for stage in pipeline]
    assert names.index("seed") < names.index("tune.lr") < names.index("expert.code")
    assert len(names) == len(set(names))
    made = pipeline["tune.lr"]
    assert set(made.inputs) == {"seed", "data.code", "data.general"}
    assert made.config["domains"] == ["code"]
    assert made.config["phase"]["tokens"] == 320
    assert made.resources.trains
    expert = {"phases.expert.lr": "lr"}
    assert users(pipeline, "lr") == {"expert.code": expert, "expert.math": expert}
    assert "lr" not in pipeline["expert.code"].config["phase"]
    assert "tune.lr" in pipeline["report"].inputs


@pytest.mark.parametrize(
    ("stage", "key", "fields"),
    [
        ("seed", "phases.seed.weight_decay", {"seed": "weight_decay"}),
        ("seed", "phases.seed.data.math", {"seed": "shares.math"}),
        ("expert.code", "phases.expert.data.own", {"expert.code": "shares.code", "expert.math": "shares.math"}),
        ("expert.math", "domains.math.expert.lr", {"expert.math": "lr"}),
        (
            "train.btx",
            "phases.mixture.lr",
            {"train.bam": "lr", "train.btx": "lr", "dense": "lr"},
        ),
        (
            "train.bam",
            "phases.mixture.load_balancing_coef",
            {"train.bam": "load_balancing_coef", "train.btx": "load_balancing_coef"},
        ),
        ("dense", "phases.mixture.data.code", dict.fromkeys(("train.bam", "train.btx", "dense"), "shares.code")),
    ],
)
def test_who_uses_a_key(stage: str, key: str, fields: dict[str, str]) -> None:
    pipeline = built(it={"stage": stage, "search": {key: {"uniform": [0.1, 0.2]}}, "rungs": 2})
    assert users(pipeline, "it") == {name: {key: field} for name, field in fields.items()}
    for name, field in fields.items():
        if field.startswith("shares."):
            domain = field.removeprefix("shares.")
            assert domain not in pipeline[name].config["phase"]["shares"]
            assert f"data.{domain}" in pipeline[name].inputs, "it may be given a share"


def test_what_the_recipe_says_of_searched_keys_is_in_no_config() -> None:
    own = {"phases.expert.data.own": {"uniform": [0.5, 1]}}
    pipeline = built(both={"stage": "expert.code", "search": LR | own, "rungs": 2})
    for name in ("tune.both", "expert.code"):
        assert "lr" not in pipeline[name].config["phase"]
        assert pipeline[name].config["phase"]["shares"] == {"general": 0.1}


def test_a_domains_own_value_comes_before_a_search_of_all() -> None:
    pipeline = built({"domains.math.expert": {"lr": 0.5}}, lr={"stage": "expert.code", "search": LR, "rungs": 2})
    assert set(users(pipeline, "lr")) == {"expert.code"}
    assert pipeline["expert.math"].config["phase"]["lr"] == 0.5
    both = built(
        lr={"stage": "expert.code", "search": LR, "rungs": 2},
        math=search("expert.math", domains__math__expert__lr={"choice": [0.1, 0.2]}),
    )
    assert set(users(both, "lr")) == {"expert.code"}
    assert set(users(both, "math")) == {"expert.math"}


def test_a_search_starts_from_what_those_before_it_found() -> None:
    pipeline = built(
        lr={"stage": "expert.code", "search": LR, "rungs": 2},
        decay=search("expert.code", phases__expert__weight_decay={"uniform": [0.0, 0.5]}),
    )
    assert pipeline["tune.decay"].inputs["tune.lr"] == "tune.lr"
    assert pipeline["tune.decay"].config["tuned"] == {"tune.lr": {"phases.expert.lr": "lr"}}
    assert "tune.decay" not in pipeline["tune.lr"].inputs
    assert set(pipeline["expert.math"].config["tuned"]) == {"tune.lr", "tune.decay"}


def test_a_mixtures_search_waits_for_the_mixture_and_every_variant_for_it() -> None:
    names = [s.name for s in built(lr=search("train.btx", phases__mixture__lr={"uniform": [0.1, 0.2]}))]
    assert names.index("mix.btx") < names.index("tune.lr") < names.index("train.bam")


def changed(before: Pipeline, after: Pipeline) -> set[str]:
    old, new = pipeline_keys(before), pipeline_keys(after)
    return {name for name in old | new if old.get(name) != new.get(name)}


AFTER = {"mix.bam", "mix.btx", "train.bam", "train.btx", "evaluate", "routing", "report"}
EXPERTS = {"expert.code", "expert.math"}


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({"tune.lr.trials": 5}, {"tune.lr"} | EXPERTS | AFTER),
        ({"tune.lr.search": {"phases.expert.lr": {"log_uniform": [1e-4, 2e-2]}}}, {"tune.lr"} | EXPERTS | AFTER),
        ({"seed": 1}, None),
        ({"phases.expert.lr": 0.125}, set()),  # it is searched: what the recipe says has no effect
        ({"runtime": {"max_trials": 1}}, set()),
        ({"phases.expert.weight_decay": 0.5}, {"tune.lr"} | EXPERTS | AFTER),
    ],
)
def test_keys(changes: dict[str, Any], reached: set[str] | None) -> None:
    plain = {"stage": "expert.code", "search": LR, "trials": 4, "rungs": 2}
    before, after = recipe(lr=plain), recipe_from(spoiled({"tune": {"lr": plain}, **changes}), "recipe")
    found = changed(bam.build(before, DIGESTS), bam.build(after, DIGESTS))
    assert found == reached if reached is not None else "tune.lr" in found


def test_a_recipe_without_searches_has_the_keys_that_it_had() -> None:
    assert changed(built(), bam.build(recipe_from(spoiled({}), "recipe"), DIGESTS)) == set()


def test_what_it_costs_at_most() -> None:
    made = recipe(lr={"stage": "expert.code", "search": LR, "trials": 4, "tokens": 300, "rungs": 2})
    [(name, cost)] = bam.search_costs(made).items()
    assert (name, cost["trials"], cost["train_tokens"]) == ("tune.lr", 4, 4 * 320)  # whole batches of 64
    whole = recipe(lr={"stage": "expert.code", "search": LR, "trials": 1, "rungs": 2})
    own = bam.build(whole, DIGESTS)["expert.code"].config["phase"]["tokens"]
    assert bam.search_costs(whole)["tune.lr"]["train_tokens"] == own


def problem(changes: dict[str, Any] | None = None, **given: Any) -> tuple[str, str]:
    plain: dict[str, Any] = {"stage": "expert.code", "search": LR, "rungs": 2}
    with pytest.raises(InvalidInput) as raised:
        recipe(changes, lr=plain | given)
    [found] = raised.value.problems
    return found.path, f"{found.expected} ({found.remedy})"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.d_model", "only numbers of phases"),
        ("tokenizer.vocab_size", "only numbers of phases"),
        ("seed", "only numbers of phases"),
        ("phases.expert", "only numbers of phases"),
        ("phases.expert.tokens", "more tokens always look better"),
        ("domains.code.expert.tokens", "more tokens always look better"),
        ("phases.expert.data", "one share at a time"),
        ("phases.expert.data.law", "'law' is not a domain"),
        ("phases.expert.dtype", "is not a number"),
        ("phases.expert.lrr", "is not a key of the recipe"),
        ("phases.expert.load_balancing_coef", "is not a key of the recipe"),
        ("phases.seed.lr", "has no effect on expert.code"),
        ("domains.math.expert.lr", "has no effect on expert.code"),
        ("domains.general.expert.lr", "no domain whose expert is trained"),
    ],
)
def test_a_key_that_cannot_be_searched(key: str, words: str) -> None:
    path, said = problem(search={key: {"uniform": [0.1, 0.2]}})
    assert path == f"tune.lr.search.'{key}'" if "." in key else f"tune.lr.search.{key}"
    assert words in said


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "must have one of uniform, log_uniform, choice"),
        ({"uniform": [0.1, 0.2], "choice": [1, 2]}, "must have one of"),
        ({"uniform": [0.2, 0.1]}, "lowest, highest"),
        ({"uniform": [-0.1, 0.1]}, "must be a positive number"),
        ({"log_uniform": [0, 0.1]}, "above 0"),
        ({"uniform": ["a", 1]}, "must be a number"),
        ({"uniform": 3}, "must be a list"),
        ({"unifrom": [0.1, 0.2]}, "uniform"),
    ],
)
def test_a_range_that_cannot_be_meant(space: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        recipe(lr={"stage": "expert.code", "search": {"phases.expert.lr": space}, "rungs": 2})
    assert words in str(raised.value)
    assert all(found.path.startswith("tune.lr.search") for found in raised.value.problems)


@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        ({"stage": "expert.general"}, "tune.lr.stage", "is no stage that trains"),
        ({"stage": "mix.bam"}, "tune.lr.stage", "is no stage that trains"),
        ({"search": {}}, "tune.lr.search", "at least one key"),
        ({"trials": 0}, "tune.lr.trials", "at least 1"),
        ({"reduction": 1}, "tune.lr.reduction", "at least 2"),
        ({"rungs": 4}, "tune.lr.rungs", "do not fit in the 10 steps"),
        ({"tokens": 64}, "tune.lr.rungs", "do not fit in the 1 steps"),
        ({"domains": []}, "tune.lr.domains", "at least one"),
        ({"domains": ["mathe"]}, "tune.lr.domains", "did you mean 'math'?"),
        ({"eval_tokens": 3}, "tune.lr.eval_tokens", "at least one row, 32 tokens"),
    ],
)
def test_a_search_that_cannot_be_meant(given: dict[str, Any], path: str, words: str) -> None:
    where, said = problem(**given)
    assert where == path
    assert words in said


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"uniform": [32, 64]}, "would give fractions"),
        ({"choice": [32, 48]}, "multiple of the sequence length"),
        ({"choice": [32, 64.5]}, "whole number"),
        ({"choice": [32, 64]}, "cannot be split over 2 workers"),
    ],
)
def test_batches(space: dict[str, Any], words: str) -> None:
    runtime = {"runtime": {"expert": {"workers": 2}}}
    with pytest.raises(InvalidInput, match=words):
        recipe(runtime, b={"stage": "expert.code", "search": {"phases.expert.batch_tokens": space}, "rungs": 1})


def test_shares_that_could_all_be_zero() -> None:
    own = {"phases.expert.data.own": {"uniform": [0, 1]}}
    recipe(lr={"stage": "expert.code", "search": own, "rungs": 2})  # general keeps 0.1
    path, said = problem(search=own | {"phases.expert.data.general": {"uniform": [0.1, 1]}})
    assert path == "tune.lr.search.'phases.expert.data.own'.uniform"
    assert "above 0" in said


def test_a_key_is_searched_once() -> None:
    plain = {"stage": "expert.code", "search": LR, "rungs": 2}
    with pytest.raises(InvalidInput, match=r"is searched by tune\.one already"):
        recipe(one=plain, two=plain | {"stage": "expert.math"})


def test_names() -> None:
    with pytest.raises(InvalidInput, match="a name has 1 to 64"):
        recipe(**{"Two Words": {"stage": "expert.code", "search": LR, "rungs": 2}})
