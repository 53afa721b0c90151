"""`data` that changes: what it means to the core, what is refused, who reads what, what can be searched."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from recipes import spoiled

from bam_core.config import Adaptive, Anneal
from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from bam_core.train.search import with_values
from pipelines import bam
from pipelines.recipe import recipe_from
from pipelines.recipe.schema import Recipe

DIGESTS = {domain: domain * 8 for domain in ("general", "code", "math")}
THIRDS = dict.fromkeys(DIGESTS, 1 / 3)
PLAN = {"start": "uniform", "end": {"code": 0.5, "math": 0.5}, "shape": "cosine", "from": 0.25}
RULE: dict[str, Any] = {"adaptive": {"every": 2, "rate": 0.5, "floor": 0.1, "eval_tokens": 64}}


def recipe(changes: dict[str, Any]) -> Recipe:
    return recipe_from(deepcopy(spoiled(changes)), "here")


def built(changes: dict[str, Any]) -> Pipeline:
    return bam.build(recipe(changes), DIGESTS)


def test_a_plan() -> None:
    phase = recipe({"phases.mixture.data": PLAN}).mixture_training()
    assert phase.shares == THIRDS
    assert phase.anneal == Anneal({"code": 0.5, "math": 0.5}, "cosine", 0.25, 1.0)
    assert phase.identity()["anneal"] == {"end": {"code": 0.5, "math": 0.5}, "shape": "cosine", "begin": 0.25}


def test_own_of_an_experts_plan() -> None:
    data = {"start": {"own": 1}, "end": {"own": 0.5, "code": 0.25, "general": 0.25}}
    made = recipe({"phases.expert.data": data})
    code, maths = made.expert_training("code"), made.expert_training("math")
    assert (code.shares, code.anneal) == ({"code": 1.0}, Anneal({"code": 0.75, "general": 0.25}))
    assert maths.domains == ("code", "general", "math")
    assert set(built({"phases.expert.data": data})["expert.math"].inputs) == {
        "seed", "data.code", "data.general", "data.math",
    }  # fmt: skip


def test_a_rule() -> None:
    phase = recipe({"phases.mixture.data": RULE}).mixture_training()
    assert phase.shares == THIRDS
    assert phase.adaptive == Adaptive(every=2, rate=0.5, floor=0.1, eval_tokens=64)
    start = {"adaptive": {"start": {"code": 0.25, "math": 0.75}, "rule": "loss_slope"}}
    phase = recipe({"phases.mixture.data": start}).mixture_training()
    assert phase.domains == ("code", "math")
    assert phase.adaptive == Adaptive("loss_slope", reference="none")


def test_a_domain_may_have_the_name_of_a_key() -> None:
    names = {f"domains.{name}": {"source": {"kind": "python-docs"}} for name in ("start", "end", "adaptive")}
    data = {"start": 0.5, "end": 0.25, "adaptive": 0.25}
    assert recipe(names | {"phases.mixture.data": data}).mixture_training().shares == data


def test_it_travels_as_it_was_said() -> None:
    for data in (PLAN, RULE):
        made = recipe({"phases.mixture.data": data})
        again = recipe_from(made.to_json(), "again")
        assert again == made
        assert bam.build(again, DIGESTS) == bam.build(made, DIGESTS)


MODELS = {"reference.general": "seed", "reference.code": "expert.code", "reference.math": "expert.math"}


@pytest.mark.parametrize(
    ("rule", "models"),
    [
        ({}, MODELS),
        ({"reference": "seed"}, dict.fromkeys(MODELS, "seed")),
        ({"reference": "none"}, {}),
        ({"rule": "loss_slope"}, {}),
        (
            {"start": {"code": 0.5, "general": 0.5}},
            {role: MODELS[role] for role in ("reference.general", "reference.code")},
        ),
    ],
)
def test_the_models_that_losses_are_compared_with(rule: dict[str, Any], models: dict[str, str]) -> None:
    search = {"stage": "train.bam", "search": {"phases.mixture.lr": {"uniform": [0.1, 0.2]}}, "rungs": 2}
    pipeline = built({"phases.mixture.data": {"adaptive": rule}, "tune": {"lr": search}})
    for name in ("train.bam", "train.btx", "dense", "tune.lr"):
        inputs = pipeline[name].inputs
        assert {role: stage for role, stage in inputs.items() if role.startswith("reference.")} == models
    order = [stage.name for stage in pipeline]
    assert all(order.index(stage) < order.index("tune.lr") for stage in models.values())
    assert not any(role.startswith("reference.") for role in pipeline["evaluate"].inputs)


def test_only_a_training_whose_data_changes_has_another_key() -> None:
    before, after = built({}), built({"variants.bam.train": {"data": RULE}})
    old, new = pipeline_keys(before), pipeline_keys(after)
    changed = {name for name in old if old[name] != new[name]}
    assert "train.bam" in changed
    assert not changed & {"seed", "expert.code", "mix.bam", "train.btx", "dense"}
    assert "reference.code" in after["train.bam"].inputs
    assert "reference.code" not in after["train.btx"].inputs


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        (PLAN | {"until": 0.25}, "until", "above where the change begins, 0.25"),
        (PLAN | {"from": -0.1}, "from", "between 0 and 1"),
        (PLAN | {"begin": 0.1}, "begin", "not a known key"),
        (PLAN | {"frm": 0.1}, "frm", "did you mean 'from'?"),
        (PLAN | {"shape": "cosin"}, "shape", "did you mean 'cosine'?"),
        (PLAN | {"start": {"code": 0.5}}, "start", "sum to 0.5"),
        (PLAN | {"end": {"code": 0.5, "maths": 0.5}}, "end.maths", "did you mean 'math'?"),
        (PLAN | {"end": {"own": 1}}, "end.own", "only phases.expert"),
        (PLAN | {"end": {"code": "half"}}, "end.code", "must be a number"),
        ({"start": "uniform"}, "end", "is missing"),
        (PLAN | {"start": "unifrm"}, "start", "did you mean 'uniform'?"),
        ({"adaptive": {"floor": 0.4}}, "adaptive.floor", "at most 0.3333: 3 domains"),
        ({"adaptive": {"floor": 0.5, "start": {"code": 0.5, "math": 0.5}}}, None, ""),
        ({"adaptive": {"floor": -0.1}}, "adaptive.floor", "between 0 and 1"),
        ({"adaptive": {"rate": -1}}, "adaptive.rate", "0 or more"),
        ({"adaptive": {"rate": "fast"}}, "adaptive.rate", "must be a number"),
        ({"adaptive": {"every": 0}}, "adaptive.every", "above 0"),
        ({"adaptive": {"every": 2.5}}, "adaptive.every", "whole steps"),
        ({"adaptive": {"eval_tokens": 31}}, "adaptive.eval_tokens", "at least one row, 32 tokens"),
        ({"adaptive": {"rule": "exces_loss"}}, "adaptive.rule", "did you mean 'excess_loss'?"),
        ({"adaptive": {"reference": "expert"}}, "adaptive.reference", "one of specialists, seed, none"),
        ({"adaptive": {"start": {"code": 1, "math": 0}}}, "adaptive.start.math", "above 0"),
        ({"adaptive": {"start": {"code": 0.5, "mth": 0.5}}}, "adaptive.start.mth", "did you mean 'math'?"),
        ({"adaptive": {"rates": 1}}, "adaptive.rates", "did you mean 'rate'?"),
        ({"adaptive": "yes"}, "adaptive", "mapping"),
    ],
)
@pytest.mark.parametrize("place", ["phases.mixture", "variants.bam.train"])
def test_what_cannot_be_meant(place: str, data: dict[str, Any], path: str | None, words: str) -> None:
    if path is None:
        recipe({f"{place}.data": data})
        return
    with pytest.raises(InvalidInput) as raised:
        recipe({f"{place}.data": data})
    [problem] = raised.value.problems
    assert problem.path == f"{place}.data.{path}"
    assert words in f"{problem.expected} ({problem.remedy})"


@pytest.mark.parametrize("phase", ["seed", "expert"])
def test_only_mixtures_follow_the_losses(phase: str) -> None:
    with pytest.raises(
        InvalidInput, match=rf"phases.{phase}.data.adaptive: .* only the shares of phases.mixture follow"
    ):
        recipe({f"phases.{phase}.data": RULE})


def searched(data: Any, key: str, space: dict[str, Any], **more: Any) -> Pipeline:
    search = {"stage": "train.bam", "search": {f"phases.mixture.data.{key}": space, **more}, "rungs": 2, "trials": 2}
    return built({"phases.mixture.data": data, "tune": {"it": search}})


@pytest.mark.parametrize(
    ("data", "key", "field"),
    [
        (RULE, "adaptive.rate", "adaptive.rate"),
        (RULE, "adaptive.floor", "adaptive.floor"),
        (RULE, "adaptive.start.code", "shares.code"),
        (PLAN, "start.code", "shares.code"),
        (PLAN, "end.general", "anneal.end.general"),
        (PLAN, "from", "anneal.begin"),
        (PLAN, "until", "anneal.until"),
    ],
)
def test_what_can_be_searched(data: Any, key: str, field: str) -> None:
    pipeline = searched(data, key, {"uniform": [0.26, 0.3]})
    for name in ("train.bam", "dense"):
        assert pipeline[name].config["tuned"] == {"tune.it": {f"phases.mixture.data.{key}": field}}
        phase = pipeline[name].config["phase"]
        group, _, last = field.rpartition(".")
        left = phase["anneal"]["end"] if group == "anneal.end" else phase[group]
        assert last not in left, "what the recipe says of it is in no key"
        made = with_values(phase, {field: 0.28})
        assert recipe({}).mixture_training().from_json(made).identity()
        found = made["anneal"]["end"] if group == "anneal.end" else made[group]
        assert (sum(found.values()) == pytest.approx(1)) if group in ("shares", "anneal.end") else found[last] == 0.28
    assert set(pipeline["train.bam"].inputs) >= {"data.general", "data.code", "data.math"}


def test_values_of_a_plan() -> None:
    phase = {"tokens": 10, "shares": {"a": 1.0}, "anneal": {"end": {"a": 0.5}}, "adaptive": {}}
    made = with_values(phase, {"anneal.end.b": 1.5, "anneal.until": 0.5, "adaptive.rate": 2.0})
    assert made["anneal"] == {"end": {"a": 0.25, "b": 0.75}, "until": 0.5}
    assert (made["shares"], made["adaptive"]) == ({"a": 1.0}, {"rate": 2.0})
    assert phase["anneal"] == {"end": {"a": 0.5}}


@pytest.mark.parametrize(
    ("data", "key", "space", "words"),
    [
        (RULE, "adaptive.floor", {"uniform": [0.1, 0.5]}, "at most 0.3333: 3 domains"),
        (RULE, "adaptive.rate", {"uniform": [-1, 1]}, "0 or more"),
        (RULE, "adaptive.start.code", {"uniform": [0, 1]}, "above 0"),
        (RULE, "adaptive.start.law", {"uniform": [0.1, 1]}, "'law' is not a domain"),
        (RULE, "adaptive.eval_tokens", {"choice": [64, 128]}, "is none of"),
        (RULE, "code", {"uniform": [0.1, 1]}, "'code' is none of adaptive.rate"),
        (PLAN, "code", {"uniform": [0.1, 1]}, "start.DOMAIN"),
        (PLAN, "adaptive.rate", {"uniform": [0.1, 1]}, "is none of from, until"),
        (PLAN, "until", {"uniform": [0.2, 1]}, "above where the change begins, 0.25"),
        (PLAN, "from", {"uniform": [0.2, 1]}, "above where the change begins"),
        ("uniform", "adaptive.rate", {"uniform": [0.1, 1]}, "is not a key of the recipe"),
    ],
)
def test_what_cannot_be_searched(data: Any, key: str, space: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        searched(data, key, space)
    assert any(words in f"{problem.expected} ({problem.remedy})" for problem in raised.value.problems), raised.value


def test_a_range_against_the_range_of_the_other_end() -> None:
    until = {"phases.mixture.data.until": {"uniform": [0.5, 1]}}
    searched(PLAN, "from", {"uniform": [0.2, 0.4]}, **until)
    with pytest.raises(InvalidInput, match="above where the change begins"):
        searched(PLAN, "from", {"uniform": [0.2, 0.6]}, **until)


def test_in_words() -> None:
    made = recipe({"phases.mixture.data": PLAN, "variants.bam.train": {"data": RULE}})
    assert bam.changing_data(made) == {
        "train.bam": "from uniform, every 2 steps by the loss above that of its own model on 64 tokens of each domain"
        " (rate 0.5, each at least 0.1)",
        "train.btx": "from uniform to code 0.5, math 0.5 along a cosine between 0.25 and 1 of the steps",
        "dense": "from uniform to code 0.5, math 0.5 along a cosine between 0.25 and 1 of the steps",
    }
    assert bam.changing_data(recipe({})) == {}
