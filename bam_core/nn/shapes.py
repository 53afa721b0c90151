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
    shapes["norm.weight"] = (*_stacked(config, "norms"), D)
    if config.has_head:
        shapes["head.weight"] = (*_stacked(config, "head"), V, D)
    return shapes


def _stacked(config: ModelConfig, part: Literal["embed", "norms", "head"]) -> Shape:
    """The leading E of a part that every dense model has of its own."""
    return (len(config.experts),) if config.is_routed(part) else ()


def block_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The tensors of one layer, under their full names."""
    norms = ("norm",) if config.residual == "parallel" else ("attn_norm", "ffn_norm")
    scale = (*_stacked(config, "norms"), config.d_model)
    shapes: dict[str, Shape] = {f"{norm}.weight": scale for norm in norms}
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
    shapes: dict[str, Shape] = {
        "w_q": (*E_q, HC, D),
        "w_k": (*E_k, GC, D),
        "w_v": (*E_v, GC, D),
        "w_o": (*E, HC, D),
    }
    if config.qk_norm:
        shapes |= {"q_norm": (*E_q, HC), "k_norm": (*E_k, GC)}
    if experts:
        shapes["router"] = (*E, D)
        if experts.router_bias:
            shapes["router_bias"] = E
    return shapes


def _ffn_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    D, F = config.d_model, config.d_ff
    experts = config.ffn_at(layer)
    names = ("w_gate", "w_up", "w_down")
    if experts is None:
        return dict.fromkeys(names, (F, D))
    E = experts.n_experts
    shapes: dict[str, Shape] = dict.fromkeys(names, (E, F // experts.split, D))
    if experts.shared_expert:
        shapes |= {f"shared.{name}": (F, D) for name in names}
    shapes["router"] = (E, D)
    if experts.router_bias:
        shapes["router_bias"] = (E,)
    if experts.balance == "bias":
        shapes["balance_bias"] = (E,)
    return shapes
