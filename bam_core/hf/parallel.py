"""Families with attention and FFN side by side, or with a switch for it.

Cohere, Cohere2, GPT-NeoX, StableLM, Phi, Falcon.

Each is (defaults, read, write, names), as `families.Family` takes them. Source: the classes of transformers 5.23; the
fields of older versions mean the same.
"""

from __future__ import annotations

from typing import Any

from bam_core.config import ModelConfig
from bam_core.hf.names import ATTENTION, GATED, HEAD_NORMS, Names
from bam_core.hf.options import Options
from bam_core.hf.sizes import full_layers, layer_types, read_sizes, read_window, write_sizes

ONE_NORM = {"norm": "input_layernorm"}
TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_COHERE = {"residual": "parallel", "norm": "layer", "rotary_pairs": "interleaved"}
_SIZES = {"layer_norm_eps": 1e-5, "tie_word_embeddings": False, "max_position_embeddings": 2048}


def _read_cohere(options: Options) -> dict[str, Any]:
    bias = options.flag("attention_bias")
    return {
        **read_sizes(options, "layer_norm_eps"),
        **_COHERE,
        "qkv_bias": bias,
        "o_bias": bias,
        "qk_norm": options.flag("use_qk_norm"),
        "logit_scale": options.number("logit_scale"),
    }


def _write_cohere(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_sizes(config, "layer_norm_eps"),
        "attention_bias": config.qkv_bias,
        "use_qk_norm": config.qk_norm,
        "logit_scale": config.logit_scale,
    }


_COHERE_DEFAULTS = _SIZES | {
    "hidden_act": "silu",
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_COHERE_NAMES = Names(modules={**ATTENTION, **GATED, **ONE_NORM, **HEAD_NORMS}, scales="per_head")
COHERE = (_COHERE_DEFAULTS, _read_cohere, _write_cohere, _COHERE_NAMES)


def _read_cohere2(options: Options) -> dict[str, Any]:
    """Layers that see all of the past have no positions, and only they."""
    options.only("use_qk_norm", False, "this class has no norm of queries and keys")
    found = _read_cohere(options)
    n_layers = found["n_layers"]
    types = options.layer_types(n_layers)
    if types is None:
        pattern = options.whole("sliding_window_pattern")
        types = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(n_layers)]
    if options.get("sliding_window") is None and "sliding_attention" in types:
        options.refuse("sliding_window", None, "must be a number: layers with a window are those that rotate")
    return {**found, **read_window(options, found, types), "unrotated_layers": full_layers(types)}


def _write_cohere2(config: ModelConfig) -> dict[str, Any]:
    found = _write_cohere(config)
    found.pop("use_qk_norm")
    window = config.max_seq_len if config.window is None else config.window
    return found | {"sliding_window": window, "layer_types": layer_types(config, config.unrotated_layers)}


COHERE2 = (
    _COHERE_DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4},
    _read_cohere2,
    _write_cohere2,
    _COHERE_NAMES,
)


def _read_gpt_neox(options: Options) -> dict[str, Any]:
    sizes, bias = read_sizes(options, "layer_norm_eps"), options.flag("attention_bias")
    is_parallel = options.flag("use_parallel_residual")
    _no_shared_keys(options, sizes)
    return {
        **sizes,
        "residual": "parallel" if is_parallel else "sequential",
        "parallel_norms": 2 if is_parallel else 1,
        "norm": "layer",
        "norm_bias": True,
        "qkv_bias": bias,
        "o_bias": bias,
        "gated": False,
        "ffn_bias": True,
    }


def _no_shared_keys(options: Options, sizes: dict[str, Any]) -> None:
    """Fields that the class does not read, and that would not be what its weights are."""
    if sizes["n_kv_heads"] != sizes["n_heads"]:
        value = options.get("num_key_value_heads")
        options.refuse("num_key_value_heads", value, f"this class has keys for each head, {sizes['n_heads']}")
    _no_head_dim(options, sizes)


def _no_head_dim(options: Options, sizes: dict[str, Any]) -> None:
    if sizes["d_head"] is not None:
        value, usual = options.get("head_dim"), sizes["d_model"] // sizes["n_heads"]
        options.refuse("head_dim", value, f"this class has hidden_size / num_attention_heads, {usual}")


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    found = write_sizes(config, "layer_norm_eps")
    found.pop("num_key_value_heads")
    found.pop("head_dim")
    return found | {"use_parallel_residual": config.residual == "parallel", "attention_bias": config.qkv_bias}


GPT_NEOX = (
    _SIZES | {"hidden_act": "gelu", "attention_bias": True, "use_parallel_residual": True},
    _read_gpt_neox,
    _write_gpt_neox,
    Names(
        embed="gpt_neox.embed_in",
        layer="gpt_neox.layers.{}.",
        norm="gpt_neox.final_layer_norm",
        head="embed_out",
        modules={
            "attn.o": "attention.dense",
            "ffn.up": "mlp.dense_h_to_4h",
            "ffn.down": "mlp.dense_4h_to_h",
            **TWO_NORMS,
        },
        packed="attention.query_key_value",
        aliases={"lm_head.weight": "embed_out.weight"},
        left_out=(r"rotary_emb\.inv_freq$", r"\.attention\.(masked_)?bias$"),
    ),
)


