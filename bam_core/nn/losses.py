"""The training loss: next-token likelihood, and the two router losses of BAM, Eq. 2.

    L = L_NLL + mean over layers of ( load_balancing_coef * L_LB + z_loss_coef * L_z )

Sums and means are taken in float32; float64 stays float64.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

from bam_core.nn.routing import Routing, expert_counts

IGNORED = -1
"""A target that counts for nothing."""

VALUES_PER_PRODUCT = 2**31
"""Logits of one product where they are not kept: 4 GiB of bf16, the 8192 tokens of a long row by 256,000."""


class _NextTokenLoss(torch.autograd.Function):
    """Cross entropy whose gradient, softmax minus one-hot, falls out of the same pass, in the dtype of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        grad_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        total = _loss_and_gradient(logits_NV, targets_N, grad_NV)
        ctx.save_for_backward(grad_NV)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * grad_output.to(grad_NV.dtype), None


class _LinearNextTokenLoss(torch.autograd.Function):
    """`_NextTokenLoss` of h W^T, some tokens at a time: no logits are left when the forward pass is done."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        n_parts = ceil(len(hidden_ND) * len(weight_VD) / VALUES_PER_PRODUCT)
        total = hidden_ND.new_zeros((), dtype=wide)
        grads_hidden, grad_VD = [], None
        for h_ND, targets in zip(hidden_ND.tensor_split(n_parts), targets_N.tensor_split(n_parts), strict=True):
            logits_NV = h_ND @ weight_VD.mT
            total += _loss_and_gradient(logits_NV, targets, logits_NV)  # the gradient takes the place of the logits
            grads_hidden.append(logits_NV @ weight_VD)
            grad = logits_NV.mT @ h_ND
            if grad_VD is None:
                grad_VD = grad if n_parts == 1 else grad.to(wide)
            else:
                grad_VD += grad
        ctx.save_for_backward(torch.cat(grads_hidden), grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_ND, grad_VD = ctx.saved_tensors
        return grad_ND * grad_output.to(grad_ND.dtype), grad_VD * grad_output.to(grad_VD.dtype), None


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of -ln p(target) over the targets that are not -1, in nats."""
    logits_NV, targets_N = logits_BTV.flatten(0, -2), targets_BT.flatten()
    loss: Tensor = _NextTokenLoss.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return loss


def linear_next_token_loss(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """`next_token_loss` of the logits h W^T, which are never all in memory. Both gradients are made at once: a caller
    without a use for them is better served by `next_token_loss`."""
    hidden_ND, targets_N = hidden_BTD.flatten(0, -2), targets_BT.flatten()
    loss: Tensor = _LinearNextTokenLoss.apply(hidden_ND, weight_VD, targets_N)  # type: ignore[no-untyped-call]
    return loss


def _loss_and_gradient(logits_NV: Tensor, targets_N: Tensor, grad_NV: Tensor | None) -> Tensor:
    """Sum of -ln p(target). Writes softmax minus one-hot into grad_NV, which may be the logits themselves."""
    if logits_NV.device.type == "cuda" and can_compile():
        return _compiled()(logits_NV, targets_N, grad_NV)
    return _in_chunks(logits_NV, targets_N, grad_NV)


def _in_chunks(logits_NV: Tensor, targets_N: Tensor, grad_NV: Tensor | None) -> Tensor:
    """A few rows at a time, in one buffer: what is in float32 stays in cache, and no memory is asked for."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    values_per_chunk = 2**18 if logits_NV.device.type == "cpu" else 2**26
    n_rows = max(1, values_per_chunk // logits_NV.shape[1])
    buffer = torch.empty((n_rows, logits_NV.shape[1]), dtype=wide, device=logits_NV.device)
    total = logits_NV.new_zeros((), dtype=wide)
    for start in range(0, len(logits_NV), n_rows):
        rows = slice(start, start + n_rows)
        targets_N1 = targets_N[rows, None]
        counted_N1 = (targets_N1 != IGNORED).to(wide)
        targets_N1 = targets_N1.clamp(min=0)
        x = buffer[: len(targets_N1)].copy_(logits_NV[rows])
        largest_N1 = x.amax(1, keepdim=True)
        below_N1 = largest_N1 - x.gather(1, targets_N1)
        sum_N1 = x.sub_(largest_N1).exp_().sum(1, keepdim=True)  # at least 1, so its logarithm cannot underflow
        total += ((below_N1 + sum_N1.log()) * counted_N1).sum()
        if grad_NV is not None:
            grad_NV[rows] = x.mul_(counted_N1 / sum_N1).scatter_add_(1, targets_N1, -counted_N1)
    return total


def _at_once(logits_NV: Tensor, targets_N: Tensor, grad_NV: Tensor | None) -> Tensor:
    """The same as one expression, for a compiler: it keeps no tensor of float32 in memory, and reads logits twice."""
    x = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    targets_N1 = targets_N.unsqueeze(1)
    counted_N1 = targets_N1 != IGNORED
    largest_N1 = x.amax(1, keepdim=True)
    exp_NV = (x - largest_N1).exp()
    sum_N1 = exp_NV.sum(1, keepdim=True)
    below_N1 = largest_N1 - logits_NV.gather(1, targets_N1.clamp(min=0))
    total = ((below_N1 + sum_N1.log()) * counted_N1).sum()
    if grad_NV is not None:
        is_target_NV = torch.arange(x.shape[1], device=x.device) == targets_N1
        grad_NV.copy_(exp_NV * (counted_N1 / sum_N1) - is_target_NV.to(x.dtype))
    return total


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    compiled: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch.compile(_at_once)
    return compiled


@cache
def can_compile() -> bool:
    """Whether the C compiler is there that torch.compile calls to start kernels of a GPU."""
    return any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "clang") if name)


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
        frac_LE = counts_LE / counts_LE.sum(1, keepdim=True).clamp(min=1)
    probs_LE = torch.stack([_mean_over_tokens(layer.probs_NE.flatten(0, -2), mask_N) for layer in routing])
    return routing[0].n_experts * (frac_LE.to(probs_LE.dtype) * probs_LE).sum(1).mean()


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
