"""The chosen experts of every token on a CPU: rows sorted by expert into padded groups, one product per group.

oneDNN compiles a kernel for each new shape of a product, in 1 to 4 ms, and keeps the last thousand. The lengths of
groups are new in every batch; padded to whole blocks there are few, which makes a small model's training step of four
experts 1.2 to 1.5 times as fast. A place that pads holds some token's row. Nothing reads what comes of it, so no
gradient comes back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.nn.routing import Routing, expert_counts

BLOCK = 32
"""Rows of which every group is a multiple: more is more padding, less is more kernels; 16 to 128 measured alike."""


@dataclass(frozen=True)
class Places:
    """Where the rows of a batch lie, sorted by expert, P places in all.

    of_NK: the place of each token's row for each of its experts. token_P: whose row lies in a place.
    ends: where each expert's group ends, in stacking order.
    """

    of_NK: Tensor
    token_P: Tensor
    ends: tuple[int, ...]


def places_of(routing: Routing) -> Places:
    """Groups of whole blocks, unless rows are so few that hardly any group would fill one."""
    experts_M = routing.experts_NK.flatten()
    top_k, n_experts = routing.experts_NK.shape[-1], routing.n_experts
    block = BLOCK if len(experts_M) >= BLOCK * n_experts else 1
    counts_E = expert_counts(routing)
    ends_E = ((counts_E + block - 1) // block * block).cumsum(0)
    ends = tuple(ends_E.tolist())
    order_M = experts_M.argsort(stable=True)
    # The j-th of the sorted pairs lies behind as many pads as the groups before its own have.
    pads_E = ends_E.roll(1).index_fill_(0, ends_E.new_zeros(1), 0) - (counts_E.cumsum(0) - counts_E)
    sorted_M = torch.arange(len(experts_M), device=experts_M.device) + pads_E[experts_M[order_M]]
    of_M = torch.empty_like(order_M).scatter_(0, order_M, sorted_M)
    token_P = order_M.new_zeros(ends[-1]).index_copy_(0, sorted_M, order_M // top_k)
    return Places(of_M.view(-1, top_k), token_P, ends)


class _Spread(torch.autograd.Function):
    """Each token's row to its places. The gradient gathers and sums over choices: no scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, of_NK: Tensor, token_P: Tensor) -> Tensor:
        ctx.save_for_backward(of_NK)
        return x_ND.index_select(0, token_P)

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (of_NK,) = ctx.saved_tensors
        grad_NKD = grad_PD.index_select(0, of_NK.flatten()).view(*of_NK.shape, -1)
        return grad_NKD.sum(1) if of_NK.shape[1] > 1 else grad_NKD.squeeze(1), None, None


class _Collect(torch.autograd.Function):
    """What lies in each token's places. Pads get no gradient."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, of_NK: Tensor) -> Tensor:
        ctx.save_for_backward(of_NK)
        ctx.n_places = len(y_PD)
        return y_PD.index_select(0, of_NK.flatten()).view(*of_NK.shape, -1)

    @staticmethod
    def backward(ctx: Any, grad_NKD: Tensor) -> tuple[Tensor, None]:
        (of_NK,) = ctx.saved_tensors
        grad_PD = grad_NKD.new_zeros(ctx.n_places, grad_NKD.shape[-1])
        return grad_PD.index_copy_(0, of_NK.flatten(), grad_NKD.flatten(0, 1)), None


class _GroupedSwiGLU(torch.autograd.Function):
    """(silu(x W_gate^T) * (x W_up^T)) W_down, each group of rows with the matrices of its expert.

    Against autograd's own graph of the same products: the gradient of a stacked weight is not put together from its
    parts, and the two gradients of x are summed by the product that makes the second.
    """

    @staticmethod
    def forward(
        ctx: Any, x_PD: Tensor, w_gate_EFD: Tensor, w_up_EFD: Tensor, w_down_EFD: Tensor, ends: Sequence[int]
    ) -> Tensor:
        gate_PF, up_PF = (grouped_product(x_PD, w_EFD.mT, ends) for w_EFD in (w_gate_EFD, w_up_EFD))
        silu_PF = F.silu(gate_PF)
        h_PF = silu_PF * up_PF
        ctx.save_for_backward(x_PD, w_gate_EFD, w_up_EFD, w_down_EFD, gate_PF, up_PF, silu_PF, h_PF)
        ctx.groups = _groups(ends)
        return grouped_product(h_PF, w_down_EFD, ends)

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x_PD, w_gate_EFD, w_up_EFD, w_down_EFD, gate_PF, up_PF, silu_PF, h_PF = ctx.saved_tensors
        grad_w_gate, grad_w_up, grad_w_down = (_unfilled(w, ctx.groups) for w in (w_gate_EFD, w_up_EFD, w_down_EFD))
        grad_h_PF, grad_x_PD = torch.empty_like(h_PF), torch.empty_like(x_PD)
        for e, rows in ctx.groups:
            torch.mm(grad_PD[rows], w_down_EFD[e].T, out=grad_h_PF[rows])
            torch.mm(h_PF[rows].T, grad_PD[rows], out=grad_w_down[e])
        grad_up_PF = grad_h_PF * silu_PF
        grad_gate_PF = torch.ops.aten.silu_backward(grad_h_PF.mul_(up_PF), gate_PF)
        for e, rows in ctx.groups:
            torch.mm(grad_gate_PF[rows].T, x_PD[rows], out=grad_w_gate[e])
            torch.mm(grad_up_PF[rows].T, x_PD[rows], out=grad_w_up[e])
            torch.mm(grad_gate_PF[rows], w_gate_EFD[e], out=grad_x_PD[rows]).addmm_(grad_up_PF[rows], w_up_EFD[e])
        return grad_x_PD, grad_w_gate, grad_w_up, grad_w_down, None


def grouped_swiglu(x_ND: Tensor, w_gate_EFD: Tensor, w_up_EFD: Tensor, w_down_EFD: Tensor, places: Places) -> Tensor:
    """y_NKD: what each token's experts make of it."""
    x_PD: Tensor = _Spread.apply(x_ND, places.of_NK, places.token_P)  # type: ignore[no-untyped-call]
    y_PD: Tensor = _GroupedSwiGLU.apply(x_PD, w_gate_EFD, w_up_EFD, w_down_EFD, places.ends)  # type: ignore[no-untyped-call]
    y_NKD: Tensor = _Collect.apply(y_PD, places.of_NK)  # type: ignore[no-untyped-call]
    return y_NKD


def grouped_product(x_PA: Tensor, w_EAB: Tensor, ends: Sequence[int]) -> Tensor:
    """y_PB: each group of rows times the matrix of its expert."""
    y_PB = x_PA.new_empty(len(x_PA), w_EAB.shape[2])
    for e, rows in _groups(ends):
        torch.mm(x_PA[rows], w_EAB[e], out=y_PB[rows])
    return y_PB


def _groups(ends: Sequence[int]) -> list[tuple[int, slice]]:
    """The experts that have rows, and which."""
    starts = (0, *ends)
    return [(e, slice(start, end)) for e, (start, end) in enumerate(zip(starts, ends, strict=False)) if start < end]


def _unfilled(w_EFD: Tensor, groups: Sequence[tuple[int, slice]]) -> Tensor:
    """A gradient to be filled for the experts of `groups`, zero for the others."""
    return torch.empty_like(w_EFD) if len(groups) == len(w_EFD) else torch.zeros_like(w_EFD)