def _read_stablelm(options: Options) -> dict[str, Any]:
    sizes = read_sizes(options, "layer_norm_eps")
    _no_head_dim(options, sizes)
    return {
        **sizes,
        "residual": "parallel" if options.flag("use_parallel_residual") else "sequential",
        "norm": "layer",
        "norm_bias": True,
        "qkv_bias": options.flag("use_qkv_bias"),
        "qk_norm": options.flag("qk_layernorm"),
    }


def _write_stablelm(config: ModelConfig) -> dict[str, Any]:
    found = write_sizes(config, "layer_norm_eps")
    found.pop("head_dim")
    return found | {
        "use_parallel_residual": config.residual == "parallel",
        "use_qkv_bias": config.qkv_bias,
        "qk_layernorm": config.qk_norm,
    }


STABLELM = (
    _SIZES | {"hidden_act": "silu", "max_position_embeddings": 4096, "num_key_value_heads": 32},
    _read_stablelm,
    _write_stablelm,
    Names(
        modules={
            **ATTENTION,
            **GATED,
            **ONE_NORM,
            **TWO_NORMS,
            "attn.q_norm": "self_attn.q_layernorm",
            "attn.k_norm": "self_attn.k_layernorm",
        },
        scales="listed",
    ),
)


def _read_phi(options: Options) -> dict[str, Any]:
    options.only("qk_layernorm", False, "its norm of queries and keys has a bias, which cannot be expressed")
    options.only("tie_word_embeddings", False, "its output head has a bias, so the embedding cannot be the head")
    return {
        **read_sizes(options, "layer_norm_eps"),
        "residual": "parallel",
        "norm": "layer",
        "norm_bias": True,
        "qkv_bias": True,
        "o_bias": True,
        "gated": False,
        "ffn_bias": True,
        "head_bias": True,
    }


def _write_phi(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config, "layer_norm_eps", tanh="gelu_new")


PHI = (
    _SIZES | {"hidden_act": "gelu_new", "qk_layernorm": False},
    _read_phi,
    _write_phi,
    Names(
        norm="model.final_layernorm",
        modules={
            **ATTENTION,
            "attn.o": "self_attn.dense",
            "ffn.up": "mlp.fc1",
            "ffn.down": "mlp.fc2",
            **ONE_NORM,
        },
    ),
)


def _read_falcon(options: Options) -> dict[str, Any]:
    options.only("alibi", False, "positions by ALiBi cannot be expressed")
    options.only("apply_residual_connection_post_layernorm", False, "a residual stream of normed values cannot be")
    n_heads, d_model = options.whole("num_attention_heads"), options.whole("hidden_size")
    is_new, bias = options.flag("new_decoder_architecture"), options.flag("bias")
    is_parallel, shares = is_new or options.flag("parallel_attn"), is_new or not options.flag("multi_query")
    if is_new and not options.flag("parallel_attn"):
        options.refuse("parallel_attn", False, "the new decoder architecture is a parallel one")
    n_norms = options.get("num_ln_in_parallel_attn")
    n_norms = (2 if is_new else 1) if n_norms is None else n_norms
    if n_norms not in (1, 2) or (n_norms == 2 and not is_new):
        options.refuse("num_ln_in_parallel_attn", n_norms, "must be 1, or 2 in the new decoder architecture")
    if d_model % n_heads:
        options.refuse("num_attention_heads", n_heads, f"must divide hidden_size, {d_model}")
    return {
        "vocab_size": options.whole("vocab_size"),
        "d_model": d_model,
        "n_layers": options.whole("num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": options.whole("num_kv_heads", default=n_heads) if shares else 1,
        "d_ff": options.whole("ffn_hidden_size", default=4 * d_model),
        "max_seq_len": options.whole("max_position_embeddings"),
        "norm_eps": options.number("layer_norm_epsilon"),
        "tie_embeddings": options.flag("tie_word_embeddings"),
        "activation": options.activation("activation"),
        "residual": "parallel" if is_parallel else "sequential",
        "parallel_norms": n_norms if is_parallel else 1,
        "norm": "layer",
        "norm_bias": True,
        "qkv_bias": bias,
        "o_bias": bias,
        "gated": False,
        "ffn_bias": bias,
    }


def _write_falcon(config: ModelConfig) -> dict[str, Any]:
    """The new decoder architecture says every number of key heads; the old one is for blocks one after the other."""
    is_new = config.residual == "parallel"
    found = write_sizes(config, "layer_norm_epsilon", activation="activation", d_ff="ffn_hidden_size")
    found.pop("head_dim")
    found["num_kv_heads"] = found.pop("num_key_value_heads")
    return found | {
        "bias": config.qkv_bias,
        "alibi": False,
        "new_decoder_architecture": is_new,
        "num_ln_in_parallel_attn": config.parallel_norms if is_new else None,
        "parallel_attn": is_new,
        "multi_query": not is_new and config.n_kv_heads == 1,
    }


FALCON = (
    {
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        "activation": "gelu",
        "alibi": False,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
    },
    _read_falcon,
    _write_falcon,
    Names(
        embed="transformer.word_embeddings",
        layer="transformer.h.{}.",
        norm="transformer.ln_f",
        modules={
            "attn.o": "self_attention.dense",
            "ffn.up": "mlp.dense_h_to_4h",
            "ffn.down": "mlp.dense_4h_to_h",
            "norm": "input_layernorm",
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        },
        two_norms={"attn_norm": "ln_attn", "ffn_norm": "ln_mlp"},
        packed="self_attention.query_key_value",
    ),
)
