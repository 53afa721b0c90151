"""A routing rule: each token's best experts, weighted by their squared probabilities.

Squares bring the weight of an expert that the router is fairly sure of nearer to 1, and leave it a gradient.
"""

from __future__ import annotations

from torch import Tensor

from bam_core.nn.routing import Routing


def squared(logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing:
    """The k largest probabilities, each squared, over the sum of the squares of all.

    balance_E: added to the probabilities for the choice of experts only (`balance: bias`).
    """
    probs_NE = logits_NE.softmax(-1)
    experts_NK = (probs_NE if balance_E is None else probs_NE + balance_E).topk(top_k, -1).indices
    squares_NE = probs_NE.square()
    weights_NK = squares_NE.gather(-1, experts_NK) / squares_NE.sum(-1, keepdim=True)
    return Routing(weights_NK, experts_NK, probs_NE, logits_NE)
