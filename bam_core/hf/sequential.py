"""Families with attention and FFN one after the other: Llama, Mistral, Qwen2, Qwen3, OLMo2, Gemma2.

Each is (defaults, read, write, names), as `families.Family` takes them. Source: the classes of transformers 5.23; the
fields of older versions mean the same.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from bam_core.config import ModelConfig
from bam_core.hf.names import ATTENTION, GATED, HEAD_NORMS, Names
from bam_core.hf.options import Options
from bam_core.hf.sizes import layer_types, read_sizes, read_window, write_sizes

TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
AFTER = {"attn_out_norm": "post_attention_layernorm", "ffn_out_norm": "post_feedforward_layernorm"}
AROUND = {
    "attn_norm": "input_layernorm",
    "attn_out_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
}
_RMS = {"residual": "sequential", "norm": "rms"}
_SIZES = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048}


def _read_llama(options: Options) -> dict[str, Any]:
    bias = options.flag("attention_bias")
    return {
        **read_sizes(options, "rms_norm_eps"),
        **_RMS,
        "qkv_bias": bias,
        "o_bias": bias,
        "ffn_bias": options.flag("mlp_bias"),
    }


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config, "rms_norm_eps") | {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}


LLAMA = (
    _SIZES,
    _read_llama,
    _write_llama,
    Names(modules={**ATTENTION, **GATED, **TWO_NORMS}),
)


def _read_mistral(options: Options) -> dict[str, Any]:
    options.only("layer_types", None, "windows by layer are those of Ministral, another class")
    sizes = read_sizes(options, "rms_norm_eps")
    return {**sizes, **_RMS, **read_window(options, sizes, ["sliding_attention"] * sizes["n_layers"])}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config, "rms_norm_eps") | {"sliding_window": config.window}


MISTRAL = (
    _SIZES | {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    _read_mistral,
    _write_mistral,
    Names(modules={**ATTENTION, **GATED, **TWO_NORMS}),
)


def _read_qwen(options: Options) -> dict[str, Any]:
    """Layers from max_window_layers on have the window, where it is switched on."""
    sizes = read_sizes(options, "rms_norm_eps")
    n_layers, slides = sizes["n_layers"], options.flag("use_sliding_window")
    types = options.layer_types(n_layers)
    if types is None:
        first = options.get("max_window_layers") if slides else n_layers
        first = first if isinstance(first, int) else n_layers
        types = ["full_attention"] * min(first, n_layers) + ["sliding_attention"] * (n_layers - first)
    elif "sliding_attention" in types and not slides:
        options.refuse("layer_types", types, "has windows, which use_sliding_window: false switches off", "correct one")
        types = ["full_attention"] * n_layers
    return {**sizes, **_RMS, **read_window(options, sizes, types)}


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    slides = config.window is not None
    return {
        **write_sizes(config, "rms_norm_eps"),
        "use_sliding_window": slides,
        "sliding_window": config.window,
        "layer_types": layer_types(config, config.global_layers if slides else range(config.n_layers)),
    }


_QWEN = _SIZES | {
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _read_qwen2(options: Options) -> dict[str, Any]:
    return _read_qwen(options) | {"qkv_bias": True}


QWEN2 = (_QWEN, _read_qwen2, _write_qwen, Names(modules={**ATTENTION, **GATED, **TWO_NORMS}))


def _read_qwen3(options: Options) -> dict[str, Any]:
    bias = options.flag("attention_bias")
    return _read_qwen(options) | {"qkv_bias": bias, "o_bias": bias, "qk_norm": True}


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return _write_qwen(config) | {"attention_bias": config.qkv_bias}


QWEN3 = (
    _QWEN | {"head_dim": 128},
    _read_qwen3,
    _write_qwen3,
    Names(modules={**ATTENTION, **GATED, **TWO_NORMS, **HEAD_NORMS}, scales="one"),
)


def _read_olmo2(options: Options) -> dict[str, Any]:
    bias = options.flag("attention_bias")
    return {
        **read_sizes(options, "rms_norm_eps"),
        **_RMS,
        "norms": "after",
        "qk_norm": True,
        "qk_norm_over": "all",
        "qkv_bias": bias,
        "o_bias": bias,
    }


def _write_olmo2(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config, "rms_norm_eps") | {"attention_bias": config.qkv_bias}


OLMO2 = (
    _SIZES | {"rms_norm_eps": 1e-5},
    _read_olmo2,
    _write_olmo2,
    Names(modules={**ATTENTION, **GATED, **AFTER, **HEAD_NORMS}),
)


def _read_gemma2(options: Options) -> dict[str, Any]:
    options.only("use_bidirectional_attention", False, "queries that see what follows them cannot be expressed")
    sizes = read_sizes(options, "rms_norm_eps", activation="hidden_activation")
    n_layers, bias = sizes["n_layers"], options.flag("attention_bias")
    types = options.layer_types(n_layers)
    if types is None:  # every second layer sees all, from the second on
        types = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(n_layers)]
    scalar = options.number("query_pre_attn_scalar")
    head_dim = sizes["d_head"] or sizes["d_model"] // sizes["n_heads"]
    return {
        **sizes,
        **_RMS,
        **read_window(options, sizes, types),
        "norms": "around",
        "qkv_bias": bias,
        "o_bias": bias,
        "embed_scale": sqrt(sizes["d_model"]),
        "attention_scale": None if scalar == head_dim else scalar**-0.5,
        "attention_softcap": options.optional("attn_logit_softcapping"),
        "logit_softcap": options.optional("final_logit_softcapping"),
    }


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    scale = config.attention_scale
    scalar = config.head_dim if scale is None else scale**-2
    slides = config.window is not None
    return {
        **write_sizes(config, "rms_norm_eps", activation="hidden_activation"),
        "head_dim": config.head_dim,
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round(scalar),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window if slides else config.max_seq_len,  # the class needs one, used or not
        "layer_types": layer_types(config, config.global_layers if slides else range(config.n_layers)),
    }


GEMMA2 = (
    _SIZES
    | {
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    _read_gemma2,
    _write_gemma2,
    Names(modules={**ATTENTION, **GATED, **AROUND}, offset=True),
)
