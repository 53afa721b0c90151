"""Dense models against six public families: logits of the whole model and the gradient of every tensor, in float64.

What each must notice: pairs of rotary channels (interleaved or half, all or a part of them), the place and the scale
of QK-norm, the kind of norm, one norm or two per block, how queries share keys, which matrix makes the logits.
Mutations, each planted in `test_oracles_can_fail.py`: the other rotary pairing; the norm without its mean; the
fraction of rotating channels ignored; queries that read the keys of another group; no QK-norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import hf
import pytest
import torch
from agreement import Agreement
from torch import nn
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Cohere2MoeConfig,
    Cohere2MoeForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from bam_core.nn.attention import Attention
from bam_core.nn.layers import rotary_tables
from bam_core.nn.lm import LM

FLOAT32_INSIDE = 2e-6
"""A few roundings of float32, on logits of order 10."""

ONE_NORM = {"norm": "input_layernorm"}
TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def cohere(kv: int, qk_norm: bool) -> nn.Module:
    settings = hf.TINY | {"num_key_value_heads": kv}
    return CohereForCausalLM(
        CohereConfig(**settings, logit_scale=1.0, rope_parameters=hf.ROPE, use_qk_norm=qk_norm, use_cache=False)
    )


def cohere2(kv: int) -> nn.Module:
    """Rotary embedding on sliding layers only, so all are sliding, with a window longer than the text."""
    settings = hf.TINY | {"num_key_value_heads": kv}
    sliding = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 64}
    return Cohere2ForCausalLM(
        Cohere2Config(
            **settings, **sliding, head_dim=hf.HEAD_DIM, logit_scale=1.0, rope_parameters=hf.ROPE, use_cache=False
        )
    )


def cohere2_moe_without_experts() -> nn.Module:
    """The one public parallel block with an RMS norm."""
    return Cohere2MoeForCausalLM(
        Cohere2MoeConfig(
            **hf.TINY,
            head_dim=hf.HEAD_DIM,
            logit_scale=1.0,
            layer_types=["sliding_attention"] * 2,
            sliding_window=64,
            mlp_layer_types=["dense"] * 2,
            prefix_dense_intermediate_size=48,
            rms_norm_eps=1e-5,
            use_cache=False,
        )
    )


def stablelm(rotary: float, parallel: bool, qk_norm: bool = False, tied: bool = False) -> nn.Module:
    return StableLmForCausalLM(
        StableLmConfig(
            **hf.TINY,
            use_parallel_residual=parallel,
            qk_layernorm=qk_norm,
            tie_word_embeddings=tied,
            rope_parameters={**hf.ROPE, "partial_rotary_factor": rotary},
            use_cache=False,
        )
    )


def llama(kv: int) -> nn.Module:
    settings = hf.TINY | {"num_key_value_heads": kv}
    return LlamaForCausalLM(
        LlamaConfig(**settings, rms_norm_eps=1e-5, rope_parameters=hf.ROPE, tie_word_embeddings=False, use_cache=False)
    )


def qwen3() -> nn.Module:
    """QK-norm by RMS, one scale for all heads."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            **hf.TINY,
            head_dim=hf.HEAD_DIM,
            rms_norm_eps=1e-5,
            rope_parameters=hf.ROPE,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )


@dataclass(frozen=True)
class Family:
    """How to build theirs, what our config differs in, and how tensors map."""

    build: Callable[[], nn.Module]
    ours: dict[str, Any] = field(default_factory=dict)
    permute: bool = False
    """To half pairs by a permutation of rows, rather than by `rotary_pairs`."""
    gradients: bool = True


