"""Parameters, FLOPs and bytes of a model, by arithmetic on its config. No torch, so that planning is quick.

Checked against the paper's Table 9 (totals) and Table 7 (FLOPs); where they differ, the docstring says how.
"""

from __future__ import annotations

from bam_core.config import ModelConfig


def params_total(config: ModelConfig) -> int:
    """Every parameter. The paper's Table 9, "Total"."""
    attention, ffn = config.attention, config.ffn
    query_output, key_value, swiglu = _matrices(config)
    layer = _norms_per_layer(config) * config.d_model + _routers(config)
    layer += query_output * (attention.n_experts if attention else 1)
    layer += key_value * _kv_copies(config)
    layer += swiglu * (ffn.n_experts if ffn else 1)
    return config.n_layers * layer + config.d_model + _embeddings(config)


def params_active(config: ModelConfig) -> int:
    """Parameters that one token uses: all embedding rows, norms and routers, and the experts chosen for it.

    Of attention experts that is the queries and outputs of the chosen ones, and the keys and values of all: a
    later token may choose any. The paper's Table 9, "Active", with two corrections: it counts one router per
    layer of BAM (we count both), and it leaves the shared keys and values out of Shared-KV.
    """
    attention, ffn = config.attention, config.ffn
    query_output, key_value, swiglu = _matrices(config)
    layer = _norms_per_layer(config) * config.d_model + _routers(config)
    layer += query_output * (attention.top_k if attention else 1)
    layer += key_value * _kv_copies(config)
    layer += swiglu * (ffn.top_k if ffn else 1)
    return config.n_layers * layer + config.d_model + _embeddings(config)


def flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs of the matrix products of one forward pass, per token that attends to `context` positions.

    2 per multiply-add: projections, attention scores and the weighted sum of values, routers, chosen FFN
    experts and the output embedding. Not: norms, softmax, activations, rotary, gates, the embedding lookup.
    All attention experts are counted under a top-k gate too: that gate masks, it skips no work.
    The paper's Tables 7 and 10 are per layer, without the output embedding and the weighted sum of values.
    """
    fixed, per_position = _flops(config)
    return fixed + per_position * context


def training_flops(config: ModelConfig, tokens: int, seq_len: int) -> int:
    """FLOPs to train on `tokens` in rows of seq_len: forward, and twice that backward.

    A causal position attends to (seq_len + 1) / 2 positions on average.
    """
    fixed, per_position = _flops(config)
    return 3 * tokens * (2 * fixed + per_position * (seq_len + 1)) // 2


def cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values kept for each position while decoding; E sets of them under Expert-KV."""
    heads = config.n_kv_heads * _kv_copies(config)
    return config.n_layers * 2 * heads * config.head_dim * bytes_per_value


def training_bytes(config: ModelConfig, dtype: str = "bf16") -> int:
    """Bytes of training state; activations come on top.

    Per parameter a working weight and its gradient in `dtype`; and a master weight, its gradient and two Adam
    moments in float32, or float64 for fp64.
    """
    working, master = {"bf16": (2, 4), "fp32": (4, 4), "fp64": (8, 8)}[dtype]
    return params_total(config) * (2 * working + 4 * master)


def _matrices(config: ModelConfig) -> tuple[int, int, int]:
    """Parameters of one expert: queries and outputs, keys and values, SwiGLU."""
    d = config.d_model
    rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return 2 * d * rows, 2 * d * kv_rows, 3 * d * config.d_ff


def _kv_copies(config: ModelConfig) -> int:
    attention = config.attention
    return attention.n_experts if attention and attention.kv == "expert" else 1


def _norms_per_layer(config: ModelConfig) -> int:
    return 1 if config.residual == "parallel" else 2


def _routers(config: ModelConfig) -> int:
    parts = (config.attention, config.ffn)
    return sum(part.n_experts * config.d_model for part in parts if part is not None)


def _embeddings(config: ModelConfig) -> int:
    return (1 if config.tie_embeddings else 2) * config.vocab_size * config.d_model


def _flops(config: ModelConfig) -> tuple[int, int]:
    """FLOPs per token that do not depend on the context, and FLOPs per token and attended position."""
    attention, ffn = config.attention, config.ffn
    query_output, key_value, swiglu = _matrices(config)
    n_attention = attention.n_experts if attention else 1
    layer = query_output * n_attention + key_value * _kv_copies(config) + _routers(config)
    layer += swiglu * (ffn.top_k if ffn else 1)
    fixed = 2 * (config.n_layers * layer + config.vocab_size * config.d_model)
    per_position = config.n_layers * 2 * 2 * n_attention * config.n_heads * config.head_dim
    return fixed, per_position
