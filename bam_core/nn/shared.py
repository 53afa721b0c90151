"""What experts share, kept per dense model: one router of the text so far mixes embeddings, norm scales and heads.

    m_t = mean over s <= t of norm(mean_e E_e[token_s]),   p_t = softmax(W_r m_t / temperature)

    x_t = sum_e p_t,e E_e[token_t],   scale_t = sum_e p_t,e w_e,   logits_t = h_t head_{argmax p_t}^T

`norm` is to length sqrt(D), like what every other router reads. The mean shrinks as its tokens disagree, and is left
so: brought to length sqrt(D) itself, it told domains apart far worse where a router was fitted on little text. The
router reads tokens alone, so one mix serves all layers, and a cache keeps one vector per row. Where documents are
packed into a row, the text so far is that of the row.
Not from the papers: docs/deviations.md. Invariant: with p one-hot at e, each part is that of dense model e, exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import ModelConfig, SharedExperts
from bam_core.nn.attention import Cache
from bam_core.nn.layers import empty, scaled
from bam_core.nn.moe import grouped_linear, permute_rows
from bam_core.nn.routing import router_logits

LEAST_SQUARE = 1e-24
"""Added to the mean square of a token's vector: far below that of any embedding, whatever its scale."""


class SharedRouter(nn.Module):
    """One row per dense model; reads the text so far."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.shared is not None, "the config shares nothing by routing"
        self.config = config.shared
        self.router = empty(len(config.experts), config.d_model)

    def forward(self, text_BTD: Tensor) -> Tensor:
        """mix_BTE in float32 or wider, of `text_so_far`."""
        return shared_mix(text_BTD, self.router, self.config)


def shared_mix(text_BTD: Tensor, router_ED: Tensor, shared: SharedExperts) -> Tensor:
    """mix_BTE: the part of each dense model."""
    return (router_logits(text_BTD, router_ED) / shared.temperature).softmax(-1)


def embed_each(tokens_BT: Tensor, weight: Tensor) -> Tensor:
    """e_BTED: each dense model's vector of each token, from w_EVD; of a merged w_VD the one there is (E = 1)."""
    if weight.ndim == 2:
        return F.embedding(tokens_BT, weight).unsqueeze(2)
    first_E = torch.arange(len(weight), device=tokens_BT.device) * weight.shape[1]
    return F.embedding(tokens_BT.unsqueeze(-1) + first_E, weight.flatten(0, 1))


def text_so_far(e_BTED: Tensor, cache: Cache | None = None) -> Tensor:
    """m_BTD in float32 or wider: the mean over all positions up to each.

    cache: of the positions before these; it takes in these. Positions that stand for nothing count for nothing.
    """
    wide = torch.promote_types(e_BTED.dtype, torch.float32)
    token_BTD = e_BTED.to(wide).mean(2)
    token_BTD = F.rms_norm(token_BTD, token_BTD.shape[-1:], eps=LEAST_SQUARE)
    start = cache.length if cache is not None else 0
    count_BT = torch.arange(start + 1, start + token_BTD.shape[1] + 1, device=token_BTD.device).unsqueeze(0)
    if cache is None:
        return token_BTD.cumsum(1) / count_BT.unsqueeze(-1)
    assert cache.text_BD is not None, "the cache is of a model without a shared router"
    if cache.pad_B is not None:
        count_BT = count_BT - cache.pad_B.unsqueeze(1)
        token_BTD = token_BTD * (count_BT > 0).unsqueeze(-1)
    sum_BTD = cache.text_BD.unsqueeze(1) + token_BTD.cumsum(1)
    cache.text_BD = sum_BTD[:, -1]
    return sum_BTD / count_BT.clamp(min=1).unsqueeze(-1)


def mix_embeddings(e_BTED: Tensor, mix_BTE: Tensor) -> Tensor:
    """x_BTD = sum_e p_e e_e, in the dtype of the embeddings; the sum is taken in that of the mix."""
    if e_BTED.shape[2] == 1:
        return e_BTED.squeeze(2)
    return (mix_BTE.unsqueeze(-2) @ e_BTED.to(mix_BTE.dtype)).squeeze(-2).to(e_BTED.dtype)


def scaled_embeddings(config: ModelConfig, x_BTD: Tensor) -> Tensor:
    """The residual stream's start."""
    return scaled(x_BTD, config.embed_scale)


def head_logits(
    config: ModelConfig, hidden_ND: Tensor, mix_NE: Tensor | None, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """logits_NV under the model's output head, which is one w_VD, or w_EVD of all dense models; so its bias."""
    if not config.is_routed("head"):
        return finished_logits(config, F.linear(hidden_ND, weight, bias))
    assert config.shared is not None, "a head is routed with what is shared"
    assert mix_NE is not None, "a routed head needs the mix of the same positions, Output.mix_BTE"
    return finished_logits(config, routed_logits(hidden_ND, mix_NE, weight, config.shared, bias))


def finished_logits(config: ModelConfig, logits_NV: Tensor) -> Tensor:
    """Scaled, then capped, where a model does so."""
    logits_NV = scaled(logits_NV, config.logit_scale)
    if config.logit_softcap is not None:
        logits_NV = (logits_NV / config.logit_softcap).tanh() * config.logit_softcap
    return logits_NV


def routed_logits(
    hidden_ND: Tensor, mix_NE: Tensor, head_EVD: Tensor, shared: SharedExperts, bias_EV: Tensor | None = None
) -> Tensor:
    """logits_NV under the heads that the mix asks for; N stands for any leading dimensions."""
    if shared.head == "soft":
        mix_NE1 = mix_NE.to(hidden_ND.dtype).unsqueeze(-1)
        logits_NV = F.linear(hidden_ND * mix_NE1[..., 0, :], head_EVD[0])
        for expert in range(1, len(head_EVD)):
            logits_NV = logits_NV + F.linear(hidden_ND * mix_NE1[..., expert, :], head_EVD[expert])
        return logits_NV if bias_EV is None else logits_NV + mix_NE.to(bias_EV.dtype) @ bias_EV
    most_N, expert_N = mix_NE.flatten(0, -2).max(-1)
    h_ND = hidden_ND.flatten(0, -2)
    if shared.head_gradient:
        h_ND = h_ND * (1 + (most_N - most_N.detach())).to(h_ND.dtype).unsqueeze(-1)
    return _chosen_head(h_ND, expert_N, head_EVD, bias_EV).view(*hidden_ND.shape[:-1], -1)


def _chosen_head(h_ND: Tensor, expert_N: Tensor, head_EVD: Tensor, bias_EV: Tensor | None) -> Tensor:
    """Each token times the head of its expert: sorted by expert, one product each, and back in order."""
    order_N = expert_N.argsort(stable=True)
    inverse_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    counts_E = (expert_N.unsqueeze(-1) == torch.arange(len(head_EVD), device=expert_N.device)).sum(0)
    sorted_NV = grouped_linear(permute_rows(h_ND, order_N, inverse_N), head_EVD, counts_E, bias_EV)
    return permute_rows(sorted_NV, inverse_N, order_N)
