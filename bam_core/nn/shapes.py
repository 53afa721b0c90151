"""The tensor layout: every tensor of a model with its shape, from its config alone, without torch.

Invariant: `LM(config).state_dict()` has exactly these names and shapes. A change here raises
`config.LAYOUT_VERSION`.

Every matrix has D last: one row is one channel (of a query, a key, a hidden neuron) with its vector in model
space. So stacking experts is concatenating rows, and the folded view [E * rows, D] of [E, rows, D] is free.
"""

from __future__ import annotations

from typing import Literal

from bam_core.config import ModelConfig

Shape = tuple[int, ...]


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Map each tensor's name to its shape, in reading order: embedding, blocks, final norm, head."""
    V, D, E = config.vocab_size, config.d_model, len(config.experts)
    shapes: dict[str, Shape] = {"embed.weight": (*_stacked(config, "embed"), V, D)}
    if config.shared is not None:
        shapes["shared.router"] = (E, D)
    for layer in range(config.n_layers):
        shapes |= block_shapes(config, layer)
    shapes |= _norm_shapes(config, "norm")
    if config.has_head:
        shapes["head.weight"] = (*_stacked(config, "head"), V, D)
    if config.head_bias:
        shapes["head.bias"] = (*_stacked(config, "head"), V)
    return shapes


def norm_names(config: ModelConfig) -> tuple[str, ...]:
    """The norms of a block: `*_norm` of what a branch reads, `*_out_norm` of what it has made."""
    if config.residual == "parallel":
        return ("norm",) if config.parallel_norms == 1 else ("attn_norm", "ffn_norm")
    kinds = {"before": ("norm",), "after": ("out_norm",), "around": ("norm", "out_norm")}[config.norms]
    return tuple(f"{branch}_{kind}" for branch in ("attn", "ffn") for kind in kinds)


def ffn_names(config: ModelConfig) -> tuple[str, ...]:
    """The tensors of one FFN: matrices, then biases."""
    parts = ("gate", "up", "down") if config.gated else ("up", "down")
    return tuple(f"{kind}_{part}" for kind in ("w", "b")[: 1 + config.ffn_bias] for part in parts)


def attention_names(config: ModelConfig) -> tuple[str, ...]:
    """The tensors of one attention: matrices, scales of queries and keys, biases."""
    norms = ("q_norm", "k_norm") if config.qk_norm else ()
    biases = (*(("b_q", "b_k", "b_v") if config.qkv_bias else ()), *(("b_o",) if config.o_bias else ()))
    return ("w_q", "w_k", "w_v", "w_o", *norms, *biases)


def _stacked(config: ModelConfig, part: Literal["embed", "norms", "head"]) -> Shape:
    """The leading E of a part that every dense model has of its own."""
    return (len(config.experts),) if config.is_routed(part) else ()


def _norm_shapes(config: ModelConfig, name: str) -> dict[str, Shape]:
    parts = ("weight", "bias") if config.norm_bias else ("weight",)
    return {f"{name}.{part}": (*_stacked(config, "norms"), config.d_model) for part in parts}


def block_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The tensors of one layer, under their full names."""
    shapes: dict[str, Shape] = {}
    for norm in norm_names(config):
        shapes |= _norm_shapes(config, norm)
    shapes |= {f"attn.{name}": shape for name, shape in _attention_shapes(config, layer).items()}
    shapes |= {f"ffn.{name}": shape for name, shape in _ffn_shapes(config, layer).items()}
    return {f"blocks.{layer}.{name}": shape for name, shape in shapes.items()}


def _attention_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    D, HC, GC = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    experts = config.attention_at(layer)
    E = (experts.n_experts,) if experts else ()
    E_q = () if experts and experts.kv == "value_only" else E
    E_k = E if experts and experts.kv == "expert" else ()
    E_v = () if experts and experts.kv == "shared" else E
    known: dict[str, Shape] = {
        "w_q": (*E_q, HC, D),
        "w_k": (*E_k, GC, D),
        "w_v": (*E_v, GC, D),
        "w_o": (*E, HC, D),
        "q_norm": (*E_q, HC),
        "k_norm": (*E_k, GC),
        "b_q": (*E_q, HC),
        "b_k": (*E_k, GC),
        "b_v": (*E_v, GC),
        "b_o": (*E, D),
    }
    shapes = {name: known[name] for name in attention_names(config)}
    if experts:
        shapes["router"] = (*E, config.router_width)
        if experts.router_bias:
            shapes["router_bias"] = E
    return shapes


def _ffn_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    D, F = config.d_model, config.d_ff
    experts, names = config.ffn_at(layer), ffn_names(config)
    if experts is None:
        return {name: _ffn_shape(name, D, F) for name in names}
    E = experts.n_experts
    shapes: dict[str, Shape] = {name: (E, *_ffn_shape(name, D, F // experts.split)) for name in names}
    if experts.shared_expert:
        shapes |= {f"shared.{name}": _ffn_shape(name, D, F) for name in names}
    shapes["router"] = (E, config.router_width)
    if experts.router_bias:
        shapes["router_bias"] = (E,)
    if experts.balance == "bias":
        shapes["balance_bias"] = (E,)
    return shapes


def _ffn_shape(name: str, D: int, F: int) -> Shape:
    return (F, D) if name.startswith("w_") else ((D,) if name == "b_down" else (F,))
