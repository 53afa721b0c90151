"""FFN experts at the dense model's scale from the start, exactly; and what was fitted on text in a rule's place."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from upcycle_models import DENSE, NAMES, InMemory, dense_models, mix

from bam_core.config import FFNExperts, ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.apply import Fitted, coverage, make_tensor
from bam_core.upcycle.rules import start_factor
from bam_core.upcycle.variants import (
    FFNSpec,
    MergeSpec,
    Variant,
    mixture_config,
    rules_for,
)

MATRICES = ("w_gate", "w_up", "w_down")
TOKENS_BT = torch.arange(16)[None]


def ffn_only(name: str = "v", merge: str = "mean", **ffn: Any) -> Variant:
    return Variant(name, "merged", FFNSpec(**ffn), merge=MergeSpec(merge))


def parents(sources: dict[str, InMemory], name: str, slots: tuple[str, ...] = NAMES) -> Tensor:
    return torch.stack([sources[slot].tensors[name] for slot in slots])


# --- scale at the start


@pytest.mark.parametrize(
    ("experts", "factor"),
    [
        (FFNExperts(4, 1), 4),
        (FFNExperts(8, 3), Fraction(8, 3)),
        (FFNExperts(4, 4), 1),
        (FFNExperts(12, 3, split=3), 12),  # E = 4, G = 3, k = 3: 4 * 9 / 3
        (FFNExperts(12, 12, split=3), 3),
        (FFNExperts(4, 1, "softmax_topk_renorm"), 1),
        (FFNExperts(12, 2, "topk_softmax", split=3), 3),
        (FFNExperts(4, 1, "softmax_topk_ste"), 1),
        (FFNExperts(4, 1, "sample_top1"), 1),
    ],
)
def test_start_factor_is_exact(experts: FFNExperts, factor: Fraction) -> None:
    assert start_factor(experts) == factor


SCALED = ModelConfig(vocab_size=19, d_model=8, n_layers=3, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)


@pytest.mark.parametrize("scale", ["gate", "experts"])
@pytest.mark.parametrize("ffn", [{}, {"top_k": 2}, {"split": 2, "top_k": 2}, {"soft_layers": (0,), "layers": (0, 2)}])
def test_copies_of_one_model_behind_an_even_router_are_that_model(scale: str, ffn: dict[str, Any]) -> None:
    """The scale makes up for the gates exactly: the whole mixture computes what the dense model does.

    An even router breaks ties by position, so of column groups it takes the first two: those of one model.
    """
    dense = LM(SCALED)
    init_weights(dense, seed=1)
    sources = {name: InMemory(dense.state_dict()) for name in NAMES}
    variant = replace(ffn_only(scale=scale, **ffn), router_init="zero")
    config = mixture_config(SCALED, NAMES, variant)
    mixture = LM(config)
    mixture.load_state_dict(mix(variant, sources, SCALED))
    found = mixture.double()(TOKENS_BT).hidden_BTD
    expected = dense.double()(TOKENS_BT).hidden_BTD
    assert (found - expected).abs().max() < (1e-6 if scale == "experts" else 1e-12)
    plain = LM(mixture_config(SCALED, NAMES, replace(variant, ffn=replace(variant.ffn, scale="none"))))
    plain.load_state_dict(mix(replace(variant, ffn=replace(variant.ffn, scale="none")), sources, SCALED))
    assert (plain.double()(TOKENS_BT).hidden_BTD - expected).abs().max() > 1e-3


def test_gains_are_per_layer() -> None:
    variant = ffn_only(scale="gate", top_k=3, layers=(0, 2), soft_layers=(0,))
    assert mixture_config(SCALED, NAMES, variant).ffn.gain == (1.0, 1.0, 4 / 3)
    assert mixture_config(SCALED, NAMES, replace(variant, ffn=replace(variant.ffn, scale="none"))).ffn.gain == ()


def test_scaled_weights_carry_the_cube_root_each() -> None:
    """arXiv 2410.07524: E = 4 models, G = 2 groups, k = 2: each matrix times cbrt(4 * 2^2 / 2) = 2."""
    sources = dense_models()
    provenance: dict[str, Any] = {}
    variant = ffn_only(scale="weights", split=2, top_k=2, shared_expert=True)
    mixture = mix(variant, sources, provenance=provenance)
    for name in (f"blocks.0.ffn.{matrix}" for matrix in MATRICES):
        own = parents(sources, name).reshape(8, 6, 8)
        assert torch.equal(mixture[name], own * 2)
        assert provenance[name]["factor"] == pytest.approx(2, rel=1e-15)
        shared = name.replace("ffn.", "ffn.shared.")
        assert torch.equal(mixture[shared], sources["general"].tensors[name])
        assert "factor" not in provenance[shared]
        assert not any("slot" in entry for entry in provenance[name]["from"]), "a group is no slot"


def test_scaled_experts_are_rounded_once() -> None:
    sources = dense_models()
    mixture = mix(ffn_only(scale="experts", experts=(*NAMES, "law"), top_k=3), sources)
    own = parents(sources, "blocks.0.ffn.w_down", (*NAMES, "law"))
    assert torch.equal(mixture["blocks.0.ffn.w_down"], (own.double() * (5 / 3)).float())
    assert torch.equal(mixture["blocks.0.ffn.w_up"], parents(sources, "blocks.0.ffn.w_up", (*NAMES, "law")))


# --- what was fitted on text


def test_fitted_routers_and_factors_take_the_place_of_the_rules() -> None:
    sources = dense_models()
    variant = replace(ffn_only(scale="experts"), router_init="ridge")
    target = mixture_config(DENSE, NAMES, variant)
    routers = {f"blocks.{layer}.ffn.router": torch.full((4, 8), layer + 0.5) for layer in range(2)}
    fitted = Fitted(routers, {"blocks.1.ffn.w_down": 1.5})
    provenance: dict[str, Any] = {}
    mixture = mix(variant, sources, fitted=fitted, provenance=provenance)
    assert torch.equal(mixture["blocks.1.ffn.router"], routers["blocks.1.ffn.router"])
    assert provenance["blocks.1.ffn.router"]["init"] == "ridge"
    for layer, factor in ((0, 4.0), (1, 1.5)):
        name = f"blocks.{layer}.ffn.w_down"
        assert torch.equal(mixture[name], parents(sources, name) * factor)
        assert provenance[name]["factor"] == factor
    claims = coverage(tensor_shapes(target), rules_for(variant, target), sources).claims
    for name, tensor in mixture.items():
        assert torch.equal(make_tensor(name, target, claims, sources, 0, fitted), tensor), name
    mixture["blocks.1.ffn.router"].fill_(0)
    assert routers["blocks.1.ffn.router"].all(), "the fitted router was handed out itself"


def test_a_fitted_router_is_stored_as_all_tensors_are() -> None:
    routers = {f"blocks.{layer}.ffn.router": torch.full((4, 8), 0.5, dtype=torch.float64) for layer in range(2)}
    variant = replace(ffn_only(), router_init="ridge")
    assert mix(variant, dense_models(), fitted=Fitted(routers))["blocks.0.ffn.router"].dtype == torch.float32


@pytest.mark.parametrize("merge", ["mean", "seed"])
def test_a_factor_of_a_tensor_that_is_no_stack(merge: str) -> None:
    """It is put to what is made, never to what it is made of."""
    sources = dense_models()
    before = parents(sources, "embed.weight").clone()
    plain = mix(ffn_only(merge=merge), sources)["embed.weight"]
    scaled = mix(ffn_only(merge=merge), sources, fitted=Fitted(factors={"embed.weight": 3.0}))["embed.weight"]
    assert torch.equal(scaled, 3 * plain)
    assert torch.equal(parents(sources, "embed.weight"), before)


class Shown(InMemory):
    """It gives out the tensors themselves, as a model in memory does."""

    def get(self, name: str) -> Tensor:
        return self.tensors[name]


def test_a_copy_is_float32_and_its_own() -> None:
    sources = dense_models(dtype=torch.bfloat16)
    own, name = sources["general"].tensors, "blocks.0.ffn.w_up"
    shared = mix(ffn_only(shared_expert=True), sources)["blocks.0.ffn.shared.w_up"]
    assert shared.dtype == torch.float32
    assert torch.equal(shared, own[name].float())
    sources = {model: Shown(source.tensors) for model, source in dense_models().items()}
    own = sources["general"].tensors
    mix(ffn_only(shared_expert=True), sources)["blocks.0.ffn.shared.w_up"].fill_(0)
    assert own[name].any(), "the dense model's tensor was handed out itself"


def test_zeros_are_float32_whatever_torch_starts_from() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        made = mix(ffn_only(balance="bias"), dense_models(dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}
    assert not made["blocks.0.ffn.balance_bias"].any()


def test_routers_start_with_the_std_of_their_variant() -> None:
    name = "blocks.0.ffn.router"
    usual, wide = (mix(replace(ffn_only(), router_std=std), dense_models())[name] for std in (0.02, 0.5))
    torch.testing.assert_close(wide, 25 * usual, rtol=1e-5, atol=0)


@pytest.mark.parametrize("merge", ["mean", "dare"])
def test_one_tensor_made_alone_is_that_of_the_mixture(merge: str) -> None:
    """With its router, random experts and draws: all that hangs on the seed and on the number of layers."""
    sources, variant = dense_models(), ffn_only(merge=merge, experts="random")
    target = mixture_config(DENSE, NAMES, variant)
    claims = coverage(tensor_shapes(target), rules_for(variant, target), sources).claims
    for name, tensor in mix(variant, sources, seed=3).items():
        assert torch.equal(make_tensor(name, target, claims, sources, 3), tensor), name


def test_what_was_fitted_must_fit() -> None:
    variant = replace(ffn_only(), router_init="centroid")
    name = "blocks.0.ffn.router"
    good = {f"blocks.{layer}.ffn.router": torch.ones(4, 8) for layer in range(2)}
    for fitted, expected in (
        (Fitted(), f"{name}: 'centroid': is fitted on text, and no router was (measure first (upcycle.calibrate), or"),
        (Fitted(), "or choose random, zero, orthogonal)"),
        (Fitted(good | {name: torch.ones(3, 8)}), f"{name}: [3, 8]: must be [4, 8]"),
        (Fitted(good | {name: torch.full((4, 8), torch.nan)}), f"fitted.{name}: '32 NaN of 32 values'"),
        (Fitted(good | {"norm.weight": torch.ones(8)}), "norm.weight: [8]: was fitted, and is no new router"),
        (Fitted(good, {"w": 2.0}), "w: 2.0: is the factor of no tensor of the target"),
    ):
        with pytest.raises(InvalidInput) as caught:
            mix(variant, dense_models(), fitted=fitted)
        assert expected in str(caught.value)
