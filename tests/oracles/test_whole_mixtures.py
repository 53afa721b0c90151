"""Whole mixtures against models composed of public parts, and against the dense models that they must become.

T9, BAM: Cohere (parallel) and Llama (sequential) with their attention replaced by a gated sum of their own attention
modules and their FFN by FlexOlmo's block: logits and the gradient of every tensor. BTX: Cohere2Moe as published, also
with a shared expert. T10: N copies of one dense model are that model. T11: a saturated router is one dense expert.
T14: decoding with a cache, in pieces, with rows of different lengths, is the whole text at once.
What each must notice: both branches read one norm (or two), gates and experts in one order, keys and values shared or
not, positions that go on after a cache and start after a row's pads.
Mutations, each planted in `test_oracles_can_fail.py`: gates on the wrong experts; another gate; no shared expert; one
branch that reads the stream without its norm; a position off by one; pads that are attended to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import hf
import pytest
import torch
from agreement import Agreement
from torch import Tensor, nn
from transformers import (
    Cohere2MoeConfig,
    Cohere2MoeForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FlexOlmoConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.flex_olmo.modeling_flex_olmo import FlexOlmoSparseMoeBlock
from transformers.models.llama.modeling_llama import LlamaAttention

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.attention import Cache
from bam_core.nn.lm import LM

N_EXPERTS = 4
NAMES = ("general", "code", "law", "math")
OURS = replace(hf.OURS, norm="layer", rotary_pairs="interleaved", experts=NAMES)
KV = ("expert", "shared", "value_only")
SHARED = {"expert": (), "shared": ("w_k", "w_v", "k_norm"), "value_only": ("w_q", "w_k", "q_norm", "k_norm")}


class SoftAttention(nn.Module):
    """sum_e g_e(x) Attention_e(x): what BAM's attention means, in public parts. No HF model has it."""

    def __init__(self, build: Callable[[], nn.Module], kv: str) -> None:
        super().__init__()
        self.experts = nn.ModuleList(build() for _ in range(N_EXPERTS))
        self.router = nn.Linear(32, N_EXPERTS, bias=False)
        for expert in self.experts[1:]:
            for name in {"expert": "", "shared": "kv", "value_only": "qk"}[kv]:
                setattr(expert, f"{name}_proj", getattr(self.experts[0], f"{name}_proj"))
                if hasattr(expert, f"{name}_norm"):
                    setattr(expert, f"{name}_norm", getattr(self.experts[0], f"{name}_norm"))

    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        gate = self.router(hidden_states).softmax(-1)
        outputs = [expert(hidden_states=hidden_states, **kwargs)[0] for expert in self.experts]
        return sum(gate[..., i, None] * output for i, output in enumerate(outputs)), None


def flex_olmo() -> nn.Module:
    settings = FlexOlmoConfig(**hf.TINY, num_experts=N_EXPERTS, num_experts_per_tok=1, pad_token_id=0)
    settings._experts_implementation_internal = "eager"
    return FlexOlmoSparseMoeBlock(settings)


def public_bam(family: str, kv: str) -> nn.Module:
    if family == "llama":
        settings = LlamaConfig(**hf.TINY, rms_norm_eps=1e-5, rope_parameters=hf.ROPE, use_cache=False)
        model, attention = LlamaForCausalLM(settings), LlamaAttention
    else:
        qk_norm = family == "cohere-qk-norm"
        settings = CohereConfig(
            **hf.TINY, logit_scale=1.0, rope_parameters=hf.ROPE, use_cache=False, use_qk_norm=qk_norm
        )
        model, attention = CohereForCausalLM(settings), CohereAttention
    for i, layer in enumerate(model.model.layers):
        layer.self_attn = SoftAttention(partial(attention, settings, i), kv)
        layer.mlp = flex_olmo()
    hf.randomise(model, seed=3)
    return model


def soft_attention(module: SoftAttention, kv: str) -> hf.Tensors:
    """The stacked tensors, with one copy of what the experts share."""
    each = [hf.attention(expert) for expert in module.experts]
    found = {
        name: each[0][name] if name in SHARED[kv] else torch.stack([one[name] for one in each]) for name in each[0]
    }
    return found | {"router": module.router.weight.detach()}


