"""Attention alone, dense and with experts, against public modules: values and gradients, in float64.

Families whose FFN is not a SwiGLU (NeoX, Phi, GPT-J, Falcon) are compared by their attention. JetMoE has the Shared-KV
mixture; Expert-KV and value-only experts are composed of one public attention per expert, as no family has them.
What each must notice: how queries, keys and values are packed; rotary pairs and how many channels rotate; the scale
1/sqrt(C); which gate scales which expert's output; that softmax comes after top-k in JetMoE; whose keys are read.
Mutations, each planted in `test_oracles_can_fail.py`: no 1/sqrt(C); a mask that hides a token from itself; the other
pairing; gates on the wrong experts; softmax before top-k; keys read by the wrong queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hf
import pytest
import torch
from agreement import Agreement
from torch import Tensor, nn
from transformers import CohereConfig, FalconConfig, GPTJConfig, GPTNeoXConfig, JetMoeConfig, PhiConfig
from transformers.models.cohere.modeling_cohere import CohereAttention, CohereRotaryEmbedding
from transformers.models.falcon.modeling_falcon import FalconAttention, FalconRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXRotaryEmbedding
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.jetmoe.modeling_jetmoe import JetMoeAttention, JetMoeRotaryEmbedding
from transformers.models.phi.modeling_phi import PhiAttention, PhiRotaryEmbedding

from bam_core.config import AttentionExperts, ModelConfig
from bam_core.nn.attention import Attention
from bam_core.nn.layers import rotary_tables
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.short_attention import QUERIES, short_attention

N_EXPERTS = 4
PLAIN = replace(hf.OURS, norm="layer")
MHA = replace(PLAIN, n_kv_heads=4)
POSITIONS = torch.arange(hf.TIME)[None]
CAUSAL = torch.full((hf.TIME, hf.TIME), -torch.inf, dtype=torch.float64).triu(1)[None, None]


def positions_of(rotary: nn.Module) -> tuple[Tensor, Tensor]:
    """cos and sin from the family's own code."""
    cos, sin = rotary(hf.hidden(), POSITIONS)
    return cos, sin


def neox(rotary_frac: float) -> tuple[nn.Module, Callable[[Tensor], Tensor], hf.Tensors, dict[str, Any]]:
    """Packed by head: its query, key and value rows side by side."""
    settings = GPTNeoXConfig(
        **hf.TINY, attention_bias=False, rope_parameters={**hf.ROPE, "partial_rotary_factor": rotary_frac}
    )
    settings._attn_implementation = "eager"
    module, rotary = GPTNeoXAttention(settings, 0), GPTNeoXRotaryEmbedding(settings)
    hf.randomise(module, seed=1)
    packed = module.query_key_value.weight.detach().view(4, 3, hf.HEAD_DIM, 32)
    tensors = {f"w_{name}": packed[:, i].flatten(0, 1) for i, name in enumerate("qkv")}
    tensors["w_o"] = module.dense.weight.detach().T
    ours = {"n_kv_heads": 4, "rotary_frac": rotary_frac}
    return module, lambda h: module(h, CAUSAL, position_embeddings=positions_of(rotary))[0], tensors, ours


def phi(rotary_frac: float) -> tuple[nn.Module, Callable[[Tensor], Tensor], hf.Tensors, dict[str, Any]]:
    settings = PhiConfig(**hf.TINY, rope_parameters={**hf.ROPE, "partial_rotary_factor": rotary_frac})
    settings._attn_implementation = "eager"
    module, rotary = PhiAttention(settings, 0), PhiRotaryEmbedding(settings)
    hf.randomise(module, seed=2)
    module.o_proj = module.dense
    call = lambda h: module(h, position_embeddings=positions_of(rotary), attention_mask=CAUSAL)[0]  # noqa: E731
    return module, call, hf.attention(module), {"rotary_frac": rotary_frac}


def gptj(rotary_frac: float) -> tuple[nn.Module, Callable[[Tensor], Tensor], hf.Tensors, dict[str, Any]]:
    settings = GPTJConfig(
        n_embd=32, n_head=4, n_positions=64, rotary_dim=int(hf.HEAD_DIM * rotary_frac), attn_pdrop=0, resid_pdrop=0
    )
    module = GPTJAttention(settings, 0)
    hf.randomise(module, seed=3)
    module.o_proj = module.out_proj
    positions = POSITIONS.expand(2, -1)
    call = lambda h: module(h, attention_mask=CAUSAL, position_ids=positions)[0]  # noqa: E731
    ours = {"n_kv_heads": 4, "rotary_frac": rotary_frac, "rotary_pairs": "interleaved"}
    return module, call, hf.attention(module), ours


