"""What a variant does differently in training, whom it is made equal to, and `like`: one that starts from another."""

from __future__ import annotations

from copy import deepcopy
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.config import TrainConfig
from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from bam_core.nn.costs import training_flops
from pipelines import bam
from pipelines.matching import mixture_phases
from pipelines.recipe import Recipe, load_recipe, recipe_from
from pipelines.recipe.overrides import DenseTrain, VariantTrain
from pipelines.recipe.phases import MixturePhase
from pipelines.recipe.tuning import FOR_ROUTERS, tuned_fields
from tests.recipe.recipes import GOOD, spoiled

DIGESTS = dict.fromkeys(GOOD["domains"], "text")
TOKENS = 640_000
"""Of `phases.mixture` here: 10,000 batches, so that rounding to whole batches is small."""
PACES = {"bam": 1.9e-4, "btx": 1e-4, "dense": 7e-5}


def recipe(**changes: Any) -> Recipe:
    """GOOD with more tokens. A key's dots are written `__`."""
    dotted = {path.replace("__", "."): value for path, value in changes.items()}
    return recipe_from(spoiled({"phases.mixture.tokens": TOKENS} | dotted), "recipe")


def phases(**changes: Any) -> dict[str, TrainConfig]:
    made = recipe(**changes)
    return mixture_phases(made, bam.model_configs(made))


def flops(made: Recipe) -> dict[str, int]:
    models = bam.model_configs(made)
    return {
        stage: training_flops(models[stage], phase.tokens, phase.seq_len)
        for stage, phase in mixture_phases(made, models).items()
    }


def built(made: Recipe) -> Pipeline:
    return bam.build(made, DIGESTS)


def keys(**changes: Any) -> dict[str, str]:
    return pipeline_keys(built(recipe(**changes)))


# Its own keys


OWN = {
    **{"tokens": 128_000, "lr": 0.5, "warmup_frac": 0.25, "min_lr_frac": 0.5, "weight_decay": 0.0, "grad_clip": 2.0},
    **{"load_balancing_coef": 0.5, "z_loss_coef": 0.5, "balance_rate": 0.5, "router_bias_frac": 0.25},
    **{"gumbel_rate": 0.5, "gumbel_min": 0.25},
}


def test_a_variant_has_every_key_of_the_phase_but_those_of_all() -> None:
    of_all = {"batch_tokens", "dtype", "seconds_per_token"}
    assert set(VariantTrain.model_fields) == set(MixturePhase.model_fields) - of_all
    assert set(DenseTrain.model_fields) == set(VariantTrain.model_fields) - FOR_ROUTERS


def test_a_variant_trains_by_its_own_keys_and_the_others_as_before() -> None:
    plain, found = phases(), phases(variants__bam__train=OWN | {"data": {"code": 1}})
    own = found["train.bam"].to_json()
    assert {name: own[name] for name in OWN} == OWN
    assert own["shares"] == {"code": 1.0}
    assert own | {name: plain["train.bam"].to_json()[name] for name in [*OWN, "shares"]} == plain["train.bam"].to_json()
    assert {stage: found[stage] for stage in ("train.btx", "dense")} == {
        stage: plain[stage] for stage in ("train.btx", "dense")
    }
    assert list(built(recipe(variants__bam__train={"data": {"code": 1}}))["train.bam"].inputs) == ["mix", "data.code"]


def test_the_baseline_may_have_keys_of_its_own() -> None:
    found = phases(dense={"tokens": 128_000, "lr": 0.5})
    assert (found["dense"].tokens, found["dense"].lr) == (128_000, 0.5)
    assert found["train.bam"] == phases()["train.bam"]
    assert phases(dense={}) == phases(dense=True)
    assert "dense" not in phases(dense=False)


def test_only_its_own_stages_get_another_key() -> None:
    plain = keys()
    for place, own in (("variants__bam__train", "train.bam"), ("dense", "dense")):
        found = keys(**{place: {"lr": 0.5}})
        changed = {name for name in plain if plain[name] != found[name]}
        assert own in changed
        assert not changed & ({"seed", "expert.code", "mix.bam", "train.btx"} | ({"train.bam", "dense"} - {own}))


