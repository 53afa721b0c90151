"""A recipe's DAG, without running it: what is built from what, and which keys a change reaches."""

from __future__ import annotations

import pytest

from bam_core.graph.key import pipeline_keys
from bam_core.nn.costs import training_flops
from pipelines import bam
from pipelines.matching import mixture_phases
from pipelines.recipe import load_recipe

ALL_PHASES = bam.trainings
DIGESTS = {domain: domain * 8 for domain in ("general", "code", "law", "math")}


def keys(*sets: str, **digests: str) -> dict[str, str]:
    return pipeline_keys(bam.build(load_recipe("quickstart", sets), DIGESTS | digests))


def changed(*sets: str, **digests: str) -> set[str]:
    """The stages whose keys differ from the plain quickstart's."""
    before, after = keys(), keys(*sets, **digests)
    return {stage for stage in before | after if before.get(stage) != after.get(stage)}


MIXTURES = {"mix.bam", "mix.btx", "train.bam", "train.btx", "routing"}
RESULTS = {"evaluate", "report"}


def test_the_whole_method() -> None:
    pipeline = bam.build(load_recipe("quickstart"), DIGESTS)
    assert [stage.name for stage in pipeline] == [
        *("tokenizer", "data.general", "data.code", "data.law", "data.math", "overlap"),
        *("seed", "expert.code", "expert.law", "expert.math"),
        *("mix.bam", "train.bam", "mix.btx", "train.btx", "dense", "evaluate", "routing", "report"),
    ]
    assert list(pipeline["mix.bam"].inputs) == [
        *("seed", "expert.code", "expert.law", "expert.math"),
        *("data.general", "data.code", "data.law", "data.math"),
    ]
    assert all(role == stage for role, stage in pipeline["mix.bam"].inputs.items())
    assert pipeline["mix.bam"].config["domains"] == ["general", "code", "law", "math"]
    assert pipeline["mix.bam"].config["experts"][0] == ["general", "seed"]
    assert set(pipeline["expert.law"].inputs) == {"seed", "data.law", "data.general"}


def test_work_grows_with_the_stages_and_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage's phase comes from one table of all phases: made once for a seed, not once for a stage."""
    made = []
    monkeypatch.setattr(bam, "trainings", lambda recipe: made.append(recipe.seed) or ALL_PHASES(recipe))
    bam.build(load_recipe("quickstart", ["seeds=[3, 5]"]), DIGESTS)
    assert made == [3, 5]


