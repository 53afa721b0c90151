"""Mixtures against public modules: gates, Shared-KV attention, and the whole of BAM composed from them."""

from __future__ import annotations

from dataclasses import replace

import hf
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Cohere2MoeConfig,
    Cohere2MoeForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FlexOlmoConfig,
    JetMoeConfig,
    MixtralConfig,
)
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.flex_olmo.modeling_flex_olmo import FlexOlmoSparseMoeBlock
from transformers.models.jetmoe.modeling_jetmoe import JetMoeAttention
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.layers import rotary_tables
from bam_core.nn.lm import LM
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts

FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
N_EXPERTS = 4
NAMES = ("general", "code", "law", "math")
OURS = ModelConfig(
    vocab_size=101,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=48,
    max_seq_len=64,
    norm="layer",
    experts=NAMES,
)
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
TIME = 13
CAUSAL = torch.full((TIME, TIME), -torch.inf).triu(1)[None, None]


def hidden() -> Tensor:
    return torch.randn(2, TIME, 32, generator=torch.Generator().manual_seed(0))


def flex_olmo(top_k: int, *, renormalise: bool = False) -> FlexOlmoSparseMoeBlock:
    settings = FlexOlmoConfig(
        **hf.TINY,
        num_experts=N_EXPERTS,
        num_experts_per_tok=top_k,
        norm_topk_prob=renormalise,
        pad_token_id=0,
    )
    settings._experts_implementation_internal = "eager"
    return FlexOlmoSparseMoeBlock(settings)


def mixtral(top_k: int) -> MixtralSparseMoeBlock:
    settings = MixtralConfig(**hf.TINY, num_local_experts=N_EXPERTS, num_experts_per_tok=top_k)
    settings._experts_implementation_internal = "eager"
    return MixtralSparseMoeBlock(settings).eval()


@pytest.mark.parametrize("top_k", [1, 2, N_EXPERTS])
@pytest.mark.parametrize("gate", ["softmax_topk", "softmax_topk_renorm", "topk_softmax"])
def test_ffn_experts_and_gates_are_those_of_flexolmo_and_mixtral(top_k: int, gate: str) -> None:
    """Mixtral takes softmax, then top-k, then renormalises: both of BTX's spellings must equal it."""
    theirs = {
        "softmax_topk": lambda: flex_olmo(top_k),
        "softmax_topk_renorm": lambda: flex_olmo(top_k, renormalise=True),
        "topk_softmax": lambda: mixtral(top_k),
    }[gate]()
    hf.randomise(theirs, seed=1)
    ours = MixtureOfExperts(OURS, FFNExperts(N_EXPERTS, top_k, gate))
    ours.load_state_dict(hf.experts(theirs))
    torch.testing.assert_close(ours(hidden())[0], theirs(hidden()), **FLOAT32)


@pytest.mark.parametrize("top_k", [1, 2, N_EXPERTS])
def test_shared_kv_attention_is_that_of_jetmoe(top_k: int) -> None:
    settings = JetMoeConfig(
        **(hf.TINY | {"num_key_value_heads": 4}),
        kv_channels=hf.HEAD_DIM,
        num_local_experts=N_EXPERTS,
        num_experts_per_tok=top_k,
    )
    settings._attn_implementation = "eager"
    theirs = JetMoeAttention(settings, layer_idx=0)
    hf.randomise(theirs, seed=2)
    ours = MixtureOfAttention(replace(OURS, n_kv_heads=4), AttentionExperts(N_EXPERTS, top_k, "shared", "topk_softmax"))
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
    cos, sin = rotary_tables(TIME, hf.HEAD_DIM, 10_000.0, torch.float32, torch.device("cpu"))
    their_rotary = (
        cos[None],
        torch.cat((-sin[:, :4], sin[:, 4:]), -1)[None],
    )  # ours carries rotate-half's sign
    expected, *_ = theirs(hidden(), attention_mask=CAUSAL, position_embeddings=their_rotary)
    torch.testing.assert_close(ours(hidden(), (cos, sin))[0], expected, **FLOAT32)


