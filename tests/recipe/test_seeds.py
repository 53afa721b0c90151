"""`seeds: [0, 1, 2]`: which stages there are, what they share, and that their names can be read back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.select import Selection
from bam_core.graph.stage import NAMED, Pipeline, Stage, StageName, kind_of
from pipelines import bam
from pipelines.recipe import load_recipe, recipe_from
from pipelines.seeding import together
from pipelines.stages import KINDS
from tests.recipe.recipes import spoiled

DIGESTS = {domain: domain * 8 for domain in ("general", "code", "law", "math", "s1")}
OF_NO_SEED = {"tokenizer", "data", "discover", "overlap", "adopted"}
SEARCH = "tune.lr={stage: train.bam, search: {phases.mixture.lr: {log_uniform: [1e-4, 1e-2]}}}"


def built(*sets: str) -> Pipeline:
    return bam.build(load_recipe("quickstart", sets), DIGESTS)


def keys(*sets: str) -> dict[str, str]:
    return pipeline_keys(built(*sets))


def test_one_seed_more_repeats_what_depends_on_it_and_nothing_else() -> None:
    one, two = keys("seeds=[0]"), keys("seeds=[0, 1]")
    repeated = {name for name in one if kind_of(name) not in OF_NO_SEED | {"report"}}
    assert two.keys() == one.keys() | {f"{name}.s1" for name in repeated}


def test_inputs_stay_within_their_seed_under_plain_roles() -> None:
    pipeline = built("seeds=[0, 1]")
    assert pipeline["train.bam.s1"].inputs["mix"] == "mix.bam.s1"
    assert pipeline["train.bam.s1"].inputs["data.law"] == "data.law"
    assert pipeline["expert.law.s1"].inputs["seed"] == "seed.s1"
    assert pipeline["evaluate.s1"].inputs["train.bam"] == "train.bam.s1"
    assert pipeline["evaluate.s1"].config["models"] == pipeline["evaluate"].config["models"]
    assert (pipeline["evaluate"].config["seeds"], pipeline["evaluate.s1"].config["seeds"]) == ([0], [1])
    for stage in pipeline:
        if stage.name != "report":
            for role, parent in stage.inputs.items():
                if role != "mix":
                    assert StageName.parse(parent).plain == role


def test_the_report_is_of_all_seeds_and_shows_the_first_ones_models() -> None:
    report = built("seeds=[3, 0, 7]")["report"]
    assert report.config["seeds"] == [3, 0, 7]
    judges = {role: made for role, made in report.inputs.items() if kind_of(role) == "evaluate"}
    assert judges == {"evaluate": "evaluate", "evaluate.s0": "evaluate.s0", "evaluate.s7": "evaluate.s7"}
    models = built()["evaluate"].config["models"]
    assert {role: report.inputs[role] for role in models} == {name: name for name in models}
    assert set(report.inputs.values()) <= {stage.name for stage in built()} | {"evaluate.s0", "evaluate.s7"}


@pytest.mark.parametrize("first", [0, 5])
def test_the_first_seeds_stages_are_those_of_a_recipe_with_that_seed(first: int) -> None:
    alone, several = keys(f"seed={first}"), keys(f"seeds=[{first}, 8, 9]")
    assert {name: several[name] for name in alone.keys() - {"report"}} == {
        name: key for name, key in alone.items() if name != "report"
    }
    assert keys(f"seeds=[{first}]") == alone, "one seed in a list is one seed"


def test_another_seeds_stages_do_not_depend_on_which_others_there_are() -> None:
    first, second = keys("seeds=[0, 1, 2]"), keys("seeds=[4, 2, 5, 1]")
    for seed in (1, 2):
        of_it = {name for name in first if name.endswith(f".s{seed}")}
        assert of_it == {name for name in second if name.endswith(f".s{seed}")}
        assert {name: first[name] for name in of_it} == {name: second[name] for name in of_it}


def test_no_two_seeds_have_a_key_in_common() -> None:
    found = keys("seeds=[0, 1, 2]")
    assert len(set(found.values())) == len(found)


def test_every_stage_comes_after_what_it_reads_and_a_seed_after_the_one_before() -> None:
    names = [stage.name for stage in built("seeds=[0, 1, 2]", SEARCH)]  # a Pipeline refuses another order
    assert names.index("evaluate") < names.index("seed.s1") < names.index("evaluate.s1") < names.index("seed.s2")
    assert names[-1] == "report"


def test_what_checks_a_stage_is_of_its_seed_too() -> None:
    def made(seed: int) -> list[Stage]:
        shared, own = Stage("overlap", "overlap", 1, {}), Stage("dense", "dense", 1, {"seed": seed})
        return [shared, own, Stage("train.x", "train", 1, {"seed": seed}, checks=("overlap", "dense"))]

    found = Pipeline("two", together({0: made(0), 1: made(1)}))
    assert found["train.x.s1"].checks == ("overlap", "dense.s1")


def test_a_search_is_made_for_the_first_seed_and_used_by_all() -> None:
    pipeline = built("seeds=[0, 1]", SEARCH)
    assert "tune.lr.s1" not in pipeline
    assert pipeline["train.btx.s1"].inputs["tune.lr"] == "tune.lr"
    assert keys("seeds=[0, 1]", SEARCH)["tune.lr"] == keys("seed=0", SEARCH)["tune.lr"]
    assert keys("seed=0", SEARCH) == keys("seed=0", SEARCH, "tune.lr.seeds=each")


def test_a_search_for_each_seed() -> None:
    recipe = load_recipe("quickstart", ["seeds=[0, 1]", SEARCH, "tune.lr.seeds=each"])
    pipeline = bam.build(recipe, DIGESTS)
    assert pipeline["train.btx.s1"].inputs["tune.lr"] == "tune.lr.s1"
    assert pipeline["tune.lr.s1"].inputs["mix"] == "mix.bam.s1"
    assert pipeline["tune.lr.s1"].config["seed"] != pipeline["tune.lr"].config["seed"]
    assert list(bam.search_costs(recipe)) == ["tune.lr", "tune.lr.s1"]
    assert "tune.lr.s1" not in pipeline["report"].inputs


def test_a_search_for_the_first_may_come_after_one_for_each() -> None:
    other = "tune.wd={stage: train.btx, search: {phases.mixture.weight_decay: {choice: [0, 0.1]}}, seeds: each}"
    pipeline = built("seeds=[0, 1]", SEARCH, other)
    tuned = {role: made for role, made in pipeline["train.bam.s1"].inputs.items() if kind_of(role) == "tune"}
    assert tuned == {"tune.lr": "tune.lr", "tune.wd": "tune.wd.s1"}
    assert pipeline["tune.wd.s1"].inputs["tune.lr"] == "tune.lr"


def test_stages_of_a_seed_are_selected_by_name() -> None:
    pipeline = built("seeds=[0, 1]")
    assert Selection(only=("train.bam.s1",)).stages(pipeline) == {"train.bam.s1"}
    assert "seed" not in Selection(until=("evaluate.s1",)).stages(pipeline)
    assert Selection(only=("*.s1",), until=("expert.*.s1",)).stages(pipeline) == {
        "seed.s1",
        *(f"expert.{domain}.s1" for domain in ("code", "law", "math")),
    }
    assert Selection(force=("seed.s1",)).forced(pipeline) == {"seed.s1"}


def test_a_domain_that_is_called_like_a_seed_is_a_domain() -> None:
    pipeline = built("seeds=[0, 1]", "domains.s1={source: {kind: python-docs}}")
    assert pipeline["expert.s1"].config["domain"] == "s1"
    assert StageName.parse("expert.s1") == StageName("expert", "s1")
    assert StageName.parse("expert.s1.s1") == StageName("expert", "s1", 1)
    assert pipeline["expert.s1.s1"].config["domain"] == "s1"
    assert StageName.parse("seed.s1") == StageName("seed", None, 1)
    assert StageName.parse("data.s1") == StageName("data", "s1")
    names = [stage.name for stage in pipeline]
    assert len(set(map(StageName.parse, names))) == len(names)


def test_every_kind_of_stage_says_whether_it_has_a_name() -> None:
    """A kind that is added must be in `NAMED` if it has one, or `expert.s1` would be read as a seed's."""
    for stage in built("seeds=[0, 1]", SEARCH):
        named = StageName.parse(stage.name)
        assert named.kind in NAMED or named.name is None, f"add {named.kind!r} to NAMED of bam_core.graph.stage"
    assert {"adopted" if kind == "adopt" else kind for kind in KINDS} >= NAMED


