"""Upcycling: experts are copied to the bit, shared tensors are exact means, little is in memory at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upcycle_models import DENSE, NAMES, InMemory, dense_models, mix

from bam_core.checkpoint import open_tensors, read_digests, tensor_sha256, write_model
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.apply import coverage, upcycle
from bam_core.upcycle.variants import VARIANTS, FFNSpec, MergeSpec, Variant, mixture_config, rules_for, variant_sources

EXPERT_TENSORS = {
    "bam": {"attn.w_q", "attn.w_k", "attn.w_v", "attn.w_o", "ffn.w_gate", "ffn.w_up", "ffn.w_down"},
    "bam_shared_kv": {"attn.w_q", "attn.w_o", "ffn.w_gate", "ffn.w_up", "ffn.w_down"},
    "btx": {"ffn.w_gate", "ffn.w_up", "ffn.w_down"},
    "soup": set(),
}
"""BAM, section 4: which tensors stay experts; everything else is averaged."""

BAM = VARIANTS["bam"]
BAM_RULES = rules_for(BAM, mixture_config(DENSE, NAMES, BAM))
BAM_SHAPES = tensor_shapes(mixture_config(DENSE, NAMES, BAM))


# --- what is made


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_experts_are_copied_and_the_rest_is_averaged(variant: str, residual: str, tie_embeddings: bool) -> None:
    config = replace(DENSE, residual=residual, tie_embeddings=tie_embeddings)
    sources = dense_models(config)
    mixture = mix(VARIANTS[variant], sources, config)

    assert {name: tuple(tensor.shape) for name, tensor in mixture.items()} == tensor_shapes(
        mixture_config(config, NAMES, VARIANTS[variant])
    )
    for name, tensor in mixture.items():
        assert tensor.dtype == torch.float32
        if name.endswith(".router"):
            continue
        parents = torch.stack([source.tensors[name] for source in sources.values()])
        is_expert = name.split(".", 2)[-1] in EXPERT_TENSORS[variant]
        expected = parents if is_expert else parents.double().mean(0).float()
        assert torch.equal(tensor, expected), name


def test_every_expert_comes_back_to_the_bit() -> None:
    sources = dense_models(dtype=torch.bfloat16)
    mixture = mix(BAM, sources)
    for i, source in enumerate(sources.values()):
        for name, tensor in source.tensors.items():
            if mixture[name].shape != tensor.shape:
                assert torch.equal(mixture[name][i].bfloat16(), tensor), name


def test_copy_takes_the_seeds_tensor_and_sets_the_others_aside() -> None:
    rules = [replace(rule, op="copy") if rule.pattern == "embed.weight" else rule for rule in BAM_RULES]
    sources = dense_models()
    sources["law"].tensors["embed.weight"] = torch.zeros(3, 8)
    del sources["math"].tensors["embed.weight"]
    target = mixture_config(DENSE, NAMES, BAM)
    mixture = dict(upcycle(target, rules, sources, seed=0))
    assert torch.equal(mixture["embed.weight"], sources["general"].tensors["embed.weight"])
    found = coverage(BAM_SHAPES, rules, sources)
    assert found.set_aside == {"general": (), "code": ("embed.weight",), "law": ("embed.weight",), "math": ()}
    assert found.claims["embed.weight"].op == "copy"


def test_copies_of_a_model_make_a_mixture_that_is_the_dense_model() -> None:
    """Soft gates sum to 1 in both branches, so copies of one model give that model but for rounding."""
    dense = LM(DENSE)
    init_weights(dense, seed=1)
    sources = {name: InMemory(dense.state_dict()) for name in NAMES}
    soft = replace(BAM, ffn=replace(BAM.ffn, top_k=4))
    mixture = LM(mixture_config(DENSE, NAMES, soft))
    mixture.load_state_dict(mix(soft, sources))
    tokens_BT = torch.arange(12)[None]
    same = mixture.double()(tokens_BT).hidden_BTD - dense.double()(tokens_BT).hidden_BTD
    assert same.abs().max() < 1e-12  # float64 rounding of values about 1


def test_one_hot_routers_give_the_dense_expert() -> None:
    """Channel 0 of the residual stream is a constant here, so it can carry logits of +-1e4 for any input."""
    sources = dense_models()
    for source in sources.values():
        for name, tensor in source.tensors.items():
            if name.endswith("norm.weight"):
                tensor.fill_(1)
            elif name == "embed.weight":
                tensor[:, 0] = 2
            elif name.endswith(("w_o", "w_down")):
                tensor[:, 0] = 0
    target = mixture_config(DENSE, NAMES, BAM)
    tensors = mix(BAM, sources)
    tokens_BT = torch.arange(16)[None]
    for i, source in enumerate(sources.values()):
        one_hot = {
            name: source.tensors[name] if tensor.shape == source.tensors.get(name, torch.empty(0)).shape else tensor
            for name, tensor in tensors.items()
        }
        for name in one_hot:
            if name.endswith(".router"):
                one_hot[name] = torch.zeros(4, 8)
                one_hot[name][:, 0] = -1e4
                one_hot[name][i, 0] = 1e4
        dense, mixture = LM(DENSE), LM(target)
        dense.load_state_dict(source.tensors)
        mixture.load_state_dict(one_hot)
        expected = dense.double().logits(dense(tokens_BT).hidden_BTD)
        logits = mixture.double().logits(mixture(tokens_BT).hidden_BTD)
        assert (logits - expected).abs().max() < 1e-12 * expected.abs().max()


# --- routers


def test_router_values_depend_on_seed_and_name_only() -> None:
    sources = dense_models()
    bam, again, other = mix(BAM, sources), mix(BAM, sources), mix(BAM, sources, seed=1)
    btx = mix(VARIANTS["btx"], sources)
    routers = [name for name in bam if name.endswith(".router")]
    assert len(routers) == 4
    assert all(torch.equal(bam[name], again[name]) for name in bam)
    assert not any(torch.equal(bam[name], other[name]) for name in routers)
    assert len({tensor_sha256(bam[name]) for name in routers}) == 4
    assert torch.equal(btx["blocks.1.ffn.router"], bam["blocks.1.ffn.router"])


def test_random_routers_leave_global_random_state_alone_and_have_the_stated_spread() -> None:
    before = torch.get_rng_state()
    wide = replace(DENSE, d_model=512, d_ff=4, vocab_size=2)
    routers = [tensor for name, tensor in mix(BAM, dense_models(wide), wide).items() if name.endswith(".router")]
    values = torch.cat([router.flatten() for router in routers])
    assert torch.equal(torch.get_rng_state(), before)
    assert values.std().item() == pytest.approx(0.02, rel=0.05)  # 8192 samples: three sigma are 2.4 %
    assert abs(values.mean().item()) < 4 * 0.02 / len(values) ** 0.5


def test_zero_routers() -> None:
    mixture = mix(replace(BAM, router_init="zero"), dense_models())
    assert all(not tensor.any() for name, tensor in mixture.items() if name.endswith(".router"))


# --- provenance and memory


def test_provenance_says_where_each_tensor_came_from() -> None:
    sources = dense_models(dtype=torch.bfloat16)
    provenance: dict[str, object] = {}
    made = mix(BAM, sources, provenance=provenance)
    assert list(provenance) == list(BAM_SHAPES)
    for name, op in (("blocks.1.ffn.w_up", "stack"), ("norm.weight", "mean")):
        assert provenance[name] == {
            "op": op,
            "from": [
                {"expert": expert, "tensor": name, "sha256": tensor_sha256(source.tensors[name])}
                | ({"slot": index} if op == "stack" else {})
                for index, (expert, source) in enumerate(sources.items())
            ],
            "sha256": tensor_sha256(made[name]),
        }
    assert provenance["blocks.0.attn.router"] == {
        "op": "fresh",
        "from": [],
        "init": "random",
        "sha256": tensor_sha256(made["blocks.0.attn.router"]),
    }


def test_sums_that_are_known_are_taken_and_others_made() -> None:
    """Those of a model's own tensors; what the mixture's come to is always what was made."""
    sources, target = dense_models(), mixture_config(DENSE, NAMES, BAM)
    hashed: dict[str, Any] = {}
    made = mix(BAM, sources, provenance=hashed)
    known = {name: {tensor: f"{name}'s {tensor}" for tensor in source.names()} for name, source in sources.items()}
    del known["law"], known["code"]["blocks.1.ffn.w_up"]
    told: dict[str, Any] = {}
    again = dict(upcycle(target, BAM_RULES, sources, 0, told, digests=known))
    assert all(torch.equal(tensor, made[name]) for name, tensor in again.items())
    for name, entry in told.items():
        assert entry["sha256"] == hashed[name]["sha256"]
        for part, by_hand in zip(entry["from"], hashed[name]["from"], strict=True):
            assert part["sha256"] == known.get(part["expert"], {}).get(part["tensor"], by_hand["sha256"])


@pytest.mark.parametrize("scale", ["none", "experts"])
def test_sums_are_of_what_was_written(tmp_path: Path, scale: Any) -> None:
    """Column groups, copies, factors: whatever the parts in which a tensor is hashed while it is made."""
    variant = replace(BAM, ffn=FFNSpec(split=2, top_k=2, scale=scale, experts=(*NAMES, "law")))
    sources, made = dense_models(), dict[str, Any]()
    target = mixture_config(DENSE, NAMES, variant)
    tensors = upcycle(target, rules_for(variant, target), sources, 0, made)
    write_model(tmp_path, target, tensors, tokenizer=None, card=None, max_shard_bytes=3000, made=made)
    stored = open_tensors(tmp_path)
    sums = {name: tensor_sha256(stored.get(name)) for name in stored.names()}
    assert read_digests(tmp_path) == sums == {name: entry["sha256"] for name, entry in sorted(made.items())}
    assert any("factor" in entry for entry in made.values()) == (scale == "experts")


MERGED_SOUPS = {
    method: Variant("v", "merged", "merged", merge=MergeSpec(method, weights))
    for method, weights in {
        "mean": {},
        "weighted": {"general": 0.7, "law": 0.3},
        "seed": {},
        "slerp": {},
        "dare": {},
        "ties": {},
    }.items()
}
MOST_LIVE = {"dare": 2, "ties": 4}
"""Source tensors that a merge needs at once: DARE the seed's beside one more, TIES all; else one."""


@pytest.mark.parametrize("variant", [BAM, *MERGED_SOUPS.values()], ids=["bam", *MERGED_SOUPS])
def test_one_source_tensor_and_one_target_tensor_are_alive(variant: Variant) -> None:
    sources = dense_models()
    made: list[weakref.ref[Tensor]] = []
    most_live = 0

    class Counted(InMemory):
        def get(self, name: str) -> Tensor:
            nonlocal most_live
            tensor = super().get(name)
            most_live = max(most_live, sum(source.live() for source in counted.values()))
            assert all(ref() is None for ref in made), "an earlier target tensor is still held"
            return tensor

    counted = {name: Counted(sources[name].tensors) for name in variant_sources(variant, NAMES)}
    target = mixture_config(DENSE, NAMES, variant)

    def drained(tensors: Iterator[tuple[str, Tensor]]) -> None:
        for _, tensor in tensors:
            made.append(weakref.ref(tensor))
            del tensor

    gc.disable()  # nothing may wait for the collector
    try:
        drained(upcycle(target, rules_for(variant, target), counted, 0, provenance={}))
    finally:
        gc.enable()
    assert most_live == MOST_LIVE.get(variant.merge.method, 1)
    assert len(made) == len(tensor_shapes(target))