def falcon(kv: int) -> tuple[nn.Module, Callable[[Tensor], Tensor], hf.Tensors, dict[str, Any]]:
    """Packed by group: its query heads, then its key, then its value."""
    settings = FalconConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_kv_heads=kv,
        new_decoder_architecture=True,
        alibi=False,
        bias=False,
        rope_parameters=hf.ROPE,
    )
    settings._attn_implementation = "eager"
    module, rotary = FalconAttention(settings, 0), FalconRotaryEmbedding(settings)
    hf.randomise(module, seed=4)
    packed = module.query_key_value.weight.detach().view(kv, 4 // kv + 2, hf.HEAD_DIM, 32)
    tensors = {"w_q": packed[:, :-2].flatten(0, 2), "w_k": packed[:, -2].flatten(0, 1)}
    tensors |= {"w_v": packed[:, -1].flatten(0, 1), "w_o": module.dense.weight.detach().T}
    call = lambda h: module(h, None, CAUSAL, position_embeddings=positions_of(rotary))[0]  # noqa: E731
    return module, call, tensors, {"n_kv_heads": kv}


MODULES = {
    "neox": lambda: neox(1.0),
    "neox-rotary-quarter": lambda: neox(0.25),
    "phi": lambda: phi(1.0),
    "phi-rotary-half": lambda: phi(0.5),
    "gptj": lambda: gptj(1.0),
    "gptj-rotary-half": lambda: gptj(0.5),
    "falcon-gqa": lambda: falcon(2),
    "falcon-mqa": lambda: falcon(1),
}


def our_rotary(config: ModelConfig) -> tuple[Tensor, Tensor]:
    return rotary_tables(hf.TIME, config.rotary_dim, config.rope_theta, torch.float64, torch.device("cpu"))


def input_gradient(output: Tensor, x: Tensor) -> Tensor:
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((output * direction).sum(), x)[0]


@pytest.mark.oracle("T1-T2 dense attention")
@pytest.mark.parametrize("name", MODULES)
def test_dense_attention_is_that_of(name: str, agree: Agreement) -> None:
    module, call, tensors, changes = MODULES[name]()
    config = replace(PLAIN, **changes)
    ours = Attention(config).double()
    ours.load_state_dict(tensors)
    x, y = hf.hidden().requires_grad_(), hf.hidden().requires_grad_()
    actual = ours(x, our_rotary(config))[0]
    with hf.float64_inside(module):
        expected = call(y)
    agree(actual, expected)
    agree(input_gradient(actual, x), input_gradient(expected, y), what="d input")


@pytest.mark.oracle("T6 Shared-KV is JetMoE")
@pytest.mark.parametrize("top_k", [1, 2, N_EXPERTS])
def test_shared_kv_attention_is_that_of_jetmoe(top_k: int, agree: Agreement) -> None:
    """top_k of all experts is BAM's soft routing; fewer is MoA with softmax over the chosen."""
    settings = JetMoeConfig(
        **(hf.TINY | {"num_key_value_heads": 4}),
        kv_channels=hf.HEAD_DIM,
        num_local_experts=N_EXPERTS,
        num_experts_per_tok=top_k,
        rope_parameters=hf.ROPE,
    )
    settings._attn_implementation = "eager"
    theirs, rotary = JetMoeAttention(settings, layer_idx=0), JetMoeRotaryEmbedding(settings)
    hf.randomise(theirs, seed=2)
    ours = MixtureOfAttention(MHA, AttentionExperts(N_EXPERTS, top_k, "shared", "topk_softmax")).double()
    w_k, w_v = theirs.kv_proj.weight.detach().chunk(2)
    ours.load_state_dict(
        {
            "w_q": theirs.experts.input_linear.weight.detach(),
            "w_k": w_k,
            "w_v": w_v,
            "w_o": theirs.experts.output_linear.weight.detach().mT,
            "router": theirs.experts.router.layer.weight.detach(),
        }
    )
    x, y = hf.hidden().requires_grad_(), hf.hidden().requires_grad_()
    actual = ours(x, our_rotary(MHA))[0]
    with hf.float64_inside(theirs):
        expected, *_ = theirs(y, attention_mask=CAUSAL, position_embeddings=positions_of(rotary))
    agree(actual, expected)
    agree(input_gradient(actual, x), input_gradient(expected, y), what="d input")


@pytest.mark.oracle("T7 soft experts are a sum of Cohere attentions")
@pytest.mark.parametrize("kv", ["expert", "shared", "value_only"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("top_k", [1, N_EXPERTS])
def test_mixture_is_the_gated_sum_of_public_attentions(kv: str, qk_norm: bool, top_k: int, agree: Agreement) -> None:
    """sum_e g_e(x) CohereAttention_e(x), with what the experts share tied; g: softmax, then the largest k."""
    theirs = cohere_experts(qk_norm, kv)
    router = torch.randn(N_EXPERTS, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    each = [hf.attention(expert) for expert in theirs]
    shared = {"expert": (), "shared": ("w_k", "w_v", "k_norm"), "value_only": ("w_q", "w_k", "q_norm", "k_norm")}[kv]
    tensors = {name: each[0][name] if name in shared else torch.stack([e[name] for e in each]) for name in each[0]}
    config = replace(PLAIN, qk_norm=qk_norm, rotary_pairs="interleaved")
    ours = MixtureOfAttention(config, AttentionExperts(N_EXPERTS, top_k, kv)).double()
    ours.load_state_dict(tensors | {"router": router})

    probs = (hf.hidden() @ router.T).softmax(-1)
    gate = probs if top_k == N_EXPERTS else probs * (probs == probs.amax(-1, keepdim=True))
    embeddings = positions_of(CohereRotaryEmbedding(theirs[0].config))
    with hf.float64_inside(*theirs):
        outputs = [expert(hf.hidden(), embeddings, CAUSAL)[0] for expert in theirs]
    agree(ours(hf.hidden(), our_rotary(config))[0], sum(gate[..., i, None] * out for i, out in enumerate(outputs)))


def cohere_experts(qk_norm: bool, kv: str) -> list[CohereAttention]:
    settings = CohereConfig(**hf.TINY, rope_parameters=hf.ROPE, use_qk_norm=qk_norm)
    settings._attn_implementation = "eager"
    theirs = [CohereAttention(settings, 0) for _ in range(N_EXPERTS)]
    for i, expert in enumerate(theirs):
        hf.randomise(expert, seed=10 + i)
    tied = {"expert": "", "shared": "kv", "value_only": "qk"}[kv]
    for expert in theirs[1:]:
        for name in tied:
            setattr(expert, f"{name}_proj", getattr(theirs[0], f"{name}_proj"))
            if qk_norm and name != "v":
                setattr(expert, f"{name}_norm", getattr(theirs[0], f"{name}_norm"))
    return theirs


@pytest.mark.oracle("T8 tied Expert-KV is Shared-KV, value-only too")
@pytest.mark.parametrize("kv", ["shared", "value_only"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_tied_experts_are_shared_ones(kv: str, n_kv_heads: int, agree: Agreement) -> None:
    """Expert-KV with one and the same matrix in every slot, under MQA, GQA and MHA, with QK-norm."""
    config = replace(PLAIN, n_kv_heads=n_kv_heads, qk_norm=True, rotary_frac=0.5)
    fewer = MixtureOfAttention(config, AttentionExperts(N_EXPERTS, N_EXPERTS, kv))
    hf.randomise(fewer, seed=6)
    full = MixtureOfAttention(config, AttentionExperts(N_EXPERTS, N_EXPERTS, "expert")).double()
    full.load_state_dict(
        {name: w.detach().expand(full.get_parameter(name).shape).clone() for name, w in fewer.named_parameters()}
    )
    x, y = hf.hidden().requires_grad_(), hf.hidden().requires_grad_()
    actual, expected = fewer(x, our_rotary(config))[0], full(y, our_rotary(config))[0]
    agree(actual, expected)
    agree(input_gradient(actual, x), input_gradient(expected, y), what="d input")


@pytest.mark.oracle("T2 the attention of bf16 on a CPU is torch's, in float64")
@pytest.mark.parametrize("n_time", [hf.TIME, QUERIES + 7])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_short_attention_is_that_of_torch(n_kv_heads: int, n_time: int, agree: Agreement) -> None:
    """In one block of queries and in two; values wider than keys, as value-only experts have them."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(2, n_time, 4, 8), (2, n_time, n_kv_heads, 8), (2, n_time, n_kv_heads, 24)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    actual = short_attention(*inputs)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in inputs), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    agree(actual, expected)
    direction = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    grads = [torch.autograd.grad((out * direction).sum(), inputs) for out in (actual, expected)]
    for name, grad, expected_grad in zip("qkv", *grads, strict=True):
        agree(grad, expected_grad, what=f"d {name}")