FAMILIES = {
    "cohere": (OURS, {"norm": "input_layernorm"}),
    "cohere-qk-norm": (replace(OURS, qk_norm=True), {"norm": "input_layernorm"}),
    "llama": (
        replace(OURS, norm="rms", rotary_pairs="half", residual="sequential", tie_embeddings=False),
        {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    ),
}


@pytest.mark.oracle("T9 whole BAM")
@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_bam_has_the_logits_and_gradients_of_its_composition(family: str, kv: str, agree: Agreement) -> None:
    dense, norms = FAMILIES[family]
    config = replace(dense, attention=AttentionExperts(N_EXPERTS, N_EXPERTS, kv), ffn=FFNExperts(N_EXPERTS))
    to_ours = partial(hf.layout, norms=norms, attention=partial(soft_attention, kv=kv), ffn=hf.experts)
    hf.compare(agree, public_bam(family, kv), to_ours, config)


def cohere2_moe(top_k: int, n_shared: int) -> nn.Module:
    model = Cohere2MoeForCausalLM(
        Cohere2MoeConfig(
            **hf.TINY,
            head_dim=hf.HEAD_DIM,
            logit_scale=1.0,
            num_experts=N_EXPERTS,
            num_experts_per_tok=top_k,
            num_shared_experts=n_shared,
            shared_expert_combination_strategy="sum",
            expert_selection_fn="softmax",
            layer_types=["sliding_attention"] * 2,
            mlp_layer_types=["sparse"] * 2,
            sliding_window=64,
        )
    )
    model.set_experts_implementation("eager")
    hf.randomise(model, seed=6)
    return model


def btx(top_k: int, shared_expert: bool = False) -> ModelConfig:
    return replace(OURS, ffn=FFNExperts(N_EXPERTS, top_k, "topk_softmax", shared_expert=shared_expert))


COHERE2_MOE = partial(hf.layout, norms={"norm": "input_layernorm"}, ffn=hf.experts)


@pytest.mark.oracle("T9 BTX is a Cohere2Moe")
@pytest.mark.parametrize("shared_expert", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, N_EXPERTS])
def test_btx_is_a_cohere2_moe(top_k: int, shared_expert: bool, agree: Agreement) -> None:
    hf.compare(agree, cohere2_moe(top_k, int(shared_expert)), COHERE2_MOE, btx(top_k, shared_expert))


@pytest.mark.oracle("T10 N copies of a dense model are that model")
@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("gate", ["topk_softmax", "softmax_topk_renorm", "softmax_topk_ste"])
def test_copies_of_one_dense_model_are_that_model(kv: str, gate: str, agree: Agreement) -> None:
    """Whatever the routers: gates that sum to 1 over equal experts change nothing."""
    dense = random_dense(OURS, 7)
    attention, ffn = AttentionExperts(N_EXPERTS, N_EXPERTS, kv), FFNExperts(N_EXPERTS, 2, gate)
    mixture = mixed(replace(OURS, attention=attention, ffn=ffn), [dense] * N_EXPERTS)
    agree(logits(mixture), logits(dense))


@pytest.mark.oracle("T10 BAM's own gate scales the FFN branch by its probability")
def test_copies_under_bams_gate_are_the_dense_model_with_a_scaled_ffn(agree: Agreement) -> None:
    """y = x + Attn(h) + p_max(h) FFN(h): the paper's gate does not preserve the function, by exactly this factor."""
    config = replace(OURS, n_layers=1)
    dense = random_dense(config, 7)
    mixture = mixed(replace(config, ffn=FFNExperts(N_EXPERTS)), [dense] * N_EXPERTS)
    block, x = dense.blocks[0], dense.embed.embed(hf.tokens())
    h = block.norm(x)
    p_max = (h @ mixture.blocks[0].ffn.router.T).softmax(-1).amax(-1, keepdim=True)
    y = stream_without_ffn(dense) + p_max * block.ffn(h)[0]
    agree(logits(mixture), dense.logits(dense.norm(y)))


def stream_without_ffn(dense: LM) -> Tensor:
    """The residual stream of a one-layer dense model without its FFN branch."""
    silent = LM(dense.config).double()
    silent.load_state_dict(dense.state_dict())
    silent.blocks[0].ffn.w_down.data.zero_()
    seen: list[Tensor] = []
    silent.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    silent(hf.tokens())
    return seen[0]


@pytest.mark.oracle("T11 saturated routers are one dense expert")
@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("chosen", range(N_EXPERTS))
def test_saturated_routers_are_that_dense_expert(chosen: int, kv: str, agree: Agreement) -> None:
    """Router bias 1e4 for one expert in both branches, every gate; the shared tensors are that expert's own."""
    dense = [random_dense(OURS, 20 + i) for i in range(N_EXPERTS)]
    attention = AttentionExperts(N_EXPERTS, N_EXPERTS, kv, router_bias=True)
    ffn = FFNExperts(N_EXPERTS, 1, router_bias=True)
    mixture = mixed(replace(OURS, attention=attention, ffn=ffn), dense, shared=dense[chosen])
    for block in mixture.blocks:
        block.attn.router_bias.data[chosen] = block.ffn.router_bias.data[chosen] = 1e4
    agree(logits(mixture), logits(dense[chosen]))