def test_what_is_written_as_it_is_anyway_changes_no_key() -> None:
    assert keys(variants__bam__train={"lr": GOOD["phases"]["mixture"]["lr"]}, dense={"tokens": TOKENS}) == keys()
    assert keys(variants__bam__train={"match": "data"}) == keys()


# Made equal


def test_a_variant_gets_the_flops_of_another() -> None:
    spent = flops(recipe(variants__bam__train={"match": "compute", "match_to": "btx"}))
    found = phases(variants__bam__train={"match": "compute", "match_to": "btx"})
    assert found["train.btx"] == phases()["train.btx"]
    one_batch = spent["train.bam"] / found["train.bam"].n_steps
    assert spent["train.btx"] - one_batch < spent["train.bam"] <= spent["train.btx"]


def test_the_cheapest_is_whom_all_are_equal_to_by_default() -> None:
    by_name = phases(phases__mixture__match="compute", phases__mixture__match_to="btx")
    assert by_name == phases(phases__mixture__match="compute")
    assert phases(phases__mixture__match="compute")["train.btx"].tokens == TOKENS


def test_a_dearer_one_gives_the_others_more() -> None:
    found = phases(phases__mixture__match="compute", phases__mixture__match_to="bam")
    assert found["train.bam"].tokens == TOKENS
    assert found["train.btx"].tokens > TOKENS


def test_equal_to_the_baseline() -> None:
    found = phases(variants__bam__train={"match": "compute", "match_to": "dense"}, dense={"tokens": 128_000})
    models = bam.model_configs(recipe())
    budget = training_flops(models["dense"], 128_000, 32)
    spent = training_flops(models["train.bam"], found["train.bam"].tokens, 32)
    assert budget * 0.99 < spent <= budget


def test_equal_to_one_that_has_tokens_of_its_own_or_is_equal_to_a_third() -> None:
    third = {"attention": {"kv": "shared"}, "ffn": {}, "train": {"match": "compute", "match_to": "bam"}}
    bam_to_btx = {"match": "compute", "match_to": "btx"}
    made = recipe(variants__third=third, variants__bam__train=bam_to_btx, variants__btx__train={"tokens": 64_000})
    spent = flops(made)
    assert spent["train.btx"] < flops(recipe())["train.btx"] / 9
    assert 0.99 * spent["train.btx"] < spent["train.third"] <= spent["train.bam"] <= spent["train.btx"]


def test_equal_seconds_by_the_paces_in_the_recipe() -> None:
    found = phases(
        phases__mixture__seconds_per_token=PACES, variants__bam__train={"match": "seconds", "match_to": "btx"}
    )
    assert found["train.btx"].tokens == TOKENS
    assert found["train.bam"].tokens == 5263 * 64  # 10,000 steps * 1 / 1.9
    all_of_them = phases(phases__mixture__match="seconds", phases__mixture__seconds_per_token=PACES)
    assert all_of_them["train.btx"].tokens == TOKENS, "the fastest variant; the baseline is none"
    assert all_of_them["dense"].tokens == 14285 * 64
    without = recipe(phases__mixture__seconds_per_token=PACES)
    assert pipeline_keys(built(without)) == keys(), "what is not used is in no key"


@given(pace=st.floats(1e-6, 1e3), other=st.floats(1e-6, 1e3), steps=st.integers(1, 10**4))
def test_seconds_are_never_more_and_less_than_a_batch_fewer(pace: float, other: float, steps: int) -> None:
    made = recipe(
        phases__mixture__tokens=64 * steps,
        phases__mixture__seconds_per_token={"bam": pace, "btx": other},
        variants__bam__train={"match": "seconds", "match_to": "btx"},
        variants__btx__train={"match": "seconds", "match_to": "btx"},
    )
    found = mixture_phases(made, bam.model_configs(made))
    assert found["train.btx"].n_steps == steps
    own, budget = Fraction(repr(pace)), Fraction(repr(other)) * steps
    assert found["train.bam"].n_steps == max(1, int(budget / own))


# Like another


CM = {"like": "bam", "train": {"match": "compute", "match_to": "btx"}}