@pytest.mark.parametrize(
    ("sets", "digests", "reached"),
    [
        ([], {"law": "other text"}, {"data.law", "overlap", "expert.law", "dense"} | MIXTURES | RESULTS),
        (["domains.math.expert.lr=1e-3"], {}, {"expert.math"} | MIXTURES | RESULTS),
        (["phases.expert.tokens=200k"], {}, {"expert.code", "expert.math"} | MIXTURES | RESULTS),
        (["phases.mixture.lr=1e-3"], {}, {"train.bam", "train.btx", "dense", "routing"} | RESULTS),
        (["variants.btx.ffn.top_k=2"], {}, {"mix.btx", "train.btx", "routing"} | RESULTS),
        (["variants.btx.merge=slerp"], {}, {"mix.btx", "train.btx", "routing"} | RESULTS),
        (["phases.mixture.balance_rate=1e-2"], {}, {"train.bam", "train.btx", "dense", "routing"} | RESULTS),
        (["ensemble=false"], {}, RESULTS),
        (["evaluate.tokens=10k"], {}, RESULTS),
        (["evaluate.stride=64"], {}, RESULTS),
        (["evaluate.part=[2,2]"], {}, RESULTS),
        (["evaluate.routing.tokens=100"], {}, {"routing", "report"}),
        (["evaluate.routing=false"], {}, {"routing", "report"}),
        (["evaluate.routing=true"], {}, set()),
        (["phases.mixture.collapse_stop=false"], {}, set()),
        (["phases.mixture.collapse_stop=true"], {}, {"train.bam", "train.btx", "dense", "routing"} | RESULTS),
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
    texts = {"tokenizer", "data.general", "data.code", "data.law", "data.math", "overlap"}
    assert changed("seed=1") == everything - texts


@pytest.mark.parametrize(
    "written",
    [
        ["variants.btx.router_init=centroid", "variants.btx.router_std=0.02", "variants.btx.merge=mean"],
        ["variants.btx.merge={method: mean, density: 0.2}", "variants.btx.ffn.scale=gate", "variants.btx.ffn.split=1"],
        ["variants.bam.attention={}", "variants.bam.ffn={}", "evaluate.stride=128"],
        ["model.qk_norm=false", "model.rotary_frac=1", "model.tie_embeddings=true", "phases.mixture.gumbel_min=0.5"],
    ],
)
def test_a_default_that_is_written_out_changes_no_key(written: list[str]) -> None:
    assert changed(*written) == set()


def test_keys_are_made_of_what_is_not_at_its_default() -> None:
    """So a field that is added to a config later changes no key of a recipe that does not set it."""
    pipeline = bam.build(load_recipe("quickstart"), DIGESTS)
    assert pipeline["mix.btx"].config["variant"] == {
        **{"name": "btx", "attention": "merged"},
        **{"ffn": {"scale": "gate"}, "router_init": "centroid"},  # the core's defaults are others
    }
    assert pipeline["seed"].config["model"].keys().isdisjoint({"qk_norm", "rotary_frac", "layout_version"})
    assert pipeline["train.bam"].config["phase"].keys().isdisjoint({"beta1", "gumbel_min", "load_balancing_coef"})


def test_a_new_domain_runs_its_own_branch_and_what_is_mixed() -> None:
    """Neither the tokenizer nor the phases of the seed and the experts name it in the quickstart."""
    new = "domains.medicine={source: {kind: python-docs}}"
    assert (
        changed(new, medicine="a text") == {"data.medicine", "overlap", "expert.medicine", "dense"} | MIXTURES | RESULTS
    )


def test_a_mixture_reads_the_models_that_it_is_made_from() -> None:
    sparse = "variants.sparse={attention: merged, ffn: {experts: [general, general], scale: gate}, merge: seed}"
    weighted = (
        "variants.two={attention: merged, ffn: {experts: [law]}, "
        "merge: {method: weighted, weights: {general: 0.5, code: 0.5}}}"
    )
    recipe = load_recipe("quickstart", [sparse, weighted])
    pipeline = bam.build(recipe, DIGESTS)
    models = {
        name: [role for role in pipeline[f"mix.{name}"].inputs if not role.startswith("data.")]
        for name in ("bam", "sparse", "two")
    }
    assert models == {
        "bam": ["seed", "expert.code", "expert.law", "expert.math"],
        "sparse": ["seed"],
        "two": ["seed", "expert.code", "expert.law"],
    }
    assert pipeline["mix.two"].config["experts"] == [
        ["general", "seed"],
        ["code", "expert.code"],
        ["law", "expert.law"],
    ]
    assert bam.model_configs(recipe)["mix.sparse"].experts == ("general",)
    before = pipeline_keys(pipeline)
    after = pipeline_keys(bam.build(load_recipe("quickstart", [sparse, "domains.law.expert.lr=1e-4"]), DIGESTS))
    assert before["mix.sparse"] == after["mix.sparse"]
    assert before["mix.bam"] != after["mix.bam"]


def test_the_ensemble_is_of_the_dense_experts() -> None:
    on, off = (bam.build(load_recipe("quickstart", sets), DIGESTS)["evaluate"] for sets in ([], ["ensemble=false"]))
    assert on.config["ensemble"] == ["seed", "expert.code", "expert.law", "expert.math"]
    assert "ensemble" not in off.config
    assert on.inputs == off.inputs


def test_warnings_name_their_variant() -> None:
    assert bam.warnings(load_recipe("quickstart")) == []
    copies = ["variants.btx.ffn.experts=[general, general, law]", "variants.btx.ffn.gate=topk_softmax"]
    warnings = bam.warnings(load_recipe("quickstart", copies))
    assert len(warnings) == 2
    assert all(warning.startswith("variants.btx: ffn.") for warning in warnings)
    assert "Table 4" in warnings[0]


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
    models = bam.model_configs(recipe)
    phases = mixture_phases(recipe, models)
    spent = {name: training_flops(models[name], phase.tokens, phase.seq_len) for name, phase in phases.items()}
    budget = training_flops(models["train.btx"], recipe.mixture_training().n_steps * 4096, 256)
    assert spent["train.btx"] == budget
    for name, phase in phases.items():
        one_batch = spent[name] / phase.n_steps
        assert budget - one_batch < spent[name] <= budget or name == "dense"
        assert phase.tokens % phase.batch_tokens == 0
    assert phases["train.bam"].tokens < phases["train.btx"].tokens


def test_the_general_domain_may_have_an_expert_of_its_own() -> None:
    """A copy of the seed like any other; the seed is scored too, and stays what it was."""
    own = bam.build(load_recipe("quickstart", ["domains.general.expert.train=true"]), DIGESTS)
    assert own["expert.general"].inputs["seed"] == "seed"
    assert own["expert.general"].config["phase"]["shares"] == {"general": 1.0}
    assert own["mix.bam"].config["experts"][0] == ["general", "expert.general"]
    assert {"seed", "expert.general"} <= set(own["evaluate"].config["models"])
    assert own["evaluate"].config["ensemble"][0] == "expert.general"
    reached = changed("domains.general.expert.train=true")
    assert reached == {"expert.general"} | MIXTURES | RESULTS
