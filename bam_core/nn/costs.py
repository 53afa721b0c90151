"""Parameters, FLOPs and bytes of a model, by arithmetic on its config. No torch, so that planning is quick.

Invariant: parameters equal the sum over `shapes.tensor_shapes`, which these formulas do not read. Layers may differ
(`layers`, `soft_layers`), so everything is a sum over layers. The paper's own figures and their errors: `paper.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from typing import NamedTuple

from bam_core.config import ModelConfig
from bam_core.nn.shapes import tensor_shapes

MIXING_OVERHEAD_BYTES = 300_000_000
"""Python, torch and what mixing holds beside its tensors."""


def params_total(config: ModelConfig) -> int:
    """Every parameter, routers' biases included. The paper's Table 9, "Total"."""
    return sum(part["total"] for part in params_by_component(config).values())


def params_active(config: ModelConfig) -> int:
    """Parameters that one token uses: all embedding rows, norms and routers, and the experts chosen for it.

    Of attention experts that is the queries and outputs of the chosen ones, and the keys and values of all: a later
    token may choose any. The paper's Table 9, "Active", without its errors (`paper.ERRATA`).
    """
    return sum(part["active"] for part in params_by_component(config).values())


def params_by_component(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Component -> `total` and `active` parameters, over all layers; components that a model lacks are left out."""
    D, HC, GC = _widths(config)
    total, active = Counter[str](), Counter[str]()

    def add(component: str, each: int, copies: int, used: int | None = None) -> None:
        total[component] += each * copies
        active[component] += each * (copies if used is None else used)

    vocab, n_models, norm = config.vocab_size * D, len(config.experts), D * (1 + config.norm_bias)
    norm_scales = n_models if config.is_routed("norms") else 1
    embeddings = n_models if config.is_routed("embed") else 1
    heads, heads_used = _heads(config)
    add("embedding", vocab, embeddings)
    if config.shared is not None:
        add("shared_router", D, n_models)
    for layer in range(config.n_layers):
        n = _copies(config, layer)
        add("norms", norm, norm_scales * _norms_of_layer(config))
        add("queries", HC * (D + config.qkv_bias), n.queries, n.queries_used)
        add("keys", GC * (D + config.qkv_bias), n.keys)
        add("values", GC * (D + config.qkv_bias), n.values)
        add("outputs", (HC + config.o_bias) * D, n.outputs, n.outputs_used)
        if config.qk_norm:
            add("qk_norms", HC, n.queries, n.queries_used)
            add("qk_norms", GC, n.keys)
        add("attention_router", config.router_width, n.attention_routed)
        add("attention_router", n.attention_routed, n.attention_biases)
        add("ffn", n.ffn_size + n.ffn_biases_size, n.ffn, n.ffn_used)
        add("shared_expert", _ffn_size(config) + _ffn_biases_size(config), n.shared_experts)
        add("ffn_router", config.router_width, n.ffn_routed)
        add("ffn_router", n.ffn_routed, n.ffn_biases)
    add("norms", norm, norm_scales)
    if config.has_head:
        add("head", vocab + config.vocab_size * config.head_bias, heads, heads_used)
    return {name: {"total": count, "active": active[name]} for name, count in total.items() if count}


def flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs of the matrix products of one forward pass, per token that attends to `context` positions."""
    return sum(flops_by_operation(config, context).values())


def flops_by_operation(
    config: ModelConfig, context: int, *, paper: bool = False, layer: int | None = None
) -> dict[str, int]:
    """Operation -> FLOPs of one forward pass, per token that attends to `context` positions; 2 per multiply-add.

    Not counted: norms, softmax, activations, rotary embedding, gates, the embedding's lookup, and biases but for the
    products of attention gates with those of outputs, and of a mix with those of heads and norms. All attention
    experts are counted under a top-k gate too, and all of the context under a window: both mask, they skip no work.
    With what experts share routed: the products of a position's mix with embeddings (`shared_embedding`) and with norm
    scales (`shared_norms`).
    paper: by the convention of the paper's Tables 7 and 10 (Kaplan's): without the product of attention
    probabilities and values (`weighted_values`), and without the output embedding (`head`).
    layer: of that layer alone, without what comes before the first and after the last; None for the whole model.
    """
    layers = range(config.n_layers) if layer is None else (layer,)
    flops = _layers_flops(config, layers, context)
    if layer is None:
        flops.update(_outside_flops(config))
    left_out = {"weighted_values", "head"} if paper else set()
    return {name: count for name, count in flops.items() if count and name not in left_out}


def training_flops(config: ModelConfig, tokens: int, seq_len: int) -> int:
    """FLOPs to train on `tokens` in rows of seq_len: forward, and twice that backward.

    A causal position attends to (seq_len + 1) / 2 positions on average. `dense_router_gradient` computes every FFN
    expert for every token. What a `capacity_factor` drops is not taken off.
    """
    if config.ffn is not None and config.ffn.dense_router_gradient:
        config = replace(config, ffn=replace(config.ffn, top_k=config.ffn.n_experts, gate="softmax_topk"))
    return 3 * tokens * _twice_forward(config, seq_len) // 2


def forward_flops(config: ModelConfig, tokens: int, seq_len: int) -> int:
    """FLOPs to read `tokens` in rows of seq_len, without a gradient."""
    return tokens * _twice_forward(config, seq_len) // 2


def _twice_forward(config: ModelConfig, seq_len: int) -> int:
    """Twice a token's forward pass, so that it is a whole number."""
    fixed = flops_per_token(config, 0)
    per_position = flops_per_token(config, 1) - fixed
    return 2 * fixed + per_position * (seq_len + 1)


def cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values kept for each position while decoding; E sets of them under Expert-KV.

    Shared keys and values: one set. `value_only`: one set of keys, E of values. What a shared router keeps, one
    vector in float32 for a whole row, is not counted.
    """
    copies = [_copies(config, layer) for layer in range(config.n_layers)]
    return sum(n.keys + n.values for n in copies) * config.n_kv_heads * config.head_dim * bytes_per_value


def decoding_bytes(config: ModelConfig, context: int, bytes_per_value: int = 2) -> int:
    """Bytes that one more token of one row must read: the weights that it uses, and the cache of `context` positions.

    Of attention experts: keys and values of all are made, and the chosen ones' queries, outputs and cache are read. Of
    an input embedding that is not the head too, one row of each.
    """
    parts = {name: part["active"] for name, part in params_by_component(config).items()}
    if config.has_head:
        parts["embedding"] = config.d_model * (len(config.experts) if config.is_routed("embed") else 1)
    read = 0
    for layer in range(config.n_layers):
        n, attention = _copies(config, layer), config.attention_at(layer)
        used = attention.top_k if attention else 1
        channels = (min(n.keys, used) + min(n.values, used)) * config.n_kv_heads * config.head_dim
        read += channels * min(context, config.window_at(layer) or context)
    return bytes_per_value * (sum(parts.values()) + read)


def training_bytes(config: ModelConfig, dtype: str = "bf16") -> int:
    """Bytes of training state; activations come on top.

    Per parameter a working weight and its gradient in `dtype`; and a master weight, its gradient and two Adam
    moments in float32, or float64 for fp64.
    """
    working, master = {"bf16": (2, 4), "fp32": (4, 4), "fp64": (8, 8)}[dtype]
    return params_total(config) * (2 * working + 4 * master)


def mixing_bytes(config: ModelConfig) -> int:
    """Bound on the memory of making this mixture from dense models, one tensor after another.

    The largest tensor of a dense model E + 2 times in float32, and `MIXING_OVERHEAD_BYTES`. E: its slices in the
    mixture, or the dense models that are merged, whichever is more.
    """
    dense = config.dense()
    largest = max(prod(shape) for shape in tensor_shapes(dense).values())
    slots = [len(part.slots) for part in (config.attention, config.ffn) if part is not None]
    return 4 * largest * (max(len(config.experts), 1, *slots) + 2) + MIXING_OVERHEAD_BYTES


class _Copies(NamedTuple):
    """How often one layer has each of its matrices, and how many of them a token uses."""

    queries: int
    queries_used: int
    keys: int
    values: int
    outputs: int
    outputs_used: int
    attention_routed: int
    attention_biases: int
    ffn_size: int
    ffn_biases_size: int
    ffn: int
    ffn_used: int
    shared_experts: int
    ffn_routed: int
    ffn_biases: int


def _copies(config: ModelConfig, layer: int) -> _Copies:
    attention, ffn = config.attention_at(layer), config.ffn_at(layer)
    E, K = (attention.n_experts, attention.top_k) if attention else (1, 1)
    kv = attention.kv if attention else "expert"
    return _Copies(
        queries=1 if kv == "value_only" else E,
        queries_used=1 if kv == "value_only" else K,
        keys=E if kv == "expert" else 1,
        values=1 if kv == "shared" else E,
        outputs=E,
        outputs_used=K,
        attention_routed=E if attention else 0,
        attention_biases=int(attention.router_bias) if attention else 0,
        ffn_size=_ffn_size(config) // (ffn.split if ffn else 1),
        ffn_biases_size=_ffn_biases_size(config),
        ffn=ffn.n_experts if ffn else 1,
        ffn_used=ffn.top_k if ffn else 1,
        shared_experts=int(ffn.shared_expert) if ffn else 0,
        ffn_routed=ffn.n_experts if ffn else 0,
        ffn_biases=ffn.router_bias + (ffn.balance == "bias") if ffn else 0,
    )


def _ffn_size(config: ModelConfig) -> int:
    """Entries of one FFN's matrices."""
    return (2 + config.gated) * config.d_model * config.d_ff


