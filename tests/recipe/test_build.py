"""A recipe's DAG, without running it: what is built from what, and which keys a change reaches."""

from __future__ import annotations

import pytest

from bam_core.graph.key import pipeline_keys
from bam_core.nn.costs import training_flops
from pipelines import bam
from pipelines.recipe import load_recipe

DIGESTS = {domain: domain * 8 for domain in ("general", "code", "law", "math")}


def keys(*sets: str, **digests: str) -> dict[str, str]:
    return pipeline_keys(bam.build(load_recipe("quickstart", sets), DIGESTS | digests))


def changed(*sets: str, **digests: str) -> set[str]:
    """The stages whose keys differ from the plain quickstart's."""
    before, after = keys(), keys(*sets, **digests)
    return {stage for stage in before | after if before.get(stage) != after.get(stage)}


MIXTURES = {"mix.bam", "mix.btx", "train.bam", "train.btx"}
RESULTS = {"evaluate", "report"}


def test_the_whole_method() -> None:
    pipeline = bam.build(load_recipe("quickstart"), DIGESTS)
    assert [stage.name for stage in pipeline] == [
        *("tokenizer", "data.general", "data.code", "data.law", "data.math"),
        *("seed", "expert.code", "expert.law", "expert.math"),
        *("mix.bam", "train.bam", "mix.btx", "train.btx", "dense", "evaluate", "report"),
    ]
    assert dict(pipeline["mix.bam"].inputs) == {
        name: name for name in ("seed", "expert.code", "expert.law", "expert.math")
    }
    assert pipeline["mix.bam"].config["experts"][0] == ["general", "seed"]
    assert set(pipeline["expert.law"].inputs) == {"seed", "data.law", "data.general"}


@pytest.mark.parametrize(
    ("sets", "digests", "reached"),
    [
        ([], {"law": "other text"}, {"data.law", "expert.law", "dense"} | MIXTURES | RESULTS),
        (["domains.math.expert.lr=1e-3"], {}, {"expert.math"} | MIXTURES | RESULTS),
        (["phases.expert.tokens=200k"], {}, {"expert.code", "expert.math"} | MIXTURES | RESULTS),
        (["phases.mixture.lr=1e-3"], {}, {"train.bam", "train.btx", "dense"} | RESULTS),
        (["variants.btx.ffn.top_k=2"], {}, {"mix.btx", "train.btx"} | RESULTS),
        (["evaluate.tokens=10k"], {}, RESULTS),
        (["runtime.expert.cpus=2", "runtime.checkpoint_steps=7", "runtime.max_parallel=9"], {}, set()),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(
    sets: list[str], digests: dict[str, str], reached: set[str]
) -> None:
    assert changed(*sets, **digests) == reached


def test_the_general_text_and_the_seed_number_reach_everything_built_from_them() -> None:
    everything = set(keys())
    assert changed(general="other text") == everything
    assert changed("seed=1") == everything - {"tokenizer", "data.general", "data.code", "data.law", "data.math"}


def test_every_random_choice_has_its_own_seed_and_the_mixtures_share_one() -> None:
    pipeline = bam.build(load_recipe("quickstart"), DIGESTS)
    seeds = {
        name: pipeline[name].config["phase"]["seed"] for name in ("seed", "expert.code", "expert.law", "train.bam")
    }
    assert len(set(seeds.values())) == 4
    assert {pipeline[name].config["phase"]["seed"] for name in ("train.bam", "train.btx", "dense")} == {
        seeds["train.bam"]
    }


def test_compute_matching_spends_the_cheapest_variants_flops() -> None:
    recipe = load_recipe("quickstart", ["phases.mixture.match=compute"])
    models, phases = bam.model_configs(recipe), bam.mixture_phases(recipe)
    spent = {
        name: training_flops(models["dense" if name == "dense" else f"train.{name}"], phase.tokens, phase.seq_len)
        for name, phase in phases.items()
    }
    budget = training_flops(models["train.btx"], recipe.mixture_training().n_steps * 4096, 256)
    assert spent["btx"] == budget
    for name, phase in phases.items():
        one_batch = spent[name] / phase.n_steps
        assert budget - one_batch < spent[name] <= budget or name == "dense"
        assert phase.tokens % phase.batch_tokens == 0
    assert phases["bam"].tokens < phases["btx"].tokens