def random_dense(config: ModelConfig, seed: int) -> LM:
    model = LM(config)
    hf.randomise(model, seed)
    return model


def logits(model: LM) -> Tensor:
    return model.logits(model(hf.tokens()).hidden_BTD)


def mixed(config: ModelConfig, dense: list[LM], shared: LM | None = None) -> LM:
    """Stack the experts' tensors by hand; what is not an expert comes from `shared`; routers are random, biases 0."""
    model = LM(config)
    hf.randomise(model, seed=8)
    for name, parameter in model.named_parameters():
        if name.endswith("_bias"):
            parameter.data.zero_()
            continue
        if name.endswith("router"):
            continue
        own = (shared or dense[0]).get_parameter(name)
        stacked = parameter.ndim > own.ndim
        parameter.data.copy_(torch.stack([m.get_parameter(name) for m in dense]) if stacked else own.detach())
    return model


CACHED = {
    "dense": replace(OURS, qk_norm=True, experts=()),
    "expert": replace(OURS, attention=AttentionExperts(4, 4, "expert"), ffn=FFNExperts(4)),
    "shared": replace(OURS, attention=AttentionExperts(4, 4, "shared"), ffn=FFNExperts(4)),
    "value_only": replace(OURS, attention=AttentionExperts(4, 2, "value_only"), ffn=FFNExperts(4, 2)),
    "one-layer": replace(OURS, attention=AttentionExperts(4, 4, layers=(1,)), rotary_frac=0.5),
}


@pytest.mark.oracle("T14 cache is no cache")
@pytest.mark.parametrize("pieces", [(1,) * hf.TIME, (6, 1, 1, 5), (hf.TIME,)], ids=["tokens", "pieces", "once"])
@pytest.mark.parametrize("name", CACHED)
def test_decoding_with_a_cache_is_the_whole_text_at_once(name: str, pieces: tuple[int, ...], agree: Agreement) -> None:
    model = random_dense(CACHED[name], 9)
    cache = Cache(model.config, 2, hf.TIME, torch.float64)
    hidden = [model(piece, cache).hidden_BTD for piece in hf.tokens().split(pieces, 1)]
    agree(torch.cat(hidden, 1), model(hf.tokens()).hidden_BTD)


@pytest.mark.oracle("T14 left padding is no padding")
@pytest.mark.parametrize("pieces", [(1,) * hf.TIME, (6, 1, 1, 5)], ids=["tokens", "pieces"])
@pytest.mark.parametrize("name", CACHED)
def test_a_padded_row_is_the_row_alone(name: str, pieces: tuple[int, ...], agree: Agreement) -> None:
    """Rows of 13 and 8 tokens in one batch; the pads of the second are other tokens that must not be seen."""
    model, pads = random_dense(CACHED[name], 9), (0, 5)
    cache = Cache(model.config, 2, hf.TIME, torch.float64, pad_B=torch.tensor(pads))
    padded = torch.cat([model(piece, cache).hidden_BTD for piece in hf.tokens().split(pieces, 1)], 1)
    for row, n_pads in enumerate(pads):
        agree(padded[row, n_pads:], model(hf.tokens()[row : row + 1, n_pads:]).hidden_BTD[0], what=f"row {row}")


@pytest.mark.oracle("T14 padded decoding is Cohere2Moe's")
def test_padded_decoding_is_that_of_cohere2_moe(agree: Agreement) -> None:
    """Their attention mask and positions, our `pad_B`; then three more tokens with both caches."""
    theirs = cohere2_moe(2, 0)
    ours = LM(btx(2)).double()
    ours.load_state_dict(COHERE2_MOE(theirs))
    n_prompt, pads = hf.TIME - 3, torch.tensor([0, 4])
    mask = (torch.arange(hf.TIME) >= pads[:, None]).long()
    positions = (torch.arange(hf.TIME) - pads[:, None]).clamp(min=0)
    cache, their_cache = Cache(ours.config, 2, hf.TIME, torch.float64, pad_B=pads), None
    for start, end in ((0, n_prompt), *((t, t + 1) for t in range(n_prompt, hf.TIME))):
        actual = ours.logits(ours(hf.tokens()[:, start:end], cache).hidden_BTD)
        with hf.float64_inside(theirs):
            output = theirs(
                hf.tokens()[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=their_cache,
                use_cache=True,
            )
        their_cache = output.past_key_values
        real = mask[:, start:end].bool()
        agree(actual[real], output.logits[real], what=f"logits from {start}")