def _ffn_biases_size(config: ModelConfig) -> int:
    """Of an FFN that is cut into groups there are none."""
    return (config.d_ff * (1 + config.gated) + config.d_model) * config.ffn_bias


def _norms_of_layer(config: ModelConfig) -> int:
    if config.residual == "parallel":
        return config.parallel_norms
    return 4 if config.norms == "around" else 2


def _heads(config: ModelConfig) -> tuple[int, int]:
    """Output heads that there are, and those that a token is compared with."""
    n_heads = len(config.experts) if config.is_routed("head") else 1
    return n_heads, 1 if config.shared is not None and config.shared.head == "top1" else n_heads


def _mix_flops(config: ModelConfig) -> int:
    """Of one vector of width D, mixed of those of all dense models."""
    return 2 * len(config.experts) * config.d_model


def _outside_flops(config: ModelConfig) -> Counter[str]:
    """Before the first layer and after the last."""
    heads = _heads(config)[1]
    flops = Counter[str](head=2 * config.vocab_size * config.d_model * heads)
    if heads > 1:
        flops["head"] += 2 * config.vocab_size * heads * config.head_bias
    if config.shared is not None:
        flops["shared_router"] = _mix_flops(config)
        flops["shared_embedding"] = _mix_flops(config) * config.is_routed("embed")
        flops["shared_norms"] = _mix_flops(config) * (1 + config.norm_bias) * config.is_routed("norms")
    return flops


def _layers_flops(config: ModelConfig, layers: range | tuple[int, ...], context: int) -> Counter[str]:
    D, HC, GC = _widths(config)
    flops = Counter[str]()
    for layer in layers:
        n = _copies(config, layer)
        if config.is_routed("norms"):
            flops["shared_norms"] += _mix_flops(config) * (1 + config.norm_bias) * _norms_of_layer(config)
        flops["attention_router"] += 2 * config.router_width * n.attention_routed
        flops["queries"] += 2 * HC * D * n.queries
        flops["keys"] += 2 * GC * D * n.keys
        flops["values"] += 2 * GC * D * n.values
        flops["scores"] += 2 * HC * n.queries * context
        flops["weighted_values"] += 2 * HC * n.outputs * context
        flops["outputs"] += 2 * HC * D * n.outputs + 2 * D * n.attention_routed * config.o_bias
        flops["ffn_router"] += 2 * config.router_width * n.ffn_routed
        flops["ffn"] += 2 * n.ffn_size * n.ffn_used
        flops["shared_expert"] += 2 * _ffn_size(config) * n.shared_experts
    return flops


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """Width of the model, of all query heads together, and of all key and value heads."""
    return config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