def test_a_variant_like_another_has_its_mixture() -> None:
    pipeline = built(recipe(variants__bam_cm=CM))
    assert "mix.bam_cm" not in pipeline
    assert pipeline["train.bam_cm"].inputs["mix"] == "mix.bam"
    assert pipeline["train.bam_cm"].config["variant"] == "bam_cm"
    assert pipeline["train.bam_cm"].config["phase"] != pipeline["train.bam"].config["phase"]
    assert pipeline["evaluate"].config["models"].count("mix.bam") == 1
    plain = keys()
    assert {name: pipeline_keys(pipeline)[name] for name in ("mix.bam", "train.bam", "train.btx", "dense")} == {
        name: plain[name] for name in ("mix.bam", "train.bam", "train.btx", "dense")
    }


def test_a_variant_that_is_written_out_is_the_same() -> None:
    written = deepcopy(GOOD["variants"]["bam"]) | {"train": CM["train"]}
    assert keys(variants__bam_cm=CM) == keys(variants__bam_cm=written)


def test_a_search_on_a_shared_mixture() -> None:
    pipeline = built(
        recipe(
            variants__bam_cm=CM,
            tune={"lr": {"stage": "train.bam_cm", "search": {"phases.mixture.lr": {"uniform": [0.1, 0.2]}}}},
        )
    )
    assert pipeline["tune.lr"].inputs["mix"] == "mix.bam"


def test_what_is_said_is_laid_over_what_the_other_says() -> None:
    found = recipe(
        variants__bam__train={"lr": 0.25, "data": {"general": 0.5, "code": 0.5}},
        variants__one={"like": "bam", "ffn": {"top_k": 2}, "train": {"z_loss_coef": 0.5}},
        variants__two={"like": "one", "attention": "merged", "ffn": {"top_k": None}, "train": {"data": {"math": 1}}},
    ).variants
    one, two = found["one"], found["two"]
    assert (one.attention.kv, one.ffn.top_k, one.train.lr, one.train.z_loss_coef) == ("expert", 2, 0.25, 0.5)
    assert (two.attention, two.ffn.top_k, two.train.lr) == ("merged", 1, 0.25)
    assert two.train.data == {"math": 1.0}, "shares say one thing together"
    assert list(found) == ["bam", "btx", "one", "two"]
    assert (found["bam"].ffn.top_k, found["bam"].train.z_loss_coef) == (1, None)


def test_like_may_name_one_that_comes_later_and_be_set() -> None:
    found = recipe(variants={"a": {"like": "z", "ffn": {"top_k": 2}}, "z": GOOD["variants"]["bam"]}).variants
    assert list(found) == ["a", "z"]
    assert found["a"].ffn.top_k == 2
    sets = ["variants.cm={like: bam, train: {match: compute, match_to: btx}}", "variants.cm.train.match_to=bam"]
    assert load_recipe("quickstart", sets).variants["cm"].train.match_to == "bam"


def test_the_record_of_a_recipe_has_no_like() -> None:
    made = recipe(variants__bam_cm=CM)
    assert "like" not in made.to_json()["variants"]["bam_cm"]
    assert recipe_from(made.to_json(), "record") == made


# Searched


def test_a_variants_own_numbers_are_searched_for_it_alone() -> None:
    searches = {
        name: {"stage": stage, "search": {key: {"log_uniform": [1e-4, 1e-2]}}}
        for name, stage, key in (
            ("bam", "train.bam", "variants.bam.train.lr"),
            ("btx", "train.btx", "variants.btx.train.lr"),
            ("dense", "dense", "dense.lr"),
        )
    }
    made = recipe(tune=searches)
    pipeline = built(made)
    assert tuned_fields(made, "train.bam") == {"bam": {"variants.bam.train.lr": "lr"}}
    assert tuned_fields(made, "dense") == {"dense": {"dense.lr": "lr"}}
    assert set(pipeline["train.btx"].inputs) >= {"tune.btx"}
    assert not set(pipeline["train.btx"].inputs) & {"tune.bam", "tune.dense"}
    assert "lr" not in pipeline["train.bam"].config["phase"]
    assert len({pipeline[f"tune.{name}"].config["trials"] for name in searches}) == 1


