"""One layer: attention and FFN around the residual stream, in one of two wirings.

Parallel, with one norm (BAM, section 3.1):

    y = x + Attn(norm(x)) + FFN(norm(x))

Sequential, as most public checkpoints have it:

    z = x + Attn(attn_norm(x));  y = z + FFN(ffn_norm(z))

Either branch is dense or a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.attention import Attention, LayerCache, Rotary
from bam_core.nn.layers import Norm, SwiGLU
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.routing import Noise, Routing


@dataclass(frozen=True)
class LayerRouting:
    """How one layer routed; None where that branch is dense. Leading dimensions of both are B, T."""

    attention: Routing | None
    ffn: Routing | None


def residual_norm(config: ModelConfig) -> Norm:
    """A norm of the residual stream, with the scales of all dense models where those are routed."""
    n_models = len(config.experts) if config.is_routed("norms") else 0
    return Norm(config.d_model, config.norm_eps, config.norm, n_models)


class Block(nn.Module):
    """One layer, dense or with experts in either branch."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.residual == "parallel"
        if self.parallel:
            self.norm = residual_norm(config)
        else:
            self.attn_norm = residual_norm(config)
            self.ffn_norm = residual_norm(config)
        attention, ffn = config.attention_at(layer), config.ffn_at(layer)
        self.attn = MixtureOfAttention(config, attention) if attention else Attention(config)
        self.ffn = MixtureOfExperts(config, ffn, layer) if ffn else SwiGLU(config.d_model, config.d_ff)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        cache: LayerCache | None,
        noise: Noise | None = None,
        mix_BTE: Tensor | None = None,
    ) -> tuple[Tensor, LayerRouting]:
        """mix_BTE: of the dense models' norm scales, where those are routed."""
        if self.parallel:
            h_BTD = self.norm(x_BTD, mix_BTE)
            attention_BTD, attention_routing = self.attn(h_BTD, rotary, cache)
            ffn_BTD, ffn_routing = self._route_ffn(h_BTD, noise)
            return x_BTD + attention_BTD + ffn_BTD, LayerRouting(attention_routing, ffn_routing)
        attention_BTD, attention_routing = self.attn(self.attn_norm(x_BTD, mix_BTE), rotary, cache)
        x_BTD = x_BTD + attention_BTD
        ffn_BTD, ffn_routing = self._route_ffn(self.ffn_norm(x_BTD, mix_BTE), noise)
        return x_BTD + ffn_BTD, LayerRouting(attention_routing, ffn_routing)

    def _route_ffn(self, h_BTD: Tensor, noise: Noise | None) -> tuple[Tensor, Routing | None]:
        """Only a mixture samples."""
        found: tuple[Tensor, Routing | None]
        found = self.ffn(h_BTD, noise) if isinstance(self.ffn, MixtureOfExperts) else self.ffn(h_BTD)
        return found
