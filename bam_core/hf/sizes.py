"""What the configs of most families say in the same words: sizes, heads, activation, windows by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bam_core.config import ModelConfig
from bam_core.hf.options import ACTIVATIONS, Options


def read_sizes(
    options: Options, eps: str, *, activation: str = "hidden_act", d_ff: str = "intermediate_size"
) -> dict[str, Any]:
    """eps, activation, d_ff: their names of these fields. Heads of another size than d_model / n_heads are named."""
    d_model, n_heads = options.whole("hidden_size"), options.whole("num_attention_heads")
    d_head = options.whole("head_dim", default=max(1, d_model // n_heads))
    return {
        "vocab_size": options.whole("vocab_size"),
        "d_model": d_model,
        "n_layers": options.whole("num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": options.whole("num_key_value_heads", default=n_heads),
        "d_ff": options.whole(d_ff),
        "max_seq_len": options.whole("max_position_embeddings"),
        "norm_eps": options.number(eps),
        "tie_embeddings": options.flag("tie_word_embeddings"),
        "activation": options.activation(activation),
        "d_head": None if d_head * n_heads == d_model else d_head,
    }


def write_sizes(
    config: ModelConfig,
    eps: str,
    *,
    activation: str = "hidden_act",
    d_ff: str = "intermediate_size",
    tanh: str = "gelu_pytorch_tanh",
) -> dict[str, Any]:
    """The way back of `read_sizes`. tanh: the name of that GELU which a class's own checkpoints have."""
    theirs = tanh if config.activation == "gelu_tanh" else config.activation
    assert ACTIVATIONS[theirs] == config.activation, theirs
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        d_ff: config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        eps: config.norm_eps,
        activation: theirs,
        "head_dim": config.head_dim,
    }


def read_window(options: Options, sizes: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """The window and the layers without it. types: of each layer.

    A window that no text of max_seq_len reaches past is none, and neither is one of no layer.
    """
    if "sliding_attention" not in types or options.get("sliding_window") is None:
        return {}
    window = options.whole("sliding_window")
    if window >= sizes["max_seq_len"]:
        return {}
    return {"window": window, "global_layers": full_layers(types)}


def full_layers(types: Sequence[str]) -> tuple[int, ...]:
    return tuple(layer for layer, kind in enumerate(types) if kind == "full_attention")


def layer_types(config: ModelConfig, full: Collection[int]) -> list[str]:
    """The way back of `full_layers`."""
    return ["full_attention" if layer in full else "sliding_attention" for layer in range(config.n_layers)]