def test_one_of_a_variant_comes_before_one_of_all() -> None:
    everyone = {"stage": "train.btx", "search": {"phases.mixture.lr": {"uniform": [0.1, 0.2]}}}
    own = {"stage": "train.bam", "search": {"variants.bam.train.lr": {"uniform": [0.1, 0.2]}}}
    made = recipe(tune={"all": everyone, "own": own})
    assert tuned_fields(made, "train.bam") == {"own": {"variants.bam.train.lr": "lr"}}
    assert tuned_fields(made, "train.btx") == {"all": {"phases.mixture.lr": "lr"}}
    fixed = recipe(tune={"all": everyone}, variants__bam__train={"lr": 0.5})
    assert tuned_fields(fixed, "train.bam") == {}, "what it says itself counts"


def test_shares_of_all_are_not_those_of_a_variant_that_has_its_own() -> None:
    search = {"stage": "train.btx", "search": {"phases.mixture.data.code": {"uniform": [0.1, 0.2]}}}
    made = recipe(tune={"shares": search}, variants__bam__train={"data": {"math": 1}})
    assert tuned_fields(made, "train.bam") == {}
    assert tuned_fields(made, "train.btx") == {"shares": {"phases.mixture.data.code": "shares.code"}}
    assert built(made)["train.bam"].config["phase"]["shares"] == {"math": 1.0}


# What is wrong


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"variants.bam.train": 3}, "variants.bam.train", "mapping of keys"),
    ({"variants.bam.train.lr": -1}, "variants.bam.train.lr", "positive"),
    ({"variants.bam.train.lr": "x"}, "variants.bam.train.lr", "number"),
    ({"variants.bam.train.tokens": 3}, "variants.bam.train.tokens", "at least one batch"),
    ({"variants.bam.train.warmup_frac": 2}, "variants.bam.train.warmup_frac", "between 0 and 1"),
    ({"variants.bam.train.batch_tokens": 64}, "variants.bam.train.batch_tokens", "is not a known key"),
    ({"variants.bam.train.rl": 1}, "variants.bam.train.rl", "known: "),
    ({"variants.bam.train.data": {"codes": 1}}, "variants.bam.train.data.codes", "did you mean 'code'?"),
    ({"variants.bam.train.data": {"code": 0.5}}, "variants.bam.train.data", "sum to 0.5"),
    ({"variants.bam.train.data": "all"}, "variants.bam.train.data", "uniform"),
    ({"variants.bam.train.match": "flops"}, "variants.bam.train.match", "one of data, compute, seconds"),
    ({"variants.bam.train.match_to": "btx"}, "variants.bam.train.match_to", "no effect with match: data"),
    (
        {"variants.bam.train": {"match": "compute", "match_to": "bxt"}},
        "variants.bam.train.match_to",
        "did you mean 'btx'?",
    ),
    (
        {"variants.bam.train": {"match": "compute", "match_to": "dense"}, "dense": False},
        "variants.bam.train.match_to",
        "neither a variant nor dense",
    ),
    ({"variants.bam.train": {"match": "compute", "tokens": 640}}, "variants.bam.train.tokens", "follows from match"),
    ({"phases.mixture.match": "compute", "dense": {"tokens": 640}}, "dense.tokens", "follows from match: compute"),
    ({"phases.mixture.match_to": "btx"}, "phases.mixture.match_to", "no effect"),
    ({"phases.mixture": GOOD["phases"]["mixture"] | {"match": "compute", "match_to": "x"}},
     "phases.mixture.match_to", "neither a variant"),
    ({"phases.mixture.match": "seconds"}, "phases.mixture.seconds_per_token", "no figure for bam, btx, dense"),
    (
        {"variants.bam.train": {"match": "seconds", "match_to": "btx"}, "phases.mixture.seconds_per_token": {"bam": 1}},
        "phases.mixture.seconds_per_token",
        "no figure for btx",
    ),
    ({"phases.mixture.seconds_per_token": {"bma": 1}}, "phases.mixture.seconds_per_token.bma", "did you mean 'bam'?"),
    ({"phases.mixture.seconds_per_token": {"bam": 0}}, "phases.mixture.seconds_per_token.bam", "above 0"),
    ({"phases.mixture.seconds_per_token": {"bam": "x"}}, "phases.mixture.seconds_per_token.bam", "number"),
    ({"dense": 3}, "dense", "true or false"),
    ({"dense": {"lr": 0}}, "dense.lr", "positive"),
    ({"dense": {"z_loss_coef": 0}}, "dense.z_loss_coef", "is not a known key"),
    ({"dense.data": {"own": 1}}, "dense.data.own", "only phases.expert"),
    ({"variants.cm": {"like": "bma"}}, "variants.cm.like", "did you mean 'bam'?"),
    ({"variants.cm": {"like": 3}}, "variants.cm.like", "name of another variant"),
    ({"variants.cm": {"like": "cm"}}, "variants.cm.like", "leads back to itself: cm -> cm"),
    ({"variants.cm": {"like": "bam", "ffn": {"top_q": 2}}}, "variants.cm.ffn.top_q", "did you mean 'top_k'?"),
    ({"variants.cm": {"like": "bam"}, "variants.bam.ffn.top_k": 9}, "variants.bam.ffn.top_k", "number of experts"),
    ({"variants.cm": {"like": "bam"}, "variants.bam": 7}, "variants.bam", "mapping"),
    ({"variants.cm": {"like": "bam", "ffn": {"top_k": 9}}}, "variants.cm.ffn.top_k", "number of experts"),
    (
        {"tune": {"a": {"stage": "train.bam", "search": {"variants.bma.train.lr": {"uniform": [1, 2]}}}}},
        "tune.a.search.'variants.bma.train.lr'",
        "'bma' is no variant",
    ),
    (
        {"tune": {"a": {"stage": "train.btx", "search": {"variants.bam.train.lr": {"uniform": [1, 2]}}}}},
        "tune.a.search.'variants.bam.train.lr'",
        "no effect on train.btx",
    ),
    (
        {"tune": {"a": {"stage": "train.bam", "search": {"variants.bam.train.tokens": {"choice": [1, 2]}}}}},
        "tune.a.search.'variants.bam.train.tokens'",
        "more tokens always look better",
    ),
    (
        {"tune": {"a": {"stage": "dense", "search": {"dense.lr": {"uniform": [-1, 2]}}}}},
        "tune.a.search.'dense.lr'.uniform",
        "positive",
    ),
    (
        {"dense": False, "tune": {"a": {"stage": "seed", "search": {"dense.lr": {"uniform": [1, 2]}}}}},
        "tune.a.search.'dense.lr'",
        "no dense baseline",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "words"), WRONG, ids=[path for _, path, _ in WRONG])
