"""`promote` of a recipe: what it may say, what it asks, and that it is in no key."""

from __future__ import annotations

from typing import Any

import pytest
from recipes import GOOD, spoiled

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from pipelines import bam
from pipelines.recipe import json_schema, recipe_from
from pipelines.recipe.promotion import (
    NotJudged,
    Promote,
    default_model_name,
    judge,
    model_name_fault,
    rule_of_run,
)
from pipelines.recipe.promotion_checks import scored_models

RULE: dict[str, Any] = {
    "require": {
        "average_perplexity": {"below": "btx"},
        "perplexity.code": {"at_most": 12.5, "below": "dense"},
        "params_active": {"at_most": "500M"},
    }
}


def with_rule(promote: Any, **changes: Any) -> Any:
    return recipe_from(spoiled({"promote": promote, **changes}), "here")


def problems(promote: Any, **changes: Any) -> list[str]:
    with pytest.raises(InvalidInput) as wrong:
        with_rule(promote, **changes)
    return [str(problem) for problem in wrong.value.problems]


def scores(**averages: float) -> dict[str, Any]:
    return {
        name.replace("_", "."): {
            "average_perplexity": average,
            "params_active": 1000,
            "domains": {"code": {"perplexity": average + 1}},
        }
        for name, average in averages.items()
    }


def verdicts(bounds: dict[str, Any], models: dict[str, Any], role: str = "train.bam") -> list[tuple[bool, str]]:
    require = Promote.model_validate({"require": bounds}).require
    return [(verdict.holds, verdict.words) for verdict in judge(require, models, role)]


def test_a_rule_is_read() -> None:
    require = with_rule(RULE).promote.require
    assert require["average_perplexity"].asked() == {"below": "btx"}
    assert require["perplexity.code"].asked() == {"below": "dense", "at_most": 12.5}
    assert require["params_active"].asked() == {"at_most": 500e6}


def test_a_rule_is_in_no_key() -> None:
    digests = dict.fromkeys(GOOD["domains"], "text")
    plain = recipe_from(spoiled({}), "here")
    assert pipeline_keys(bam.build(with_rule(RULE), digests)) == pipeline_keys(bam.build(plain, digests))


def test_what_may_be_compared_with_is_what_is_evaluated() -> None:
    """The recipe cannot ask the pipeline, so it has a list of its own."""
    recipe = with_rule(RULE)
    stage = bam.build(recipe, dict.fromkeys(GOOD["domains"], "text"))["evaluate"]
    assert set(scored_models(recipe)) == {*stage.config["models"], "ensemble"}


def test_a_recipe_without_one_says_nothing_of_it() -> None:
    assert "promote" not in recipe_from(spoiled({}), "here").model_dump(mode="json", exclude_none=True)


def test_what_a_run_has_on_record_is_the_rule() -> None:
    kept = with_rule(RULE | {"model": "best"}).model_dump(mode="json", exclude_none=True)["promote"]
    assert rule_of_run(kept) == with_rule(RULE | {"model": "best"}).promote


@pytest.mark.parametrize(
    ("promote", "expected"),
    [
        (
            {"require": {"average_perplexity": {"below": "btxx"}}},
            "promote.require.average_perplexity.below: 'btxx': is neither a variant nor a model that is evaluated "
            "(did you mean 'btx'?)",
        ),
        (
            {"require": {"avg_perplexity": {"below": "btx"}}},
            "promote.require.avg_perplexity: 'avg_perplexity': is no figure of an evaluation "
            "(did you mean 'average_perplexity'?)",
        ),
        (
            {"require": {"perplexity.cod": {"below": "btx"}}},
            "promote.require.'perplexity.cod': 'perplexity.cod': is no figure of an evaluation "
            "(did you mean 'perplexity.code'?)",
        ),
        (
            {"require": {"params_total": {"bellow": 3}}},
            "promote.require.params_total.bellow: 3: is not a known key (did you mean 'below'?)",
        ),
        (
            {"require": {"params_total": {}}},
            "promote.require.params_total: {}: must say one of below, above, at_most, at_least "
            "(for example {below: btx})",
        ),
        (
            {"require": {"params_total": {"below": None}}},
            "promote.require.params_total.below: None: must be a number, or the name of a variant or of a stage",
        ),
        (
            {"require": {"params_total": {"below": True}}},
            "promote.require.params_total.below: True: must be a number, or the name of a variant or of a stage",
        ),
        (
            {"require": {"params_total": {"below": float("nan")}}},
            "promote.require.params_total.below: nan: must be a finite number",
        ),
        ({"require": {"params_total": 3}}, "promote.require.params_total: 3: must be a mapping of keys"),
        ({"require": "btx"}, "promote.require: 'btx': must be a mapping of keys"),
        ("btx", "promote: 'btx': must be a mapping of keys"),
        ({"requires": {}}, "promote.requires: {}: is not a known key (did you mean 'require'?)"),
        (
            {"model": "team/best"},
            "promote.model: 'team/best': must have no '/' and no ':' (MLflow's registry refuses them)",
        ),
    ],
)
def test_a_mistake_is_named_once_and_alone(promote: Any, expected: str) -> None:
    assert problems(promote) == [expected]


