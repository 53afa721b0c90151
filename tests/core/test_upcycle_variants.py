"""A variant as the recipe writes it, as JSON, and as a mixture's config; experts that cannot be mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.costs import params_total
from bam_core.upcycle.router_init import INITS
from bam_core.upcycle.rules import FITTED_INITS, ROUTER_INITS
from bam_core.upcycle.variants import (
    VARIANTS,
    AttentionSpec,
    FFNSpec,
    MergeSpec,
    Variant,
    common_config,
    mixture_config,
)

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
NAMES = ("general", "code", "law", "math")


def paths(caught: pytest.ExceptionInfo[InvalidInput]) -> list[str]:
    return [problem.path for problem in caught.value.problems]


EVERYTHING = Variant(
    "everything",
    AttentionSpec("top_k", 1, "value_only", "topk_softmax", ("law", "law"), (0, 1), True),
    FFNSpec("top_k", 2, "softmax_topk_ste", "random", "gate", True, (1,), (1,), 2, 1.5, "bias", True),
    router_init="orthogonal",
    router_std=0.1,
    merge=MergeSpec("weighted", {"general": 0.75, "law": 0.25}, 0.5, 0.1),
)


@pytest.mark.parametrize("variant", [*VARIANTS.values(), EVERYTHING], ids=[*VARIANTS, "everything"])
def test_json_round_trip(variant: Variant) -> None:
    assert Variant.from_json(json.loads(json.dumps(variant.to_json()))) == variant
    assert Variant.from_json(json.loads(json.dumps(variant.identity()))) == variant


def test_identity_leaves_out_what_is_at_its_default() -> None:
    """So that a new field changes no key."""
    assert VARIANTS["bam"].identity() == {"name": "bam", "attention": {}, "ffn": {}}
    assert VARIANTS["soup"].identity() == {"name": "soup", "attention": "merged", "ffn": "merged"}
    assert EVERYTHING.identity().keys() == EVERYTHING.to_json().keys()


def test_merge_may_be_a_name() -> None:
    read = Variant.from_json({"name": "v", "attention": "merged", "ffn": "merged", "merge": "slerp"})
    assert read.merge == MergeSpec("slerp")


def test_variants_read_as_the_recipe_writes_them() -> None:
    """The two variants of DESIGN's example recipe."""
    ffn = {"experts": "per-domain", "top_k": 1, "gate": "softmax_topk"}
    attention = {"experts": "per-domain", "routing": "soft", "kv": "expert"}
    assert Variant.from_json({"name": "bam", "attention": attention, "ffn": ffn}) == VARIANTS["bam"]
    assert Variant.from_json({"name": "btx", "attention": "merged", "ffn": ffn}) == VARIANTS["btx"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"attention": "soft"}, ["attention"]),
        ({"attention": {"routing": "hard"}}, ["attention.routing"]),
        ({"attention": {"routing": "top_k"}}, ["attention.top_k"]),
        ({"attention": {"top_k": 2}}, ["attention.top_k"]),
        ({"attention": {"kvs": "shared"}, "ffn": {"topk": 1}}, ["attention.kvs", "ffn.topk"]),
        ({"ffn": {"experts": "copies"}}, ["ffn.experts"]),
        ({"router_init": "rand"}, ["router_init"]),
        ({"router": "zero", "ffn": 3}, ["router", "ffn"]),
        ({"router_std": 0}, ["router_std"]),
        ({"attention": {"experts": []}}, ["attention.experts"]),
        ({"attention": {"experts": [1]}, "ffn": {"layers": ["1"]}}, ["attention.experts", "ffn.layers"]),
        ({"ffn": {"routing": "soft", "top_k": 2}}, ["ffn.top_k"]),
        ({"ffn": {"scale": "up", "split": 0, "top_k": "2"}}, ["ffn.scale", "ffn.top_k", "ffn.split"]),
        ({"merge": "average"}, ["merge.method"]),
        ({"merge": 3}, ["merge"]),
        ({"merge": {"method": "ties", "densty": 0.1}}, ["merge.densty"]),
        ({"merge": {"method": "weighted"}}, ["merge.weights"]),
        ({"merge": {"weights": {"a": 1}}}, ["merge.weights"]),
        ({"merge": {"method": "weighted", "weights": [0.5, 0.5]}}, ["merge.weights"]),
    ],
)
def test_wrong_variants_are_named(fields: dict[str, Any], where: list[str]) -> None:
    with pytest.raises(InvalidInput, match="variant 'v'") as caught:
        Variant.from_json({"name": "v", "attention": "merged", "ffn": "merged"} | fields)
    assert paths(caught) == where


def test_missing_fields_are_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        Variant.from_json({})
    assert paths(caught) == ["name", "attention", "ffn"]


def test_config_of_each_variant() -> None:
    configs = {name: mixture_config(DENSE, NAMES, variant) for name, variant in VARIANTS.items()}
    ffn = FFNExperts(4, 1, "softmax_topk")
    assert configs == {
        "bam": replace(DENSE, attention=AttentionExperts(4, 4, "expert"), ffn=ffn, experts=NAMES),
        "bam_shared_kv": replace(DENSE, attention=AttentionExperts(4, 4, "shared"), ffn=ffn, experts=NAMES),
        "btx": replace(DENSE, ffn=ffn, experts=NAMES),
        "soup": DENSE,
    }


