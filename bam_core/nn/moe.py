"""Dropless FFN experts: tokens sorted by expert, one grouped product per matrix, results back in order.

    FFN(x) = sum_{e in top-k} g_e(x) FFN_e(x)                                    Source: BAM, section 3.3

No capacity and no dropping, so a token's output never depends on the rest of the batch; with `capacity_factor`, in
training, it depends on the earlier tokens of its row. What `FFNExperts` can ask for beside that is a line here each.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import FFNExperts, ModelConfig
from bam_core.nn.grouped import grouped_product, grouped_swiglu, places_of
from bam_core.nn.layers import ACTIVATIONS, dense_ffn, empty, gate_linear, hidden
from bam_core.nn.routing import Noise, Routing, expert_counts, route, router_logits, router_reads, straight_through


def grouped_linear(x_ND: Tensor, w_ERD: Tensor, counts_E: Tensor, bias_ER: Tensor | None = None) -> Tensor:
    """y_NR: the first counts_E[0] rows times w_ERD[0].T, the next counts_E[1] times w_ERD[1].T, and so on; each with
    its expert's bias, if there are biases."""
    aligned = w_ERD.shape[1] % 8 == 0 and w_ERD.shape[2] % 8 == 0  # the kernel reads 16 bytes at once
    if x_ND.device.type == "cuda" and x_ND.dtype == torch.bfloat16 and aligned:
        y_NR = grouped_kernel(x_ND, w_ERD, counts_E)
        return y_NR if bias_ER is None else y_NR + _of_groups(bias_ER, counts_E, len(x_ND))
    # One product per expert: on a CPU faster than the kernel, and there for every dtype and shape.
    groups = torch.split(x_ND, counts_E.tolist())
    biases = [None] * len(w_ERD) if bias_ER is None else bias_ER.unbind()
    return torch.cat([F.linear(x, w, b) for x, w, b in zip(groups, w_ERD.unbind(), biases, strict=True)])


