"""The language model: tokens to hidden states, hidden states to logits.

Logits are a call of their own, so that a trainer can take them for a part of the batch or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.attention import Cache
from bam_core.nn.block import Block, LayerRouting
from bam_core.nn.layers import Norm, Vocabulary, rotary_tables
from bam_core.seeds import child_seed

__all__ = ["LM", "LayerRouting", "Output", "child_seed", "init_weights"]


@dataclass(frozen=True)
class Output:
    """hidden_BTD: after the final norm. routing: one entry per layer, empty for a dense model."""

    hidden_BTD: Tensor
    routing: tuple[LayerRouting, ...]


class LM(nn.Module):
    """A decoder-only transformer, dense or a mixture. Its parameters come uninitialised.

    Raises InvalidInput for a config from which no model can be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.checked()
        self.embed = Vocabulary(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = Norm(config.d_model, config.norm_eps, config.norm)
        self.head = None if config.tie_embeddings else Vocabulary(config.vocab_size, config.d_model)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Output:
        """Hidden states of `tokens_BT`, which follow the positions in `cache`; the cache grows by them."""
        config = self.config
        start = cache.length if cache is not None else 0
        end = start + tokens_BT.shape[1]
        assert end <= config.max_seq_len, f"{end} positions; max_seq_len is {config.max_seq_len}"
        x_BTD = self.embed.embed(tokens_BT)
        cos, sin = rotary_tables(config.max_seq_len, config.head_dim, config.rope_theta, x_BTD.dtype, x_BTD.device)
        rotary = (cos[start:end], sin[start:end])
        routing = []
        for i, block in enumerate(self.blocks):
            x_BTD, layer_routing = block(x_BTD, rotary, cache.layers[i] if cache is not None else None)
            routing.append(layer_routing)
        return Output(self.norm(x_BTD), tuple(routing) if config.is_mixture else ())

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """logits_BTV under the output embedding, which is the input embedding when tied."""
        return (self.head or self.embed).logits(hidden_BTD)

    def cast(self, dtype: torch.dtype) -> LM:
        """Put every parameter in `dtype`, in place; routers never narrower than float32."""
        for name, parameter in self.named_parameters():
            router = name.endswith(".router")
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32) if router else dtype)
        return self


@torch.no_grad()
def init_weights(model: LM, seed: int) -> None:
    """Fill every parameter, as a function of the seed and the parameter's name and shape only.

    Norms are 1. All else is normal with mean 0 and this standard deviation:
      embed, head, routers          0.02
      w_q, w_k, w_v, w_gate, w_up   1 / sqrt(D): unit variance in, unit variance out
      w_o, w_down                   1 / sqrt(2 L * fan-in): 2 L writes to the residual stream, variance 1
    """
    depth_scale = 1 / sqrt(2 * model.config.n_layers)
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if name.endswith("norm.weight"):
            parameter.fill_(1)
            continue
        if kind in ("weight", "router"):
            std = 0.02
        elif kind in ("w_o", "w_down"):
            std = depth_scale / sqrt(parameter.shape[-2])
        else:
            std = 1 / sqrt(parameter.shape[-1])
        generator = torch.Generator().manual_seed(child_seed(seed, name))
        parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0, std, generator=generator))
