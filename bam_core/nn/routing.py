"""A router is a pure function of its logits: `route(logits, experts) -> Routing`. No state, no loss.

Every gate leaves the leading dimensions as they are. Soft routing is `top_k == n_experts`: then the weights
are the probabilities themselves, in stacking order, under every gate.
Logits and softmax are in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core import plugins
from bam_core.config import AttentionExperts, FFNExperts
from bam_core.seeds import child_seed


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


def router_reads(x_BTD: Tensor, text_BTD: Tensor | None) -> Tensor:
    """What the router of a branch reads: the token, and beside it the text so far where the model gives it that."""
    if text_BTD is None:
        return x_BTD
    return torch.cat((x_BTD.to(text_BTD.dtype), text_BTD), -1)


def router_logits(x_ND: Tensor, router_ED: Tensor) -> Tensor:
    """x W_r^T in float32 or wider, whatever the model computes in."""
    wide = torch.promote_types(torch.promote_types(x_ND.dtype, router_ED.dtype), torch.float32)
    return F.linear(x_ND.to(wide), router_ED.to(wide))


def route(
    logits_NE: Tensor,
    experts: AttentionExperts | FFNExperts,
    *,
    bias_E: Tensor | None = None,
    balance_E: Tensor | None = None,
    noise_NE: Tensor | None = None,
    temperature: float = 1.0,
) -> Routing:
    """Route by the experts' gate and top_k.

    bias_E: added to the logits. balance_E: added to the probabilities for the choice of experts only, so that weights
    and gradients stay those of the router. noise_NE, temperature: for `sample_top1` in training.
    """
    if bias_E is not None:
        logits_NE = logits_NE + bias_E
    if noise_NE is not None:
        assert experts.gate == "sample_top1", f"{experts.gate} takes no noise"
        return sampled_top1(logits_NE, noise_NE, temperature, balance_E)
    if experts.gate not in GATES and experts.top_k == logits_NE.shape[-1]:
        return _soft(logits_NE)  # a plug-in is asked for a choice only
    return gate(experts.gate)(logits_NE, experts.top_k, balance_E)


class Gate(Protocol):
    """From logits to a routing; balance_E as in `route`."""

    def __call__(self, logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing: ...


def softmax_topk(logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing:
    """The k largest probabilities, not renormalised, so a top-1 router learns. Source: BAM, section 3.3."""
    if top_k == logits_NE.shape[-1]:
        return _soft(logits_NE)
    probs_NE = logits_NE.softmax(-1)
    weights_NK, experts_NK = _largest(probs_NE, top_k, _plus(probs_NE, balance_E))
    return Routing(weights_NK, experts_NK, probs_NE, logits_NE)


def topk_softmax(logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing:
    """Softmax over the k largest logits. Top-1 gives weight 1 and no gradient. Source: BTX, section 3.2."""
    if top_k == logits_NE.shape[-1]:
        return _soft(logits_NE)
    choice_NE = logits_NE if balance_E is None else logits_NE.softmax(-1) + balance_E
    chosen_NK, experts_NK = _largest(logits_NE, top_k, choice_NE)
    return Routing(chosen_NK.softmax(-1), experts_NK, logits_NE.softmax(-1), logits_NE)


def softmax_topk_renorm(logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing:
    """The k largest probabilities over their sum: `topk_softmax` but for rounding. Source: Mixtral."""
    routing = softmax_topk(logits_NE, top_k, balance_E)
    if top_k == logits_NE.shape[-1]:
        return routing
    weights_NK = routing.weights_NK / routing.weights_NK.sum(-1, keepdim=True)
    return Routing(weights_NK, routing.experts_NK, routing.probs_NE, logits_NE)


def softmax_topk_ste(logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing:
    """The weights of `softmax_topk_renorm`, which keep an expert's scale, with the gradient of `softmax_topk`."""
    routing = softmax_topk(logits_NE, top_k, balance_E)
    if top_k == logits_NE.shape[-1]:
        return routing
    weights_NK = routing.weights_NK / routing.weights_NK.sum(-1, keepdim=True)
    return Routing(_value_of(weights_NK, routing.weights_NK), routing.experts_NK, routing.probs_NE, logits_NE)


