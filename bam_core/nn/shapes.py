"""The tensor layout: every tensor of a model with its shape, from its config alone, without torch.

Invariant: `LM(config).state_dict()` has exactly these names and shapes. A change here raises
`config.LAYOUT_VERSION`.

Every matrix has D last: one row is one channel (of a query, a key, a hidden neuron) with its vector in model
space. So stacking experts is concatenating rows, and the folded view [E * rows, D] of [E, rows, D] is free.
"""

from __future__ import annotations

from bam_core.config import ModelConfig

Shape = tuple[int, ...]


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Map each tensor's name to its shape, in reading order: embedding, blocks, final norm, head."""
    V, D = config.vocab_size, config.d_model
    block = _block_shapes(config)
    shapes: dict[str, Shape] = {"embed.weight": (V, D)}
    for layer in range(config.n_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    shapes["norm.weight"] = (D,)
    if not config.tie_embeddings:
        shapes["head.weight"] = (V, D)
    return shapes


def _block_shapes(config: ModelConfig) -> dict[str, Shape]:
    D, F = config.d_model, config.d_ff
    HC, GC = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    attention, ffn = config.attention, config.ffn
    E_attn = (attention.n_experts,) if attention else ()
    E_kv = (attention.n_experts,) if attention and attention.kv == "expert" else ()
    E_ffn = (ffn.n_experts,) if ffn else ()
    norms = ("norm",) if config.residual == "parallel" else ("attn_norm", "ffn_norm")

    shapes: dict[str, Shape] = {f"{norm}.weight": (D,) for norm in norms}
    shapes |= {"attn.w_q": (*E_attn, HC, D), "attn.w_k": (*E_kv, GC, D)}
    shapes |= {"attn.w_v": (*E_kv, GC, D), "attn.w_o": (*E_attn, HC, D)}
    if attention:
        shapes["attn.router"] = (*E_attn, D)
    shapes |= {f"ffn.{name}": (*E_ffn, F, D) for name in ("w_gate", "w_up", "w_down")}
    if ffn:
        shapes["ffn.router"] = (*E_ffn, D)
    return shapes
