"""The training loss: next-token likelihood, and the two router losses of BAM, Eq. 2.

    L = L_NLL + mean over layers of ( load_balancing_coef * L_LB + z_loss_coef * L_z )

Sums and means are taken in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bam_core.nn.routing import Routing, expert_counts

IGNORED = -1
"""A target that counts for nothing."""


class _NextTokenLoss(torch.autograd.Function):
    """Cross entropy a few rows at a time: float32 probabilities stay in cache and are never all in memory.

    The gradient, softmax minus one-hot, falls out of the same pass and is kept in the dtype of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        values_per_chunk = 2**18 if logits_NV.device.type == "cpu" else 2**26
        rows = max(1, values_per_chunk // logits_NV.shape[1])
        grad_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        total = logits_NV.new_zeros((), dtype=wide)
        for start in range(0, len(logits_NV), rows):
            logits, targets = logits_NV[start : start + rows], targets_N[start : start + rows, None]
            counted = targets != IGNORED
            targets = targets.clamp(min=0)
            probs = logits.softmax(-1, dtype=wide)
            # The largest probability is 1 / sum(exp(logit - largest)): its logarithm cannot underflow.
            below_largest = logits.amax(-1, keepdim=True).to(wide) - logits.gather(1, targets).to(wide)
            total += ((below_largest - probs.amax(-1, keepdim=True).log()) * counted).sum()
            if grad_NV is not None:
                probs.scatter_add_(1, targets, probs.new_full((1, 1), -1.0).expand_as(targets))
                torch.mul(probs, counted, out=grad_NV[start : start + rows])
        ctx.save_for_backward(grad_NV)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * grad_output.to(grad_NV.dtype), None


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of -ln p(target) over the targets that are not -1, in nats."""
    logits_NV, targets_N = logits_BTV.flatten(0, -2), targets_BT.flatten()
    loss: Tensor = _NextTokenLoss.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return loss


def load_balancing_loss(
    routing: Sequence[Routing], frac_LE: Tensor | None = None, mask_N: Tensor | None = None
) -> Tensor:
    """E * sum_e f_e P_e, mean over layers: 1 when balanced, whatever top-k; E when one expert gets all.

    f_e: fraction of (token, choice) pairs sent to e. P_e: mean probability of e; gradients flow through it.
    frac_LE: f from elsewhere. A part of a batch does not know the whole batch's f; given it, the loss is a mean over
    tokens like any other, and any split of the batch adds up to the same gradient.
    mask_N: true for the tokens that count; with none, the loss is 0.
    Source: BAM, Eq. 2 (Switch, Eq. 4), with f divided by k.
    """
    assert routing, "needs the routing of at least one layer"
    if frac_LE is None:
        counts_LE = assignments(routing, mask_N)
        frac_LE = counts_LE / counts_LE.sum(-1, keepdim=True).clamp(min=1)
    probs_LE = torch.stack([_mean_over_tokens(layer.probs_NE.flatten(0, -2), mask_N) for layer in routing])
    return routing[0].n_experts * (frac_LE.to(probs_LE.dtype) * probs_LE).sum(-1).mean()


def assignments(routing: Sequence[Routing], mask_N: Tensor | None = None) -> Tensor:
    """counts_LE: (token, choice) pairs each layer sent to each expert; float64, so any sum over a batch is exact."""
    if mask_N is not None:
        kept = mask_N.flatten().bool()
        routing = [replace(layer, experts_NK=layer.experts_NK.flatten(0, -2)[kept]) for layer in routing]
    return torch.stack([expert_counts(layer) for layer in routing]).double()


def router_z_loss(routing: Sequence[Routing], mask_N: Tensor | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2, mean over layers: keeps router logits small.

    mask_N: as in `load_balancing_loss`.
    Source: BAM, Eq. 2 (ST-MoE, Eq. 5).
    """
    assert routing, "needs the routing of at least one layer"
    squares = [layer.logits_NE.logsumexp(-1).square() for layer in routing]
    return torch.stack([_mean_over_tokens(square_N.flatten(), mask_N) for square_N in squares]).mean()


def _mean_over_tokens(values: Tensor, mask_N: Tensor | None) -> Tensor:
    """Mean over the first dimension, of the tokens in the mask; a masked token's value is not even read."""
    if mask_N is None:
        return values.mean(0)
    kept = values[mask_N.flatten().bool()]
    return kept.sum(0) / max(1, len(kept))
