"""A router is a pure function of its logits: `GATES[name](logits, top_k) -> Routing`. No state, no loss.

Every gate leaves the leading dimensions as they are. Soft routing is `top_k == n_experts`: then the weights
are the probabilities themselves, in stacking order, under every gate.
Logits and softmax are in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """How tokens were routed. N stands for any leading dimensions.

    weights_NK: factor of each chosen expert's output.
    experts_NK: which experts, best first (in stacking order when soft).
    probs_NE: softmax over all experts, for the load-balancing loss. logits_NE: for the z-loss.
    """

    weights_NK: Tensor
    experts_NK: Tensor
    probs_NE: Tensor
    logits_NE: Tensor

    @property
    def n_experts(self) -> int:
        return self.probs_NE.shape[-1]


def _soft(logits_NE: Tensor) -> Routing:
    probs_NE = logits_NE.softmax(-1)
    everyone = torch.arange(logits_NE.shape[-1], device=logits_NE.device)
    return Routing(probs_NE, everyone.expand_as(logits_NE), probs_NE, logits_NE)


def softmax_topk(logits_NE: Tensor, top_k: int) -> Routing:
    """The k largest probabilities, not renormalised, so a top-1 router learns. Source: BAM, section 3.3."""
    if top_k == logits_NE.shape[-1]:
        return _soft(logits_NE)
    probs_NE = logits_NE.softmax(-1)
    weights_NK, experts_NK = probs_NE.topk(top_k, -1)
    return Routing(weights_NK, experts_NK, probs_NE, logits_NE)


def topk_softmax(logits_NE: Tensor, top_k: int) -> Routing:
    """Softmax over the k largest logits. Top-1 gives weight 1 and no gradient. Source: BTX, section 3.2."""
    if top_k == logits_NE.shape[-1]:
        return _soft(logits_NE)
    chosen_NK, experts_NK = logits_NE.topk(top_k, -1)
    return Routing(chosen_NK.softmax(-1), experts_NK, logits_NE.softmax(-1), logits_NE)


def softmax_topk_renorm(logits_NE: Tensor, top_k: int) -> Routing:
    """The k largest probabilities over their sum: `topk_softmax` but for rounding. Source: Mixtral."""
    routing = softmax_topk(logits_NE, top_k)
    if top_k == logits_NE.shape[-1]:
        return routing
    weights_NK = routing.weights_NK / routing.weights_NK.sum(-1, keepdim=True)
    return Routing(weights_NK, routing.experts_NK, routing.probs_NE, logits_NE)


GATES: dict[str, Callable[[Tensor, int], Routing]] = {
    "softmax_topk": softmax_topk,
    "topk_softmax": topk_softmax,
    "softmax_topk_renorm": softmax_topk_renorm,
}


def router_logits(x_ND: Tensor, router_ED: Tensor) -> Tensor:
    """x W_r^T in float32 or wider, whatever the model computes in."""
    wide = torch.promote_types(torch.promote_types(x_ND.dtype, router_ED.dtype), torch.float32)
    return F.linear(x_ND.to(wide), router_ED.to(wide))


def dense_gate(routing: Routing) -> Tensor:
    """gate_NE: each expert's weight, 0 where it was not chosen."""
    if routing.weights_NK.shape == routing.probs_NE.shape:
        return routing.weights_NK
    return torch.zeros_like(routing.probs_NE).scatter(-1, routing.experts_NK, routing.weights_NK)


def expert_counts(routing: Routing) -> Tensor:
    """counts_E: how many (token, choice) pairs went to each expert; they sum to K*N."""
    everyone = torch.arange(routing.n_experts, device=routing.experts_NK.device)
    return (routing.experts_NK.reshape(-1, 1) == everyone).sum(0)
