"""Dropless FFN experts: tokens sorted by expert, one grouped product per matrix, results back in order.

    FFN(x) = sum_{e in top-k} g_e(x) FFN_e(x)                                    Source: BAM, section 3.3

No capacity and no dropping, so a token's output never depends on the rest of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import FFNExperts, ModelConfig
from bam_core.nn.layers import empty
from bam_core.nn.routing import GATES, Routing, expert_counts, router_logits


def grouped_linear(x_ND: Tensor, w_ERD: Tensor, counts_E: Tensor) -> Tensor:
    """y_NR: the first counts_E[0] rows times w_ERD[0].T, the next counts_E[1] times w_ERD[1].T, and so on."""
    if x_ND.device.type == "cuda" and x_ND.dtype == torch.bfloat16:
        return grouped_kernel(x_ND, w_ERD, counts_E)
    # One product per expert: on a CPU faster than the kernel, and there for every dtype.
    groups = torch.split(x_ND, counts_E.tolist())
    return torch.cat([F.linear(x, w) for x, w in zip(groups, w_ERD.unbind(), strict=True)])


def grouped_kernel(x_ND: Tensor, w_ERD: Tensor, counts_E: Tensor) -> Tensor:
    """`grouped_linear` by torch's grouped kernel: one launch, and the counts stay on the device."""
    return F.grouped_mm(x_ND, w_ERD.mT, offs=counts_E.cumsum(0, dtype=torch.int32))


class _PermuteRows(torch.autograd.Function):
    """x[order]. The gradient gathers by the inverse: no scatter-add, so it is fast and deterministic."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(order_N, inverse_N)
        return x_ND.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        order_N, inverse_N = ctx.saved_tensors
        return permute_rows(grad_ND, inverse_N, order_N), None, None


def permute_rows(x_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
    """x_ND[order_N], where inverse_N undoes order_N."""
    permuted_ND: Tensor = _PermuteRows.apply(x_ND, order_N, inverse_N)  # type: ignore[no-untyped-call]
    return permuted_ND


class MixtureOfExperts(nn.Module):
    """E SwiGLU experts with a router; each token goes to its top-k."""

    def __init__(self, config: ModelConfig, experts: FFNExperts) -> None:
        super().__init__()
        shape = (experts.n_experts, config.d_ff, config.d_model)
        self.experts = experts
        self.w_gate = empty(*shape)
        self.w_up = empty(*shape)
        self.w_down = empty(*shape)
        self.router = empty(experts.n_experts, config.d_model)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        routing = GATES[self.experts.gate](router_logits(x_BTD, self.router), self.experts.top_k)
        counts_E = expert_counts(routing)
        order_M = routing.experts_NK.flatten().argsort(stable=True)  # M = B*T*K pairs of a token and a chosen expert
        inverse_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        x_BTKD = x_BTD.unsqueeze(2).expand(-1, -1, self.experts.top_k, -1)
        x_MD = permute_rows(x_BTKD.reshape(-1, x_BTD.shape[-1]), order_M, inverse_M)
        h_MF = F.silu(grouped_linear(x_MD, self.w_gate, counts_E)) * grouped_linear(x_MD, self.w_up, counts_E)
        y_MD = grouped_linear(h_MF, self.w_down.mT, counts_E)
        y_BTKD = permute_rows(y_MD, inverse_M, order_M).view_as(x_BTKD)
        return (y_BTKD * routing.weights_NK.to(y_MD.dtype).unsqueeze(-1)).sum(2), routing
