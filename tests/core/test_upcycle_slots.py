"""Which dense model becomes which expert: repeats, subsets, groups, layers, shared experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from upcycle_models import DENSE, NAMES, InMemory, dense_models, mix

from bam_core.checkpoint import tensor_sha256
from bam_core.config import FFNExperts, ModelConfig
from bam_core.nn.lm import LM, init_tensor
from bam_core.nn.shapes import tensor_shapes
from bam_core.seeds import child_seed
from bam_core.upcycle.apply import coverage, upcycle
from bam_core.upcycle.variants import (
    AttentionSpec,
    FFNSpec,
    MergeSpec,
    Variant,
    mixture_config,
    rules_for,
    variant_sources,
)

MATRICES = ("w_gate", "w_up", "w_down")


def ffn_only(name: str = "v", merge: str = "mean", **ffn: Any) -> Variant:
    return Variant(name, "merged", FFNSpec(**ffn), merge=MergeSpec(merge))


def parents(sources: dict[str, InMemory], name: str, slots: tuple[str, ...] = NAMES) -> Tensor:
    return torch.stack([sources[slot].tensors[name] for slot in slots])


def hidden(config: ModelConfig, tensors: dict[str, Tensor], layer: int, h_BTD: Tensor) -> Tensor:
    """What the FFN branch of one layer makes of normed inputs, in float64."""
    model = LM(config)
    model.load_state_dict(tensors)
    found = model.double().blocks[layer].ffn(h_BTD.double())
    return found[0] if isinstance(found, tuple) else found


# --- lists of experts


TOP_3_OF_6 = ("general", "code", "law", "math", "general", "general")
SLOTS = [pytest.param(TOP_3_OF_6[:n] + ("general",) * (n - 6), 1, id=f"BTX of {n} (BAM, Table 4)") for n in range(5, 9)]


SLOTS.append(pytest.param(TOP_3_OF_6, 3, id="top 3 of 6 (BAM, Table 5)"))
SLOTS.append(pytest.param(("law", "general", "law", "code"), 2, id="as many slots as models"))


@pytest.mark.parametrize(("slots", "top_k"), SLOTS)
def test_slots_hold_copies_with_router_rows_of_their_own(slots: tuple[str, ...], top_k: int) -> None:
    sources = dense_models()
    variant = ffn_only(experts=slots, top_k=top_k)
    config = mixture_config(DENSE, NAMES, variant)
    assert config.ffn == FFNExperts(len(slots), top_k, slots=slots)
    assert config.experts == NAMES
    provenance: dict[str, Any] = {}
    mixture = mix(variant, sources, provenance=provenance)
    for name in (f"blocks.1.ffn.{matrix}" for matrix in MATRICES):
        assert torch.equal(mixture[name], parents(sources, name, slots))
        assert [entry["expert"] for entry in provenance[name]["from"]] == list(slots)
        assert [entry["slot"] for entry in provenance[name]["from"]] == list(range(len(slots)))
    rows = mixture["blocks.1.ffn.router"]
    assert len({tensor_sha256(row) for row in rows}) == len(slots)


def test_a_list_of_all_models_in_order_is_per_domain() -> None:
    plain, listed = ffn_only(), ffn_only(experts=NAMES)
    assert mixture_config(DENSE, NAMES, listed) == mixture_config(DENSE, NAMES, plain)
    sources = dense_models()
    first, second = mix(plain, sources), mix(listed, sources)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_without_a_slot_is_merged_and_its_experts_are_set_aside() -> None:
    sources = dense_models()
    variant = Variant("v", AttentionSpec(experts=("law", "code")), FFNSpec(experts=("math", "math", "general")))
    mixture = mix(variant, sources)
    assert torch.equal(mixture["blocks.0.attn.w_q"], parents(sources, "blocks.0.attn.w_q", ("law", "code")))
    assert torch.equal(mixture["embed.weight"], parents(sources, "embed.weight").double().mean(0).float())
    target = mixture_config(DENSE, NAMES, variant)
    found = coverage(tensor_shapes(target), rules_for(variant, target), sources)
    assert "blocks.0.attn.w_q" in found.set_aside["math"]
    assert "blocks.0.attn.w_q" not in found.set_aside["law"]
    assert set(found.set_aside["law"]) == {f"blocks.{layer}.ffn.{name}" for layer in (0, 1) for name in MATRICES}


def test_sparse_upcycling_reads_the_seed_alone() -> None:
    variant = ffn_only("sparse", merge="seed", experts=("general",) * 4)
    assert variant_sources(variant, NAMES) == ("general",)
    sources = dense_models()
    mixture = mix(variant, {name: sources[name] if name == "general" else InMemory({}) for name in NAMES})
    for name, tensor in mixture.items():
        if not name.endswith(".router"):
            own = sources["general"].tensors[name]
            assert torch.equal(tensor, torch.stack([own] * 4) if tensor.shape != own.shape else own), name
    config = mixture_config(DENSE, NAMES, variant)
    assert config.experts == ("general",)
    assert config.expert_labels("ffn") == ("general", "general#2", "general#3", "general#4")
    assert mixture_config(DENSE, ["general"], variant) == config  # as the mix stage sees it


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (ffn_only(), NAMES),
        (ffn_only(experts=("law", "general")), NAMES),
        (ffn_only(merge="seed", experts=("math", "code")), ("general", "code", "math")),
        (ffn_only(merge="seed", experts="random"), NAMES),
        (Variant("v", "merged", "merged", merge=MergeSpec("seed")), ("general",)),
        (Variant("v", "merged", "merged", merge=MergeSpec("weighted", {"law": 1.0})), ("general", "law")),
        (Variant("v", AttentionSpec(experts=("law",)), "merged", merge=MergeSpec("seed")), ("general", "law")),
        (Variant("v", "merged", "merged", merge=MergeSpec("ties")), NAMES),
    ],
)
def test_sources_are_what_is_read(variant: Variant, expected: tuple[str, ...]) -> None:
    assert variant_sources(variant, NAMES) == expected
    sources = dense_models()
    mix(variant, {name: source if name in expected else InMemory({}) for name, source in sources.items()})
    assert all(not sources[name].given for name in NAMES if name not in expected)


# --- random experts


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_random_experts_are_new_in_place_of_trained_ones(part: str) -> None:
    bam = Variant("v", AttentionSpec(), FFNSpec())
    variant = replace(bam, **{part: replace(getattr(bam, part), experts="random")})
    assert mixture_config(DENSE, NAMES, variant) == mixture_config(DENSE, NAMES, bam)
    sources = dense_models()
    mixture, trained = mix(variant, sources, seed=3), mix(bam, sources, seed=3)
    branch = {"attention": ".attn.w_", "ffn": ".ffn.w_"}[part]
    for name, tensor in mixture.items():
        if branch not in name:
            assert torch.equal(tensor, trained[name]), name
            continue
        shape = tuple(tensor.shape[1:])
        expected = [init_tensor(name, shape, 2, child_seed(3, f"random expert {index}")) for index in range(4)]
        assert torch.equal(tensor, torch.stack(expected)), name
        assert len({tensor_sha256(expert) for expert in tensor}) == 4


# --- column groups


def test_groups_of_one_model_start_together_and_are_that_model() -> None:
    """Any router, top-k = split: the k best are the groups of one model; their outputs sum to its FFN over split."""
    sources = dense_models()
    variant = replace(ffn_only(split=3, top_k=3), router_std=0.3)
    config = mixture_config(DENSE, NAMES, variant)
    assert config.ffn == FFNExperts(12, 3, split=3)
    mixture = mix(variant, sources)
    for layer in range(2):
        router = mixture[f"blocks.{layer}.ffn.router"]
        assert torch.equal(router, router[::3].repeat_interleave(3, dim=0))
        assert len({tensor_sha256(row) for row in router}) == 4
        for name in (f"blocks.{layer}.ffn.{matrix}" for matrix in MATRICES):
            for slot, source in enumerate(sources.values()):
                groups = mixture[name][3 * slot : 3 * slot + 3]
                assert torch.equal(groups.reshape(12, 8), source.tensors[name])
    h_ND = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).double()
    logits_NE = h_ND @ mixture["blocks.0.ffn.router"].double().T
    slot_N = logits_NE.argmax(-1) // 3
    assert (logits_NE.topk(3).indices // 3 == slot_N[:, None]).all()
    assert len(slot_N.unique()) == 4
    gate_N = logits_NE.softmax(-1).max(-1).values
    expected = torch.stack(
        [
            hidden(DENSE, list(sources.values())[slot].tensors, 0, h_ND[i : i + 1][None])[0, 0]
            for i, slot in enumerate(slot_N)
        ]
    )
    found = hidden(config, mixture, 0, h_ND[None])[0]
    assert (found - gate_N[:, None] * expected).abs().max() < 1e-6 * expected.abs().max()


# --- a shared expert, some layers, other kinds of keys and values


def test_the_shared_expert_is_the_seeds_ffn_even_when_the_seed_has_no_slot() -> None:
    sources = dense_models()
    variant = ffn_only(shared_expert=True, experts=("law", "code"))
    provenance: dict[str, Any] = {}
    mixture = mix(variant, sources, provenance=provenance)
    for name in MATRICES:
        own = sources["general"].tensors[f"blocks.1.ffn.{name}"]
        assert torch.equal(mixture[f"blocks.1.ffn.shared.{name}"], own)
        entry = provenance[f"blocks.1.ffn.shared.{name}"]
        origin = {"expert": "general", "tensor": f"blocks.1.ffn.{name}", "sha256": tensor_sha256(own)}
        assert (entry["op"], entry["from"]) == ("copy", [origin])


def test_layers_without_experts_are_merged() -> None:
    sources = dense_models()
    variant = Variant("v", AttentionSpec(layers=(1,)), FFNSpec(layers=(0,)))
    patterns = [rule.pattern for rule in rules_for(variant, mixture_config(DENSE, NAMES, variant))]
    assert {"blocks.*.norm.weight", "blocks.1.attn.router", "blocks.0.ffn.router"} <= set(patterns)
    assert "blocks.*.attn.router" not in patterns
    mixture = mix(variant, sources)
    assert mixture.keys() >= {"blocks.1.attn.router", "blocks.0.ffn.router"}
    assert not mixture.keys() & {"blocks.0.attn.router", "blocks.1.ffn.router"}
    for name in ("blocks.1.attn.w_k", "blocks.0.ffn.w_up"):
        assert torch.equal(mixture[name], parents(sources, name))
    for name in ("blocks.0.attn.w_k", "blocks.1.ffn.w_up"):
        assert torch.equal(mixture[name], parents(sources, name).double().mean(0).float())


@pytest.mark.parametrize(
    ("kv", "stacked"),
    [
        ("expert", {"w_q", "w_k", "w_v", "w_o", "q_norm", "k_norm"}),
        ("shared", {"w_q", "w_o", "q_norm"}),
        ("value_only", {"w_v", "w_o"}),
    ],
)
def test_each_kind_of_keys_and_values_stacks_its_own(kv: str, stacked: set[str]) -> None:
    config = replace(DENSE, qk_norm=True)
    sources = dense_models(config)
    mixture = mix(Variant("v", AttentionSpec(kv=kv), "merged"), sources, config)
    for name in ("w_q", "w_k", "w_v", "w_o", "q_norm", "k_norm"):
        full = f"blocks.1.attn.{name}"
        each = parents(sources, full)
        assert torch.equal(mixture[full], each if name in stacked else each.double().mean(0).float()), name


def test_balance_bias_starts_at_zero() -> None:
    mixture = mix(ffn_only(balance="bias"), dense_models())
    assert torch.equal(mixture["blocks.0.ffn.balance_bias"], torch.zeros(4))


@pytest.mark.parametrize("merge", ["mean", "seed", "slerp", "ties", "dare"])
@pytest.mark.parametrize("kv", ["expert", "shared", "value_only"])
@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_every_source_tensor_is_read_or_set_aside(merge: str, kv: str, residual: str) -> None:
    config = replace(DENSE, residual=residual, tie_embeddings=False, qk_norm=True, n_layers=3)
    sources = dense_models(config)
    ffn = FFNSpec(split=2, shared_expert=True, balance="bias", soft_layers=(2,), layers=(0, 2), scale="experts")
    variant = Variant("v", AttentionSpec(kv=kv, layers=(1, 2)), ffn, merge=MergeSpec(merge))
    target = mixture_config(config, NAMES, variant)
    found = coverage(tensor_shapes(target), rules_for(variant, target), sources)
    assert list(found.claims) == list(tensor_shapes(target))
    dict(upcycle(target, rules_for(variant, target), recording := dense_models(config), 0, provenance := {}))
    for model in NAMES:
        read = {entry["tensor"] for made in provenance.values() for entry in made["from"] if entry["expert"] == model}
        assert read.isdisjoint(found.set_aside[model])
        assert read | set(found.set_aside[model]) == set(recording[model].names())