def test_a_baseline_that_is_not_trained_cannot_be_compared_with() -> None:
    for name, switch in {"dense": "dense", "ensemble": "ensemble"}.items():
        rule = {"require": {"average_perplexity": {"below": name}}}
        assert with_rule(rule).promote
        assert len(problems(rule, **{switch: False})) == 1


def test_a_mistake_elsewhere_does_not_hide_one_here() -> None:
    rule = {"require": {"average_perplexity": {"below": "btxx"}, "params_total": {"above": []}}}
    found = problems(rule, **{"model.d_model": "wide"})
    assert [line.split(":")[0] for line in found] == [
        "model.d_model",
        "promote.require.params_total.above",
        "promote.require.average_perplexity.below",
    ]


def test_each_bound_is_what_it_says() -> None:
    models = scores(train_bam=8.0, train_btx=9.0, dense=8.0)
    held = {
        (name, level): verdicts({"average_perplexity": {name: level}}, models)[0][0]
        for name in ("below", "above", "at_most", "at_least")
        for level in ("btx", "dense", 7.5)
    }
    assert {place for place, holds in held.items() if holds} == {
        ("below", "btx"),
        ("at_most", "btx"),
        ("at_most", "dense"),
        ("at_least", "dense"),
        ("above", 7.5),
        ("at_least", 7.5),
    }


def test_the_words_hold_both_numbers() -> None:
    models = scores(train_bam=8.25, train_btx=9.5, seed=8.25 + 1e-9)
    asked = {"average_perplexity": {"below": "btx", "above": "seed"}, "perplexity.code": {"at_most": 9}}
    assert verdicts(asked, models) == [
        (True, "average_perplexity 8.25 is below train.btx's 9.5"),
        (False, "average_perplexity 8.25 is not above seed's 8.250000001"),
        (False, "perplexity.code 9.25 is not at most 9"),
    ]


def test_a_model_is_not_better_than_itself() -> None:
    models = scores(train_btx=9.0)
    assert verdicts({"average_perplexity": {"below": "btx"}}, models, "train.btx") == [
        (False, "average_perplexity 9 is not below its own 9")
    ]


def test_a_stage_comes_before_a_variant_of_its_name() -> None:
    models = scores(train_bam=8.0, dense=9.0) | {"train.dense": scores(x=1.0)["x"]}
    assert verdicts({"average_perplexity": {"below": "dense"}}, models)[0][0]
    assert not verdicts({"average_perplexity": {"below": "train.dense"}}, models)[0][0]


@pytest.mark.parametrize(
    ("bounds", "models", "why"),
    [
        ({"average_perplexity": {"below": "gone"}}, scores(train_bam=8.0), "did not score 'gone'; it scored train.bam"),
        ({"perplexity.law": {"below": 9}}, scores(train_bam=8.0), "no such figure of train.bam"),
        ({"params_total": {"above": 9}}, scores(train_bam=8.0), "no such figure of train.bam"),
        ({"average_perplexity": {"below": 9}}, scores(train_bam=float("nan")), "that of train.bam is nan"),
        ({"average_perplexity": {"above": 9}}, scores(train_bam=float("inf")), "that of train.bam is inf"),
        ({"average_perplexity": {"below": "x"}}, scores(train_bam=8.0) | {"x": None}, "no such figure of x"),
        ({"average_perplexity": {"below": 9}}, {"train.bam": {"average_perplexity": "1"}}, "no such figure"),
        ({"average_perplexity": {"below": 9}}, {"train.bam": {"average_perplexity": True}}, "no such figure"),
    ],
)
def test_what_cannot_be_judged_does_not_hold(bounds: Any, models: Any, why: str) -> None:
    ((holds, words),) = verdicts(bounds, models)
    assert not holds
    assert "cannot be judged" in words
    assert why in words


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"require": []},
        {"require": {"average_perplexity": {"under": "btx"}}},
        {"require": {"average_perplexity": {}}},
        {"require": {"average_perplexity": {"below": [1]}}},
        {"demand": {}},
    ],
)
def test_a_rule_of_another_version_is_not_taken_for_none(content: Any) -> None:
    with pytest.raises(NotJudged, match="none that this version of bam knows"):
        rule_of_run(content)


def test_names_of_registered_models() -> None:
    assert default_model_name("tiny", "train.bam") == "tiny-bam"
    assert default_model_name("tiny", "expert.law") == "tiny-expert-law"
    assert default_model_name(None, "seed") == "seed"
    fine = ["a", "a b", 'it\'s "<b>x" & é', "x" * 256, ".x", "a..b", "#?%"]
    assert {name: model_name_fault(name) for name in fine} == dict.fromkeys(fine)
    wrong = ["", " ", "a/b", "a:b", "x" * 257, "a\nb", "a\0", " a", "a ", ".", "..", "..a", "\ud800"]
    assert [name for name in wrong if model_name_fault(name) is None] == []


def test_editors_are_told() -> None:
    bound = json_schema()["$defs"]["Bound"]
    assert set(bound["properties"]) == {"below", "above", "at_most", "at_least"}
    assert bound["additionalProperties"] is False