NAMES = st.from_regex(r"[a-z0-9_][a-z0-9_-]{0,6}", fullmatch=True) | st.sampled_from(["s0", "s1", "s12", "seed"])


@given(kind=st.sampled_from(sorted(NAMED)), name=NAMES, seed=st.none() | st.integers(0, 2**40))
def test_a_name_is_read_as_it_was_written(kind: str, name: str, seed: int | None) -> None:
    for written in (StageName(kind, name, seed), StageName("seed", None, seed)):
        assert StageName.parse(str(written)) == written
        assert StageName.parse(written.plain) == StageName(written.kind, written.name)


@given(st.text(alphabet="abs.01-", max_size=12))
def test_any_text_is_given_back_as_it_was(text: str) -> None:
    assert str(StageName.parse(text)) == text


def problems(changes: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        recipe_from(spoiled(changes), "recipe")
    return {problem.path: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"seeds": []}, "seeds", "at least one seed"),
        ({"seeds": [0, 1, 0]}, "seeds", "given twice"),
        ({"seeds": [-1]}, "seeds", "at least 0"),
        ({"seeds": 3}, "seeds", "list"),
        ({"seeds": [0, "x"]}, "seeds.1", "whole number"),
        ({"seed": 0, "seeds": [0, 1]}, "seed", "exclude each other"),
        ({"seeds": [0, 1], "domains.code.expert": "law-by-them"}, "domains.code.expert", "branched from one seed"),
        ({"tune": {"a": {"stage": "seed", "search": {}, "seeds": "all"}}}, "tune.a.seeds", "first or each"),
    ],
)
def test_what_cannot_be_meant(changes: dict[str, Any], path: str, words: str) -> None:
    assert words in problems(changes)[path]


def test_what_is_said_on_the_command_line_counts() -> None:
    assert load_recipe("quickstart", ["seeds=[4, 2]"]).all_seeds == (4, 2)
    assert load_recipe("quickstart", ["seed=4"]).all_seeds == (4,)


def test_a_recipe_as_it_is_on_record_can_be_read_again() -> None:
    for sets in (["seeds=[4, 2]", SEARCH], ["seed=4"]):
        recipe = load_recipe("quickstart", sets)
        again = recipe_from(recipe.to_json(), "record")
        assert again == recipe
        assert again.all_seeds == recipe.all_seeds
        assert pipeline_keys(bam.build(again, DIGESTS)) == pipeline_keys(bam.build(recipe, DIGESTS))