def test_one_mistake_gives_one_problem_at_its_key(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        recipe_from(spoiled(changes), "recipe")
    [problem] = caught.value.problems
    assert problem.path == path
    assert words in str(problem)


def test_circles_are_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        recipe(
            variants__bam__train={"match": "compute", "match_to": "btx"},
            variants__btx__train={"match": "compute", "match_to": "bam"},
            variants__c={"like": "bam", "train": {"match_to": "bam"}},
        )
    found = {problem.path: str(problem) for problem in caught.value.problems}
    assert found.keys() == {"variants.bam.train.match_to", "variants.btx.train.match_to"}
    assert "bam -> btx -> bam" in found["variants.bam.train.match_to"]
    with pytest.raises(InvalidInput) as caught:
        recipe(variants__a={"like": "b"}, variants__b={"like": "c"}, variants__c={"like": "b"})
    found = {problem.path: str(problem) for problem in caught.value.problems}
    assert found.keys() == {"variants.b.like", "variants.c.like"}
    assert "b -> c -> b" in found["variants.b.like"]


def test_all_mistakes_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        recipe_from(
            spoiled(
                {
                    "variants.bam.train": {"lr": -1, "match": "seconds", "match_to": "x"},
                    "variants.cm": {"like": "y"},
                    "dense": {"lr": -1},
                    "phases.mixture.seconds_per_token": {"z": 1},
                    "seeds": [],
                }
            ),
            "recipe",
        )
    assert {problem.path for problem in caught.value.problems} == {
        *("variants.bam.train.lr", "variants.bam.train.match_to", "variants.cm.like", "dense.lr"),
        *("phases.mixture.seconds_per_token.z", "seeds"),
    }