class SoftAttention(nn.Module):
    """sum_e g_e(x) CohereAttention_e(x): what BAM's attention means, in public parts. No HF model has it."""

    def __init__(self, settings: CohereConfig, layer: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(CohereAttention(settings, layer) for _ in range(N_EXPERTS))
        self.router = nn.Linear(settings.hidden_size, N_EXPERTS, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        gate = self.router(hidden_states).softmax(-1)
        outputs = [expert(hidden_states, **kwargs)[0] for expert in self.experts]
        return sum(gate[..., i, None] * output for i, output in enumerate(outputs)), None


def public_bam(kv: str) -> CohereForCausalLM:
    settings = CohereConfig(**hf.TINY, logit_scale=1.0, rope_parameters=ROPE, use_cache=False)
    model = CohereForCausalLM(settings).eval()
    for i, layer in enumerate(model.model.layers):
        layer.self_attn = SoftAttention(settings, i)
        layer.mlp = flex_olmo(top_k=1)
    hf.randomise(model, seed=3)
    if kv == "shared":
        for layer in model.model.layers:
            for expert in layer.self_attn.experts[1:]:
                expert.k_proj = layer.self_attn.experts[0].k_proj
                expert.v_proj = layer.self_attn.experts[0].v_proj
    return model


def in_our_layout(model: CohereForCausalLM, kv: str) -> dict[str, Tensor]:
    tensors = {
        "embed.weight": model.model.embed_tokens.weight.detach(),
        "norm.weight": model.model.norm.weight.detach(),
    }
    for i, layer in enumerate(model.model.layers):
        each = [hf.attention(expert, interleaved=True) for expert in layer.self_attn.experts]
        attention = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        if kv == "shared":
            attention |= {name: attention[name][0] for name in ("w_k", "w_v")}
        attention["router"] = layer.self_attn.router.weight.detach()
        tensors[f"blocks.{i}.norm.weight"] = layer.input_layernorm.weight.detach()
        tensors |= hf.prefixed(f"blocks.{i}.attn", attention)
        tensors |= hf.prefixed(f"blocks.{i}.ffn", hf.experts(layer.mlp))
    return tensors


def gradients_as_weights(model: nn.Module) -> None:
    """Put each gradient in its parameter's place, so that one conversion of layout serves both."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad)


@pytest.mark.parametrize("kv", ["expert", "shared"])
def test_whole_bam_has_the_logits_and_gradients_of_its_composition(kv: str) -> None:
    theirs = public_bam(kv)
    ours = LM(replace(OURS, attention=AttentionExperts(N_EXPERTS, N_EXPERTS, kv), ffn=FFNExperts(N_EXPERTS)))
    ours.load_state_dict(in_our_layout(theirs, kv))
    tokens_BT = torch.randint(101, (2, TIME), generator=torch.Generator().manual_seed(4))
    actual, expected = ours.logits(ours(tokens_BT).hidden_BTD), theirs(tokens_BT).logits
    torch.testing.assert_close(actual, expected, **FLOAT32)

    direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(5))
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients_as_weights(theirs)
    for name, grad in in_our_layout(theirs, kv).items():
        scale = grad.abs().max().item()
        ours_grad = ours.get_parameter(name).grad
        torch.testing.assert_close(ours_grad, grad, rtol=0, atol=2e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("top_k", [1, 2])
def test_btx_is_a_cohere2_moe(top_k: int) -> None:
    settings = Cohere2MoeConfig(
        **hf.TINY,
        head_dim=hf.HEAD_DIM,
        logit_scale=1.0,
        num_experts=N_EXPERTS,
        num_experts_per_tok=top_k,
        expert_selection_fn="softmax",
        layer_types=["sliding_attention"] * 2,
        mlp_layer_types=["sparse"] * 2,
        sliding_window=64,
    )
    theirs = Cohere2MoeForCausalLM(settings).eval()
    theirs.set_experts_implementation("eager")
    hf.randomise(theirs, seed=6)
    tensors = {
        "embed.weight": theirs.model.embed_tokens.weight.detach(),
        "norm.weight": theirs.model.norm.weight.detach(),
    }
    for i, layer in enumerate(theirs.model.layers):
        tensors[f"blocks.{i}.norm.weight"] = layer.input_layernorm.weight.detach()
        tensors |= hf.prefixed(f"blocks.{i}.attn", hf.attention(layer.self_attn, interleaved=True))
        tensors |= hf.prefixed(f"blocks.{i}.ffn", hf.experts(layer.mlp))
    ours = LM(replace(OURS, ffn=FFNExperts(N_EXPERTS, top_k, "topk_softmax")))
    ours.load_state_dict(tensors)
    tokens_BT = torch.randint(101, (2, TIME), generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(ours.logits(ours(tokens_BT).hidden_BTD), theirs(tokens_BT).logits, **FLOAT32)
