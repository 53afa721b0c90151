"""The language model: tokens to hidden states, hidden states to logits.

Logits are a call of their own, so that a trainer can take them for a part of the batch or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.attention import Cache
from bam_core.nn.block import Block, LayerRouting, residual_norm
from bam_core.nn.layers import Vocabulary, rotary_of
from bam_core.nn.routing import Noise
from bam_core.nn.shared import (
    SharedRouter,
    embed_each,
    head_logits,
    mix_embeddings,
    scaled_embeddings,
    text_so_far,
)
from bam_core.seeds import child_seed

__all__ = ["LM", "LayerRouting", "Output", "child_seed", "init_tensor", "init_weights"]

FLOAT32 = ("router", "router_bias", "balance_bias")
"""Parameters that are never narrower than float32: a choice of experts hangs on their last digits."""


@dataclass(frozen=True)
class Output:
    """hidden_BTD: after the final norm. routing: one entry per layer, empty for a dense model.

    mix_BTE: the part of each dense model in what they share, which `LM.logits` needs; None where that is merged.
    """

    hidden_BTD: Tensor
    routing: tuple[LayerRouting, ...]
    mix_BTE: Tensor | None = None


class LM(nn.Module):
    """A decoder-only transformer, dense or a mixture. Its parameters come uninitialised.

    Raises InvalidInput for a config from which no model can be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.checked()
        copies = {part: len(config.experts) if config.is_routed(part) else 0 for part in ("embed", "head")}
        self.embed = Vocabulary(config.vocab_size, config.d_model, copies["embed"])
        self.shared = SharedRouter(config) if config.shared is not None else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = residual_norm(config)
        sizes = config.vocab_size, config.d_model, copies["head"]
        self.head = Vocabulary(*sizes, bias=config.head_bias) if config.has_head else None

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None, noise: Noise | None = None) -> Output:
        """Hidden states of `tokens_BT`, which follow the positions in `cache`; the cache grows by them.

        noise: for a gate that samples its experts, in training.
        """
        config, n_time = self.config, tokens_BT.shape[1]
        end = n_time + (cache.length if cache is not None else 0)
        assert end <= config.max_seq_len, f"{end} positions; max_seq_len is {config.max_seq_len}"
        x_BTD, mix_BTE, text_BTD = self.start(tokens_BT, cache)
        cos, sin = rotary_of(config, x_BTD.dtype, x_BTD.device)
        positions = cache.positions(n_time) if cache is not None else slice(n_time)
        rotary = (cos[positions], sin[positions])
        routing = []
        for i, block in enumerate(self.blocks):
            layer_cache = cache.layers[i] if cache is not None else None
            x_BTD, layer_routing = block(x_BTD, rotary, layer_cache, noise, mix_BTE, text_BTD)
            routing.append(layer_routing)
        return Output(self.norm(x_BTD, mix_BTE), tuple(routing) if config.is_mixture else (), mix_BTE)

    def start(self, tokens_BT: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The residual stream before the first layer; the mix of what is shared; the text so far, if routers read it.

        The cache takes the text in.
        """
        if not self.config.reads_text:
            return scaled_embeddings(self.config, self.embed.embed(tokens_BT)), None, None
        e_BTED = embed_each(tokens_BT, self.embed.weight)
        text_BTD = text_so_far(e_BTED, cache)
        mix_BTE = self.shared(text_BTD) if self.shared is not None else None
        x_BTD = mix_embeddings(e_BTED, mix_BTE) if mix_BTE is not None else e_BTED.squeeze(2)
        for_routers = text_BTD if self.config.router_input == "text" else None
        return scaled_embeddings(self.config, x_BTD), mix_BTE, for_routers

    def logits(self, hidden_BTD: Tensor, mix_BTE: Tensor | None = None) -> Tensor:
        """logits_BTV under the output embedding, which is the input embedding when tied.

        mix_BTE: `Output.mix_BTE` of the same positions, for a model with a head of every dense model.
        """
        table = self.head or self.embed
        return head_logits(self.config, hidden_BTD, mix_BTE, table.weight, table.bias)

    def cast(self, dtype: torch.dtype) -> LM:
        """Put every parameter in `dtype`, in place; those in FLOAT32 never narrower than that."""
        wide = torch.promote_types(dtype, torch.float32)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(wide if name.rsplit(".", 1)[-1] in FLOAT32 else dtype)
        return self


@torch.no_grad()
def init_weights(model: LM, seed: int) -> None:
    """Fill every parameter by `init_tensor`: a function of the seed and the parameter's name and shape only."""
    for name, parameter in model.named_parameters():
        parameter.copy_(init_tensor(name, parameter.shape, model.config.n_layers, seed))


def init_tensor(name: str, shape: Sequence[int], n_layers: int, seed: int) -> Tensor:
    """The initial values of one tensor of a model, in float32.

    Norms are 1, biases 0. All else is normal with mean 0 and this standard deviation:
      embed, head, routers          0.02
      w_q, w_k, w_v, w_gate, w_up   1 / sqrt(D): unit variance in, unit variance out
      w_o, w_down                   1 / sqrt(2 L * fan-in): 2 L writes to the residual stream, variance 1
    """
    kind = name.rsplit(".", 1)[-1]
    if name.endswith("norm.weight") or kind in ("q_norm", "k_norm"):
        return torch.ones(*shape)
    if kind.endswith("bias") or kind.startswith("b_"):
        return torch.zeros(*shape)
    if kind in ("weight", "router"):
        std = 0.02
    elif kind in ("w_o", "w_down"):
        std = 1 / sqrt(2 * n_layers) / sqrt(shape[-2])
    else:
        std = 1 / sqrt(shape[-1])
    generator = torch.Generator().manual_seed(child_seed(seed, name))
    return torch.empty(*shape, dtype=torch.float32).normal_(0, std, generator=generator)