COHERE = {"norm": "layer", "rotary_pairs": "interleaved"}
UNTIED = {"tie_embeddings": False}
SEQUENTIAL = {"residual": "sequential"}
FAMILIES = {
    "cohere": Family(partial(cohere, 2, False), COHERE),
    "cohere-mha": Family(partial(cohere, 4, False), COHERE | {"n_kv_heads": 4}),
    "cohere-mqa": Family(partial(cohere, 1, False), COHERE | {"n_kv_heads": 1}),
    "cohere-permuted": Family(partial(cohere, 2, False), {"norm": "layer"}, permute=True),
    "cohere-qk-norm": Family(partial(cohere, 2, True), COHERE | {"qk_norm": True}),
    "cohere-qk-norm-permuted": Family(partial(cohere, 2, True), {"norm": "layer", "qk_norm": True}, permute=True),
    "cohere2": Family(partial(cohere2, 2), COHERE),
    "cohere2-mqa": Family(partial(cohere2, 1), COHERE | {"n_kv_heads": 1}),
    "cohere2-moe-dense-rms": Family(cohere2_moe_without_experts, {"rotary_pairs": "interleaved"}),
    "stablelm": Family(partial(stablelm, 1.0, True), UNTIED | {"norm": "layer"}),
    "stablelm-tied": Family(partial(stablelm, 1.0, True, tied=True), {"norm": "layer"}),
    "stablelm-sequential": Family(partial(stablelm, 1.0, False), UNTIED | SEQUENTIAL | {"norm": "layer"}),
    "stablelm-rotary-half": Family(partial(stablelm, 0.5, True), UNTIED | {"norm": "layer", "rotary_frac": 0.5}),
    "stablelm-rotary-quarter": Family(partial(stablelm, 0.25, True), UNTIED | {"norm": "layer", "rotary_frac": 0.25}),
    "stablelm-rotary-quarter-sequential": Family(
        partial(stablelm, 0.25, False), UNTIED | SEQUENTIAL | {"norm": "layer", "rotary_frac": 0.25}
    ),
    "stablelm-qk-norm-rotary-half": Family(
        partial(stablelm, 0.5, True, True), UNTIED | {"norm": "layer", "rotary_frac": 0.5, "qk_norm": True}
    ),
    "llama": Family(partial(llama, 2), UNTIED | SEQUENTIAL),
    "llama-mha": Family(partial(llama, 4), UNTIED | SEQUENTIAL | {"n_kv_heads": 4}),
    "llama-mqa": Family(partial(llama, 1), UNTIED | SEQUENTIAL | {"n_kv_heads": 1}),
    # One scale for all of their heads, one each for ours: the gradients are not the same tensors.
    "qwen3": Family(qwen3, SEQUENTIAL | {"qk_norm": True}, gradients=False),
}


@pytest.mark.oracle("T1-T2 dense model")
@pytest.mark.parametrize("name", FAMILIES)
def test_dense_model_has_the_logits_and_gradients_of(name: str, agree: Agreement) -> None:
    family = FAMILIES[name]
    theirs = family.build()
    hf.randomise(theirs, seed=1)
    config = replace(hf.OURS, **family.ours)
    norms = ONE_NORM if config.residual == "parallel" else TWO_NORMS
    to_ours = partial(hf.layout, norms=norms, attention=partial(hf.attention, permute=family.permute))
    hf.compare(agree, theirs, to_ours, config, gradients=family.gradients)


@pytest.mark.oracle("T1-T2 dense model, as published")
@pytest.mark.parametrize("name", FAMILIES)
def test_dense_model_agrees_with_the_family_as_published(name: str, agree: Agreement) -> None:
    """With their own casts to float32 inside: what `float64_inside` takes away is precision and nothing else."""
    family = FAMILIES[name]
    theirs = family.build()
    hf.randomise(theirs, seed=1)
    config = replace(hf.OURS, **family.ours)
    norms = ONE_NORM if config.residual == "parallel" else TWO_NORMS
    ours = LM(config).double()
    ours.load_state_dict(hf.layout(theirs, norms, partial(hf.attention, permute=family.permute)))
    agree(ours.logits(ours(hf.tokens()).hidden_BTD), theirs(hf.tokens()).logits, FLOAT32_INSIDE)


@pytest.mark.oracle("T3 rotary pairs by permutation")
@pytest.mark.parametrize("rotary_frac", [1.0, 0.5])
def test_interleaved_pairs_are_half_pairs_of_permuted_rows(rotary_frac: float, agree: Agreement) -> None:
    """Both of our pairings, one set of weights: rows (0, 2, 4, .., 1, 3, 5, ..) of each head's rotating channels."""
    half = replace(hf.OURS, rotary_frac=rotary_frac)
    theirs, ours = Attention(replace(half, rotary_pairs="interleaved")), Attention(half)
    hf.randomise(theirs, seed=2)
    n_rotary = half.rotary_dim
    order = [*range(0, n_rotary, 2), *range(1, n_rotary, 2), *range(n_rotary, hf.HEAD_DIM)]
    weights = {name: w.detach() for name, w in theirs.named_parameters()}
    for name in ("w_q", "w_k"):
        weights[name] = weights[name].unflatten(0, (-1, hf.HEAD_DIM))[:, order].flatten(0, 1)
    ours.double().load_state_dict(weights)
    rotary = rotary_tables(hf.TIME, n_rotary, 10_000.0, torch.float64, torch.device("cpu"))
    agree(ours(hf.hidden(), rotary)[0], theirs(hf.hidden(), rotary)[0])