def sample_top1(logits_NE: Tensor, top_k: int, balance_E: Tensor | None = None) -> Routing:
    """The likeliest expert, with weight 1: `sampled_top1` without noise, for inference. Source: BTX, section 3.3."""
    if top_k == logits_NE.shape[-1]:
        return _soft(logits_NE)
    assert top_k == 1, f"sample_top1 chooses one expert, not {top_k}"
    routing = softmax_topk(logits_NE, 1, balance_E)
    return Routing(torch.ones_like(routing.weights_NK), routing.experts_NK, routing.probs_NE, logits_NE)


def sampled_top1(logits_NE: Tensor, noise_NE: Tensor, temperature: float, balance_E: Tensor | None = None) -> Routing:
    """The largest of y = softmax((logits + noise) / temperature), and y as its weight. Source: BTX, section 3.3.

    With Gumbel noise an expert is chosen as often as its probability says.
    """
    y_NE = ((logits_NE + noise_NE) / temperature).softmax(-1)
    weights_NK, experts_NK = _largest(y_NE, 1, _plus(y_NE, balance_E))
    return Routing(weights_NK, experts_NK, logits_NE.softmax(-1), logits_NE)


GATES: dict[str, Gate] = {
    "softmax_topk": softmax_topk,
    "topk_softmax": topk_softmax,
    "softmax_topk_renorm": softmax_topk_renorm,
    "softmax_topk_ste": softmax_topk_ste,
    "sample_top1": sample_top1,
}


def gate(name: str) -> Gate:
    """The routing rule of this name: a row of GATES, or a plug-in's. Raises UsageError."""
    if name in GATES:
        return GATES[name]
    rule: Gate = plugins.load(plugins.ROUTING_RULES, name, _require_gate)
    return rule


_ANY_NE = ((0.5, -1.0, 2.0, 0.0), (-0.5, 1.5, 0.25, -2.0))
_SURE_NE = ((-1e4, 1e4, -1e4, -1e4),)
"""Logits that a plug-in's rule is tried on."""


def _require_gate(rule: Any) -> None:
    """What the model and its receipt rely on. Raises ValueError."""
    if not callable(rule):
        raise ValueError(f"must be a function (logits_NE, top_k, balance_E=None) -> Routing, not {rule!r:.60}")
    logits_NE = torch.tensor(_ANY_NE, dtype=torch.float64)
    for top_k, balance_E in ((1, None), (2, logits_NE.new_zeros(4))):
        found = rule(logits_NE, top_k, balance_E)
        if not isinstance(found, Routing):
            raise ValueError(f"must return a bam_core.nn.routing.Routing, not a {type(found).__name__}")
        shapes = [list(part.shape) for part in (found.weights_NK, found.experts_NK, found.probs_NE, found.logits_NE)]
        if shapes != [[2, top_k], [2, top_k], [2, 4], [2, 4]]:
            raise ValueError(f"of logits [2, 4] with top_k {top_k}, weights, experts, probs and logits are {shapes}")
        chosen_NK = found.experts_NK
        if chosen_NK.dtype != torch.int64 or not ((chosen_NK >= 0) & (chosen_NK < 4)).all():
            raise ValueError("experts_NK must be int64 numbers of experts")
        if any(len(set(row)) < top_k for row in chosen_NK.tolist()):
            raise ValueError("experts_NK must name each expert once")
        if not torch.isfinite(found.weights_NK).all() or found.weights_NK.dtype != logits_NE.dtype:
            raise ValueError("weights_NK must be finite and in the dtype of the logits")
        if (found.probs_NE.sum(1) - 1).abs().max() > 1e-6:
            raise ValueError("probs_NE must sum to 1: the load-balancing loss reads them")
    sure = rule(logits_NE.new_tensor(_SURE_NE), 1, None)
    if sure.experts_NK.item() != 1 or sure.weights_NK.item() != 1:
        raise ValueError("an expert that the router is sure of must be chosen, with weight 1: receipts rest on it")


