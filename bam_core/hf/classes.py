"""The classes of transformers that mixtures of ours can equal: a row of CLASSES each, and its words in config.json.

Source: transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.config import FFNExperts, ModelConfig
from bam_core.config.experts import SUM_TO_ONE
from bam_core.hf.to_classes import Class


def _experts(config: ModelConfig) -> FFNExperts:
    assert config.ffn is not None, "problems() comes first"
    return config.ffn


def _width(config: ModelConfig) -> int:
    """Of one expert."""
    return config.d_ff // (config.ffn.split if config.ffn is not None else 1)


def _renormed(config: ModelConfig) -> bool:
    experts = _experts(config)
    return experts.gate in SUM_TO_ONE and experts.top_k < experts.n_experts


def _cohere2_moe(config: ModelConfig) -> dict[str, Any]:
    experts = config.ffn
    windows = {config.window_at(layer) for layer in range(config.n_layers) if layer not in config.unrotated_layers}
    window = next(iter(windows), None)
    n_shared = experts.split if experts is not None and experts.shared_expert else 0
    return {
        "head_dim": config.head_dim,
        "intermediate_size": _width(config),
        "prefix_dense_intermediate_size": config.d_ff,
        "prefix_dense_sliding_window_pattern": 2,  # 1 would have every dense layer rotate, whatever its type
        "mlp_layer_types": ["dense" if config.ffn_at(i) is None else "sparse" for i in range(config.n_layers)],
        "layer_types": [
            "full_attention" if i in config.unrotated_layers else "sliding_attention" for i in range(config.n_layers)
        ],
        "sliding_window": window or config.max_seq_len,  # layers rotate if they have one; this one hides nothing
        "num_experts": experts.n_experts if experts is not None else 1,
        "num_experts_per_tok": experts.top_k if experts is not None else 1,
        "num_shared_experts": n_shared,
        "shared_expert_combination_strategy": "sum",
        "expert_selection_fn": "softmax",
        "rms_norm_eps": config.norm_eps if config.norm == "rms" else None,
        "layer_norm_eps": config.norm_eps,
        "logit_scale": config.logit_scale,
        "attention_bias": config.qkv_bias,
        "rope_theta": config.rope_theta,
    }


def _mixtral(config: ModelConfig) -> dict[str, Any]:
    experts = _experts(config)
    return {
        "head_dim": config.head_dim,
        "intermediate_size": _width(config),
        "num_local_experts": experts.n_experts,
        "num_experts_per_tok": experts.top_k,
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.window,
        "router_jitter_noise": 0.0,
    }


def _olmo_like(config: ModelConfig) -> dict[str, Any]:
    experts = _experts(config)
    return {
        "intermediate_size": _width(config),
        "num_experts": experts.n_experts,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": _renormed(config),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
    }


def _qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    return {
        **_olmo_like(config),
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "moe_intermediate_size": _width(config),
        "mlp_only_layers": [layer for layer in range(config.n_layers) if config.ffn_at(layer) is None],
        "decoder_sparse_step": 1,
        "use_sliding_window": False,
    }


_TWO = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_AFTER = {"attn_out_norm": "post_attention_layernorm", "ffn_out_norm": "post_feedforward_layernorm"}
_ROPE: dict[str, tuple[Any, ...]] = {"rope_scaling": ()}
"""(): any value; what it is goes into config.json."""
_HEAD = {"d_head": ()}
_BIAS = {"qkv_bias": (False, True), "o_bias": (False, True)}
_SEQUENTIAL = {"residual": ("sequential",), "norm": ("rms",), **_ROPE}
_ANY_GATE = SUM_TO_ONE | {"softmax_topk"}

CLASSES: Mapping[str, Class] = {
    found.model_type: found
    for found in (
        Class(
            "cohere2_moe",
            "Cohere2MoeForCausalLM",
            {"norm": "input_layernorm"},
            {
                "residual": ("parallel",),
                "norm": ("rms", "layer"),
                "logit_scale": (),
                "window": (),
                "global_layers": (),
                "unrotated_layers": (),
                **_ROPE,
                **_HEAD,
                **_BIAS,
            },
            _cohere2_moe,
            dense_layers=True,
            shared_expert="shared_experts",
            interleaved=True,
        ),
        Class(
            "mixtral",
            "MixtralForCausalLM",
            _TWO,
            {**_SEQUENTIAL, **_HEAD, "window": ()},
            _mixtral,
            mlp="block_sparse_moe",
            parts={"gate": "w1", "up": "w3", "down": "w2"},
        ),
        Class(
            "olmoe",
            "OlmoeForCausalLM",
            _TWO,
            {**_SEQUENTIAL, **_BIAS, "qk_norm": (True,), "qk_norm_over": ("all",), **_HEAD},
            _olmo_like,
            gates=_ANY_GATE,
            qk_norm="all",
        ),
        Class(
            "flex_olmo",
            "FlexOlmoForCausalLM",
            _AFTER,
            {**_SEQUENTIAL, **_BIAS, "norms": ("after",), "qk_norm": (True,), "qk_norm_over": ("all",), **_HEAD},
            _olmo_like,
            gates=_ANY_GATE,
            qk_norm="all",
        ),
        Class(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            _TWO,
            {**_SEQUENTIAL, **_BIAS, **_HEAD, "qk_norm": (True,)},
            _qwen3_moe,
            gates=_ANY_GATE,
            dense_layers=True,
            qk_norm="one",
        ),
    )
}
"""By `model_type`; in the order in which they are tried."""