def _of_groups(bias_ER: Tensor, counts_E: Tensor, n_rows: int) -> Tensor:
    """Each row's bias, by a product with ones and zeros: its gradient is a product too, the same in every run."""
    ends_E, row_N = counts_E.cumsum(0), torch.arange(n_rows, device=counts_E.device)
    expert_N = torch.searchsorted(ends_E, row_N, right=True)
    return F.one_hot(expert_N, len(bias_ER)).to(bias_ER.dtype) @ bias_ER


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
    """E FFN experts with a router; each token goes to its top-k. `layer` picks the gain and the noise."""

    router_bias: nn.Parameter | None
    balance_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, experts: FFNExperts, layer: int = 0) -> None:
        super().__init__()
        E, D = experts.n_experts, config.d_model
        shape = (E, config.d_ff // experts.split, D)
        self.experts, self.layer = experts, layer
        self.is_swiglu, self.activation = config.is_swiglu, ACTIVATIONS[config.activation]
        self.gain = experts.gain[layer] if experts.gain else 1.0
        self.w_gate = empty(*shape) if config.gated else None
        self.w_up = empty(*shape)
        self.w_down = empty(*shape)
        self.b_gate = empty(*shape[:2]) if config.ffn_bias and config.gated else None
        self.b_up = empty(*shape[:2]) if config.ffn_bias else None
        self.b_down = empty(E, D) if config.ffn_bias else None
        self.shared = dense_ffn(config) if experts.shared_expert else None
        self.router = empty(E, config.router_width)
        self.router_bias = nn.Parameter(torch.empty(E), requires_grad=False) if experts.router_bias else None
        self.balance_bias = nn.Parameter(torch.empty(E), requires_grad=False) if experts.balance == "bias" else None

    def forward(
        self, x_BTD: Tensor, noise: Noise | None = None, text_BTD: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """The output, and the routing with the gain in its weights.

        noise: for `sample_top1` in training. text_BTD: the text so far, where the router reads it.
        """
        routing = self._route(router_reads(x_BTD, text_BTD), noise)
        gained = replace(routing, weights_NK=self.gain * routing.weights_NK)
        if self.experts.dense_router_gradient and self.training:
            y_BTD = self._all_experts(x_BTD, self.gain * straight_through(routing))
        else:
            y_BTD = self._chosen_experts(x_BTD, gained)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)[0], gained

    def _route(self, read_BTR: Tensor, noise: Noise | None) -> Routing:
        experts, noise_BTE = self.experts, None
        if noise is not None and experts.gate == "sample_top1":
            noise_BTE = noise.gumbel(self.layer, read_BTR.shape[1], experts.n_experts, read_BTR.device)
        routing = route(
            router_logits(read_BTR, self.router),
            experts,
            bias_E=self.router_bias,
            balance_E=self.balance_bias,
            noise_NE=noise_BTE,
            temperature=noise.temperature if noise is not None else 1.0,
        )
        if experts.capacity_factor is None or not self.training:
            return routing
        return drop_over_capacity(routing, experts.capacity_factor)

    def _chosen_experts(self, x_BTD: Tensor, routing: Routing) -> Tensor:
        """Each token through its own experts alone."""
        x_ND, top_k = x_BTD.flatten(0, -2), self.experts.top_k
        through = self._by_groups if self.is_swiglu and not x_BTD.is_cuda else self._by_kernel
        weighted_NKD = through(x_ND, routing) * routing.weights_NK.to(x_BTD.dtype).view(-1, top_k, 1)
        return (weighted_NKD.sum(1) if top_k > 1 else weighted_NKD).view_as(x_BTD)

    def _by_groups(self, x_ND: Tensor, routing: Routing) -> Tensor:
        places = places_of(routing)
        if torch.is_grad_enabled():
            return grouped_swiglu(x_ND, cast(Tensor, self.w_gate), self.w_up, self.w_down, places)
        # One stack after the other: while a mixture is being made, each is there only as long as it is asked for.
        x_PD = x_ND.index_select(0, places.token_P)
        h_PF = F.silu(grouped_product(x_PD, cast(Tensor, self.w_gate).mT, places.ends))
        h_PF *= grouped_product(x_PD, self.w_up.mT, places.ends)
        y_PD = grouped_product(h_PF, self.w_down, places.ends)
        return y_PD.index_select(0, places.of_NK.flatten()).view(*places.of_NK.shape, -1)

    def _by_kernel(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """y_NKD, of any form of FFN. On a GPU the counts of tokens stay on the device."""
        counts_E = expert_counts(routing)
        order_M = routing.experts_NK.flatten().argsort(stable=True)  # M = B*T*K pairs of a token and a chosen expert
        inverse_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        x_NKD = x_ND.unsqueeze(1).expand(-1, self.experts.top_k, -1)
        x_MD = permute_rows(x_NKD.reshape(-1, x_ND.shape[-1]), order_M, inverse_M)
        gate_MF = _grouped_gate(x_MD, self.w_gate, counts_E, self.b_gate)
        h_MF = hidden(self.activation, gate_MF, grouped_linear(x_MD, self.w_up, counts_E, self.b_up))
        y_MD = grouped_linear(h_MF, self.w_down.mT, counts_E, self.b_down)
        return permute_rows(y_MD, inverse_M, order_M).view_as(x_NKD)

    def _all_experts(self, x_BTD: Tensor, gate_BTE: Tensor) -> Tensor:
        """Each token through every expert, folded into one wide FFN: as sum_e g_e h_e W_e = (g h) @ stack(W)."""
        w_gate, b_gate, b_up = (_wide(part) for part in (self.w_gate, self.b_gate, self.b_up))
        w_up, w_down = self.w_up.flatten(0, 1), self.w_down.flatten(0, 1)
        gate_BTR = gate_linear(x_BTD, w_gate, b_gate)  # R = E*F hidden neurons of all experts
        h_BTR = hidden(self.activation, gate_BTR, F.linear(x_BTD, w_up, b_up))
        gate_BTE = gate_BTE.to(h_BTR.dtype)
        gated_BTEF = h_BTR.view(*gate_BTE.shape, -1) * gate_BTE.unsqueeze(-1)
        y_BTD = gated_BTEF.flatten(2) @ w_down
        return y_BTD if self.b_down is None else y_BTD + gate_BTE @ self.b_down


def _grouped_gate(x_MD: Tensor, w_EFD: Tensor | None, counts_E: Tensor, bias_EF: Tensor | None) -> Tensor | None:
    return None if w_EFD is None else grouped_linear(x_MD, w_EFD, counts_E, bias_EF)


def _wide(part: Tensor | None) -> Tensor | None:
    """The experts' rows one after another."""
    return None if part is None else part.flatten(0, 1)


def drop_over_capacity(routing: Routing, capacity_factor: float) -> Routing:
    """Weight 0 where an expert already has ceil(factor * T * K / E) earlier tokens of the row; leading dims are B, T.

    Per row, so that a row's output does not depend on its batch, and the earliest first, so that no token looks ahead.
    The choice stays: load is what the router asked for.
    """
    n_time, top_k = routing.experts_NK.shape[1:]
    capacity = ceil(capacity_factor * n_time * top_k / routing.n_experts)
    chosen_BTE = torch.zeros_like(routing.probs_NE, dtype=torch.int64).scatter_(-1, routing.experts_NK, 1)
    kept_BTK = (chosen_BTE.cumsum(1) <= capacity).gather(-1, routing.experts_NK)
    return replace(routing, weights_NK=routing.weights_NK * kept_BTK)