def _soft(logits_NE: Tensor) -> Routing:
    probs_NE = logits_NE.softmax(-1)
    everyone = torch.arange(logits_NE.shape[-1], device=logits_NE.device)
    return Routing(probs_NE, everyone.expand_as(logits_NE), probs_NE, logits_NE)


def _largest(values_NE: Tensor, top_k: int, choice_NE: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the top_k experts and which they are: those of the largest choice_NE."""
    if choice_NE is values_NE:
        return values_NE.topk(top_k, -1)
    experts_NK = choice_NE.topk(top_k, -1).indices
    return values_NE.gather(-1, experts_NK), experts_NK


def _plus(probs_NE: Tensor, balance_E: Tensor | None) -> Tensor:
    return probs_NE if balance_E is None else probs_NE + balance_E


def _value_of(value: Tensor, gradient: Tensor) -> Tensor:
    """The value of one, bit for bit, with the gradient of the other."""
    return value.detach() + (gradient - gradient.detach())


def dense_gate(routing: Routing) -> Tensor:
    """gate_NE: each expert's weight, 0 where it was not chosen."""
    if routing.weights_NK.shape == routing.probs_NE.shape:
        return routing.weights_NK
    return torch.zeros_like(routing.probs_NE).scatter(-1, routing.experts_NK, routing.weights_NK)


def straight_through(routing: Routing) -> Tensor:
    """gate_NE: the value of `dense_gate`, with the gradient of the probabilities of all experts.

    Whoever multiplies it with the outputs of all experts gives the router the gradient of the soft mixture, and each
    expert that of the sparse one. Source: DenseMixer (Yao et al. 2025).
    """
    return _value_of(dense_gate(routing), routing.probs_NE)


def expert_counts(routing: Routing) -> Tensor:
    """counts_E: how many (token, choice) pairs went to each expert; they sum to K*N."""
    everyone = torch.arange(routing.n_experts, device=routing.experts_NK.device)
    return (routing.experts_NK.reshape(-1, 1) == everyone).sum(0)


def normalised_entropy(probs_NE: Tensor) -> Tensor:
    """entropy_N of the probabilities over ln E: 0 for a router that is always sure, 1 for a uniform one."""
    entropy_N: Tensor = torch.special.entr(probs_NE).sum(-1)
    return entropy_N / log(max(2, probs_NE.shape[-1]))


def mean_entropy(routing: Sequence[Routing]) -> Tensor:
    """Mean over tokens and layers of `normalised_entropy`; no gradient. The layers have equally many experts."""
    return normalised_entropy(torch.stack([layer.probs_NE.detach() for layer in routing])).mean()


@dataclass(frozen=True)
class Noise:
    """The random part of `sample_top1`: one seed for each row of the batch, so no split of a batch changes a draw."""

    row_seeds: tuple[int, ...]
    temperature: float

    def rows(self, start: int, end: int) -> Noise:
        """That of a part of the batch."""
        return Noise(self.row_seeds[start:end], self.temperature)

    def gumbel(self, layer: int, n_time: int, n_experts: int, device: torch.device) -> Tensor:
        """gumbel_BTE in float32: -ln(-ln u), u uniform; a row is a function of its seed and the layer alone."""
        draws = []
        for seed in self.row_seeds:
            generator = torch.Generator().manual_seed(child_seed(seed, f"gumbel/{layer}"))
            draws.append(torch.rand(n_time, n_experts, generator=generator, dtype=torch.float64))
        u_BTE = torch.stack(draws).clamp_(min=2.0**-54)  # half of rand's smallest step above 0, where ln is infinite
        return u_BTE.log_().neg_().log_().neg_().to(device, torch.float32)