def test_top_k_attention() -> None:
    variant = Variant("v", AttentionSpec("top_k", 2, "shared", "topk_softmax"), FFNSpec(top_k=2))
    config = mixture_config(DENSE, NAMES, variant)
    assert config.attention == AttentionExperts(4, 2, "shared", "topk_softmax")
    assert config.ffn == FFNExperts(4, 2)


@pytest.mark.parametrize(
    ("variant", "experts", "where"),
    [
        (VARIANTS["bam"], ("a", "b", "a"), "experts"),
        (VARIANTS["soup"], (), "experts"),
        (Variant("v", AttentionSpec("top_k", 3), "merged"), ("a", "b"), "attention.top_k"),
        (Variant("v", "merged", FFNSpec(top_k=3)), ("a", "b"), "ffn.top_k"),
        (Variant("v", AttentionSpec("soft", 1), "merged"), ("a", "b"), "attention.top_k"),
    ],
)
def test_variant_must_fit_its_experts(variant: Variant, experts: tuple[str, ...], where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mixture_config(DENSE, experts, variant)
    assert paths(caught) == [where]


def test_every_option_reaches_the_config() -> None:
    config = mixture_config(DENSE, NAMES, EVERYTHING)
    assert config.attention == AttentionExperts(
        2, 1, "value_only", "topk_softmax", slots=("law", "law"), layers=(0, 1), dense_router_gradient=True
    )
    assert config.ffn == FFNExperts(
        8,
        2,
        "softmax_topk_ste",
        layers=(1,),
        soft_layers=(1,),
        split=2,
        shared_expert=True,
        capacity_factor=1.5,
        gain=(1.0, 2.0),  # in a soft layer the gates sum to 1, over outputs of 1/2
        balance="bias",
        dense_router_gradient=True,
    )
    assert config.experts == NAMES
    soft = mixture_config(DENSE, NAMES, Variant("v", "merged", FFNSpec("soft", split=3)))
    assert soft.ffn == FFNExperts(12, 12, split=3)


@pytest.mark.parametrize("init", ROUTER_INITS)
def test_a_router_std_that_saturates_the_gate_is_refused(init: str) -> None:
    """mergekit's "random" has std 1: logits of std sqrt(D)."""
    loud = Variant("v", "merged", FFNSpec(), router_init=init, router_std=0.72)
    if init == "zero":
        assert mixture_config(DENSE, NAMES, loud).is_mixture
        return
    with pytest.raises(InvalidInput, match=r"router_std: 0.72: gives logits of std 2\.04 .*0\.71 or less"):
        mixture_config(DENSE, NAMES, loud)
    assert mixture_config(DENSE, NAMES, replace(loud, router_std=0.7)).is_mixture


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (VARIANTS["bam"], []),
        (Variant("v", "merged", FFNSpec(experts=("general", *NAMES))), ["general 2 times", "Table 4"]),
        (Variant("v", AttentionSpec("top_k", 1, gate="topk_softmax"), "merged"), ["attention.gate", "no gradient"]),
        (Variant("v", "merged", FFNSpec(gate="softmax_topk_renorm")), ["ffn.gate", "softmax_topk_ste"]),
        (Variant("v", "merged", FFNSpec(gate="topk_softmax", dense_router_gradient=True)), []),
        (Variant("v", "merged", FFNSpec(top_k=2, gate="topk_softmax")), []),
        (Variant("v", "merged", FFNSpec("soft", gate="topk_softmax")), []),
        (Variant("v", "merged", FFNSpec(gate="softmax_topk_ste")), []),
        (Variant("v", "merged", FFNSpec(scale="gate", shared_expert=True)), ["ffn.scale", "twice"]),
    ],
)
def test_warnings(variant: Variant, words: list[str]) -> None:
    found = variant.warnings(NAMES)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_one_dense_model_is_warned_of() -> None:
    assert "only dense model" in VARIANTS["btx"].warnings(["general"])[0]
    assert VARIANTS["soup"].warnings(["general"]) == []


def test_paper_sizes_of_btx_with_more_experts() -> None:
    """BAM, Tables 4 and 9: 4 to 8 experts at 590M."""
    dense = ModelConfig(256_000, 1024, 6, 8, 8, 2048, 2048, tie_embeddings=False)
    totals = [params_total(mixture_config(dense, [str(i) for i in range(n)], VARIANTS["btx"])) for n in range(4, 9)]
    assert totals == [700_480_512, 738_235_392, 775_990_272, 813_745_152, 851_500_032]


def test_experts_must_share_one_dense_config() -> None:
    assert common_config(dict.fromkeys(NAMES, DENSE)) == DENSE
    configs = dict.fromkeys(NAMES, DENSE) | {
        "law": replace(DENSE, rope_theta=5e5, norm="layer"),
        "math": replace(DENSE, vocab_size=20),
    }
    with pytest.raises(InvalidInput) as caught:
        common_config(configs)
    assert paths(caught) == ["law.norm", "law.rope_theta", "math.vocab_size"]
    with pytest.raises(InvalidInput, match="must be a dense model"):
        common_config({"a": mixture_config(DENSE, NAMES, VARIANTS["btx"])})


def test_planning_a_variant_loads_no_torch() -> None:
    code = "import bam_core.upcycle.variants, bam_core.nn.shapes, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (*INITS, *FITTED_INITS) == ROUTER_INITS
