"""Weights of a `transformers` model in our layout, tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
HEAD_DIM = 8


def randomise(module: nn.Module, seed: int) -> None:
    """Normal weights of std 0.3, norms around 1, biases 0: outputs of order 1 with no symmetry left."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("bias"):
            value.zero_()
        elif parameter.ndim == 1:
            value += 1
        parameter.data.copy_(value)


def half_pairs(w_RD: Tensor, head_dim: int = HEAD_DIM) -> Tensor:
    """Rows of a query or key projection from interleaved rotary pairs (2j, 2j+1) to half pairs (j, j + C/2).

    The same permutation of queries and keys leaves their products, and so the scores, as they were.
    """
    order = torch.cat((torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)))
    return w_RD.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


def attention(module: nn.Module, *, interleaved: bool) -> dict[str, Tensor]:
    """w_q, w_k, w_v, w_o of a module with q_proj, k_proj, v_proj, o_proj."""
    q, k, v, o = (getattr(module, f"{name}_proj").weight.detach() for name in "qkvo")
    rows = half_pairs if interleaved else (lambda w: w)
    return {"w_q": rows(q), "w_k": rows(k), "w_v": v, "w_o": o.T}


def swiglu(module: nn.Module) -> dict[str, Tensor]:
    """w_gate, w_up, w_down of a module with gate_proj, up_proj, down_proj."""
    gate, up, down = (getattr(module, f"{name}_proj").weight.detach() for name in ("gate", "up", "down"))
    return {"w_gate": gate, "w_up": up, "w_down": down.T}


def experts(module: nn.Module) -> dict[str, Tensor]:
    """w_gate, w_up, w_down, router of a sparse block with `gate` and fused `experts`."""
    gate, up = module.experts.gate_up_proj.detach().chunk(2, dim=1)
    down = module.experts.down_proj.detach().mT
    return {"w_gate": gate, "w_up": up, "w_down": down, "router": module.gate.weight.detach()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
