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
from bam_core.upcycle.rules import ROUTER_INITS
from bam_core.upcycle.variants import (
    VARIANTS,
    AttentionSpec,
    FFNSpec,
    Variant,
    common_config,
    mixture_config,
)

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
NAMES = ("general", "code", "law", "math")


def paths(caught: pytest.ExceptionInfo[InvalidInput]) -> list[str]:
    return [problem.path for problem in caught.value.problems]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_json_round_trip(variant: Variant) -> None:
    assert Variant.from_json(json.loads(json.dumps(variant.to_json()))) == variant


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
    variant = Variant("v", AttentionSpec("top_k", 2, "shared", "topk_softmax"), FFNSpec(2))
    config = mixture_config(DENSE, NAMES, variant)
    assert config.attention == AttentionExperts(4, 2, "shared", "topk_softmax")
    assert config.ffn == FFNExperts(4, 2)


@pytest.mark.parametrize(
    ("variant", "experts", "where"),
    [
        (VARIANTS["bam"], ("a", "b", "a"), "experts"),
        (VARIANTS["soup"], (), "experts"),
        (Variant("v", AttentionSpec("top_k", 3), "merged"), ("a", "b"), "attention.top_k"),
        (Variant("v", "merged", FFNSpec(3)), ("a", "b"), "ffn.top_k"),
        (Variant("v", AttentionSpec("soft", 1), "merged"), ("a", "b"), "attention.top_k"),
    ],
)
def test_variant_must_fit_its_experts(variant: Variant, experts: tuple[str, ...], where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mixture_config(DENSE, experts, variant)
    assert paths(caught) == [where]


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
    assert set(ROUTER_INITS) == set(INITS)
