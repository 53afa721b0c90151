"""Models of `transformers` that compute what BTX and BAM compute, and ours with the same weights.

BTX is `Cohere2MoeForCausalLM`. No public model is a BAM: its composition is `CohereForCausalLM` whose attention is a
gated sum of N of its own attention modules, and whose FFN is FlexOlmo's sparse block (`tests/oracles` shows, in
float64, that these are the same functions). Weights are ours, copied; rotary pairs are theirs, interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import Cohere2MoeConfig, Cohere2MoeForCausalLM, CohereConfig, CohereForCausalLM, FlexOlmoConfig
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.flex_olmo.modeling_flex_olmo import FlexOlmoSparseMoeBlock

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.lm import LM, init_weights

NAMES = ("general", "code", "law", "math")
N_EXPERTS = len(NAMES)
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
Setting = tuple[str, str]
"""Implementation of the experts and of attention, as transformers names them."""
TOLERANCE = 1e-4
WORSE = 2.0
"""Times that ours may be as far from float32 in bf16 as theirs, at the median token: tokens near a tie of their router
go to another expert on one side or the other, more of them in every layer, so the two are not medians of the same."""


def btx(dense: ModelConfig) -> ModelConfig:
    """Cohere2Moe's kind: softmax over the two chosen."""
    return replace(_cohere(dense), ffn=FFNExperts(N_EXPERTS, 2, "topk_softmax"))


def bam(dense: ModelConfig) -> ModelConfig:
    """The paper's: soft attention experts with keys and values of their own, top-1 FFN experts."""
    return replace(_cohere(dense), attention=AttentionExperts(N_EXPERTS, N_EXPERTS), ffn=FFNExperts(N_EXPERTS))


def _cohere(dense: ModelConfig) -> ModelConfig:
    return replace(dense, norm="layer", rotary_pairs="interleaved", experts=NAMES)


def our_model(config: ModelConfig) -> LM:
    """Random weights; routers wide enough that choices are clear, as those of a trained model are."""
    model = LM(config)
    init_weights(model, 0)
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data *= 10
    return model


def public_model(ours: LM, setting: Setting) -> nn.Module:
    """Theirs with the weights of ours, in float32."""
    experts, attention = setting
    model = (_composition if ours.config.attention else _cohere2_moe)(ours.config, experts, attention)
    with torch.no_grad():
        _fill(model, ours)
    return model


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _cohere2_moe(config: ModelConfig, experts: str, attention: str) -> nn.Module:
    """The window is wider than a row, so that attention is causal and nothing else, and takes the fast path."""
    settings = Cohere2MoeConfig(
        **_sizes(config),
        head_dim=config.head_dim,
        logit_scale=1.0,
        num_experts=N_EXPERTS,
        num_experts_per_tok=2,
        num_shared_experts=0,
        expert_selection_fn="softmax",
        layer_types=["sliding_attention"] * config.n_layers,
        mlp_layer_types=["sparse"] * config.n_layers,
        sliding_window=config.max_seq_len + 1,
        use_cache=False,
        attn_implementation=attention,
    )
    model = Cohere2MoeForCausalLM(settings)
    model.set_experts_implementation(experts)
    return model


class SoftAttention(nn.Module):
    """sum_e g_e(x) Attention_e(x), in public parts."""

    def __init__(self, settings: CohereConfig, layer: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(CohereAttention(settings, layer) for _ in range(N_EXPERTS))
        self.router = nn.Linear(settings.hidden_size, N_EXPERTS, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        gate = self.router(hidden_states).softmax(-1)
        outputs = [expert(hidden_states=hidden_states, **kwargs)[0] for expert in self.experts]
        return sum(gate[..., i, None] * output for i, output in enumerate(outputs)), None


def _composition(config: ModelConfig, experts: str, attention: str) -> nn.Module:
    settings = CohereConfig(
        **_sizes(config), logit_scale=1.0, rope_parameters=ROPE, use_cache=False, attn_implementation=attention
    )
    blocks = FlexOlmoConfig(**_sizes(config), num_experts=N_EXPERTS, num_experts_per_tok=1, pad_token_id=0)
    blocks._experts_implementation_internal = experts
    model = CohereForCausalLM(settings)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn = SoftAttention(settings, i)
        layer.mlp = FlexOlmoSparseMoeBlock(blocks)
    return model


def _fill(model: nn.Module, ours: LM) -> None:
    model.model.embed_tokens.weight.copy_(ours.embed.weight)
    model.model.norm.weight.copy_(ours.norm.weight)
    for layer, block in zip(model.model.layers, ours.blocks, strict=True):
        layer.input_layernorm.weight.copy_(block.norm.weight)
        layer.mlp.gate.weight.copy_(block.ffn.router)
        layer.mlp.experts.gate_up_proj.copy_(torch.cat((block.ffn.w_gate, block.ffn.w_up), 1))
        layer.mlp.experts.down_proj.copy_(block.ffn.w_down.mT)
        if isinstance(layer.self_attn, SoftAttention):
            layer.self_attn.router.weight.copy_(block.attn.router)
            for e, expert in enumerate(layer.self_attn.experts):
                _fill_attention(expert, {name: getattr(block.attn, f"w_{name}")[e] for name in "qkvo"})
        else:
            _fill_attention(layer.self_attn, {name: getattr(block.attn, f"w_{name}") for name in "qkvo"})


def _fill_attention(module: nn.Module, ours: Mapping[str, Tensor]) -> None:
    for name, weight in ours.items():
        getattr(module, f"{name}_proj").weight.copy_(weight.T if name == "o" else weight)


@torch.no_grad()
def require_equal(ours: LM, theirs: nn.Module, tokens_BT: Tensor) -> dict[str, float]:
    """How far logits are apart in float32, and each side in bf16 from float32. Leaves both in bf16.

    Raises SystemExit unless float32 agrees to `TOLERANCE`, and ours is about as close in bf16 as theirs (`WORSE`).
    """
    expected = theirs(tokens_BT).logits
    found = {"float32": distance(_logits(ours, tokens_BT), expected)}
    found["bf16"] = distance(_logits(ours.cast(torch.bfloat16), tokens_BT), expected)
    found["their bf16"] = distance(theirs.to(torch.bfloat16)(tokens_BT).logits, expected)
    if not (found["float32"] <= TOLERANCE and found["bf16"] <= WORSE * found["their bf16"]):
        shown = ", ".join(f"{value:.2g} in {name}" for name, value in found.items())
        raise SystemExit(f"not the same model: logits differ by {shown} (of their size; the median token)")
    return found


def distance(actual_BTV: Tensor, expected_BTV: Tensor) -> float:
    """The median token's difference of the logits, over the size of its logits (root mean squares).

    The median, since in bf16 a token between two experts may go to either, and is then another altogether.
    """
    expected = expected_BTV.float()
    return float(((actual_BTV.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).median())


def _logits(model: LM, tokens_BT: Tensor) -> Tensor:
    return model.logits(model(tokens_BT).hidden_BTD)
