"""One layer: attention and FFN around the residual stream, in one of two wirings.

Parallel, with one norm (BAM, section 3.1):

    y = x + Attn(norm(x)) + FFN(norm(x))

Sequential, as most public checkpoints have it:

    z = x + Attn(attn_norm(x));  y = z + FFN(ffn_norm(z))

A family may norm what a branch has made too, or instead (`norms`), or give the branches of a parallel block a norm each
(`parallel_norms`). Either branch is dense or a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.attention import Attention, LayerCache, Rotary
from bam_core.nn.layers import Norm, dense_ffn
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.routing import Noise, Routing
from bam_core.nn.shapes import norm_names

Branch = Literal["attn", "ffn"]
BRANCHES: tuple[Branch, ...] = ("attn", "ffn")


@dataclass(frozen=True)
class LayerRouting:
    """How one layer routed; None where that branch is dense. Leading dimensions of both are B, T."""

    attention: Routing | None
    ffn: Routing | None


def residual_norm(config: ModelConfig) -> Norm:
    """A norm of the residual stream, with the scales of all dense models where those are routed."""
    n_models = len(config.experts) if config.is_routed("norms") else 0
    return Norm(config.d_model, config.norm_eps, config.norm, n_models, bias=config.norm_bias)


def norm_before(config: ModelConfig, branch: Branch) -> str | None:
    """The norm of what a branch reads; None where it reads the stream as it is."""
    return next((name for name in ("norm", f"{branch}_norm") if name in norm_names(config)), None)


def norm_after(config: ModelConfig, branch: Branch) -> str | None:
    """The norm of what a branch has made; None where that goes into the stream as it is."""
    name = f"{branch}_out_norm"
    return name if name in norm_names(config) else None


class Block(nn.Module):
    """One layer, dense or with experts in either branch."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.residual == "parallel"
        self.one_norm = norm_names(config) == ("norm",)
        for name in norm_names(config):
            self.add_module(name, residual_norm(config))
        self._before = {branch: norm_before(config, branch) for branch in BRANCHES}
        self._after = {branch: norm_after(config, branch) for branch in BRANCHES}
        attention, ffn = config.attention_at(layer), config.ffn_at(layer)
        self.attn = MixtureOfAttention(config, attention, layer) if attention else Attention(config, layer)
        self.ffn = MixtureOfExperts(config, ffn, layer) if ffn else dense_ffn(config)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        cache: LayerCache | None,
        noise: Noise | None = None,
        mix_BTE: Tensor | None = None,
        text_BTD: Tensor | None = None,
    ) -> tuple[Tensor, LayerRouting]:
        """mix_BTE: of the dense models' norm scales, where those are routed. text_BTD: for routers that read it."""
        h_BTD = self.read("attn", x_BTD, mix_BTE)
        attention_BTD, attention_routing = self._attend(h_BTD, rotary, cache, text_BTD)
        if self.parallel:
            h_BTD = h_BTD if self.one_norm else self.read("ffn", x_BTD, mix_BTE)
            ffn_BTD, ffn_routing = self._route_ffn(h_BTD, noise, text_BTD)
            return x_BTD + attention_BTD + ffn_BTD, LayerRouting(attention_routing, ffn_routing)
        x_BTD = x_BTD + self.made("attn", attention_BTD, mix_BTE)
        ffn_BTD, ffn_routing = self._route_ffn(self.read("ffn", x_BTD, mix_BTE), noise, text_BTD)
        return x_BTD + self.made("ffn", ffn_BTD, mix_BTE), LayerRouting(attention_routing, ffn_routing)

    def read(self, branch: Branch, x_BTD: Tensor, mix_BTE: Tensor | None) -> Tensor:
        """What a branch reads of the stream."""
        return self._normed(self._before[branch], x_BTD, mix_BTE)

    def made(self, branch: Branch, y_BTD: Tensor, mix_BTE: Tensor | None) -> Tensor:
        """What goes into the stream of a branch's output."""
        return self._normed(self._after[branch], y_BTD, mix_BTE)

    def _normed(self, name: str | None, x_BTD: Tensor, mix_BTE: Tensor | None) -> Tensor:
        if name is None:
            return x_BTD
        normed_BTD: Tensor = getattr(self, name)(x_BTD, mix_BTE)
        return normed_BTD

    def _attend(
        self, h_BTD: Tensor, rotary: Rotary, cache: LayerCache | None, text_BTD: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        found: tuple[Tensor, Routing | None]
        more = (text_BTD,) if isinstance(self.attn, MixtureOfAttention) else ()
        found = self.attn(h_BTD, rotary, cache, *more)
        return found

    def _route_ffn(self, h_BTD: Tensor, noise: Noise | None, text_BTD: Tensor | None) -> tuple[Tensor, Routing | None]:
        """Only a mixture samples, and reads the text."""
        found: tuple[Tensor, Routing | None]
        found = self.ffn(h_BTD, noise, text_BTD) if isinstance(self.ffn, MixtureOfExperts) else self.ffn(h_BTD)
        return found
