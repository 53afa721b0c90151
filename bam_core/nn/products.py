"""Products with a matrix that stays as it is for many calls: laid out once, as the kernel at hand reads it best.

For inference alone. In bf16 on a CPU with several rows, oneDNN's kernel, through the calls that torch has for its own
compiler: it takes packed matrices (three times as fast for 16 rows as one that it must pack again in each call), and
applies SwiGLU's activation and product before it rounds. One row: torch's matrix-vector product where the processor
has AMX; elsewhere that takes more than twice as long as oneDNN does, packed (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.nn.layers import FFN, Activation, SwiGLU, hidden
from bam_core.nn.moe import MixtureOfExperts

Layout = Callable[[Tensor], Tensor]
"""From a matrix w_RI as it is stored to the same one as products read it."""

LAID_OUT_FROM = 8
"""Steps from which on a copy of the weights in another layout is worth its time."""


def layout_for(weight: Tensor, rows: int, steps: int) -> Layout:
    """How matrices like this one are laid out for calls of so many rows, so many times."""
    if steps < LAID_OUT_FROM or weight.device.type != "cpu":
        return _as_stored
    if _has_kernel(weight) and (rows > 1 or packs_one_row()):
        return _packed
    return Tensor.contiguous if rows == 1 else _as_stored


def packs_one_row() -> bool:
    """Whether one row is multiplied sooner with packed matrices than with those that are stored."""
    return not torch.cpu._is_amx_tile_supported()


def _as_stored(w_RI: Tensor) -> Tensor:
    return w_RI


def _packed(w_RI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(w_RI)
    return packed


def _has_kernel(x: Tensor) -> bool:
    """Whether oneDNN multiplies these, through the calls that torch has for its own compiler."""
    bf16 = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return bf16 and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Product:
    """x_NI -> x W^T, N rows. The matrix is laid out when it is first used: some experts never are."""

    def __init__(self, w_RI: Tensor, layout: Layout) -> None:
        self._stored_RI, self._layout = w_RI.detach(), layout
        self._weight: Tensor | None = None
        self._kernel = _has_kernel(w_RI)

    @property
    def weight(self) -> Tensor:
        if self._weight is None:
            self._weight = self._layout(self._stored_RI)
        return self._weight

    def _fused(self, n_rows: int) -> bool:
        """torch's matrix-vector product is quicker where nothing is packed."""
        return self._kernel and (n_rows > 1 or self.weight.is_mkldnn)

    def __call__(self, x_NI: Tensor) -> Tensor:
        if self._fused(len(x_NI)):
            return self._pointwise(x_NI, "none")
        if len(x_NI) == 1 and self.weight.is_contiguous():
            return torch.mv(self.weight, x_NI[0]).unsqueeze(0)
        return F.linear(x_NI, self.weight)

    def silu(self, x_NI: Tensor) -> Tensor:
        return self._pointwise(x_NI, "swish") if self._fused(len(x_NI)) else F.silu(self(x_NI), inplace=True)

    def times(self, x_NI: Tensor, factor_NR: Tensor) -> Tensor:
        if not self._fused(len(x_NI)):
            return self(x_NI).mul_(factor_NR)
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NI, factor_NR, self.weight, None, "mul")
        return found

    def _pointwise(self, x_NI: Tensor, then: str) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, None, then, [], "")
        return found


class SwiGLUProduct:
    def __init__(self, w_gate_FD: Tensor, w_up_FD: Tensor, w_down_FD: Tensor, layout: Layout) -> None:
        self._gate, self._up = Product(w_gate_FD, layout), Product(w_up_FD, layout)
        self._down = Product(w_down_FD.T, layout)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self._down(self._up.times(x_ND, self._gate.silu(x_ND)))


class FFNProduct:
    """Of an FFN that is no SwiGLU."""

    def __init__(self, activation: Activation, tensors: Mapping[str, Tensor], layout: Layout) -> None:
        """tensors: by the names of `FFN`, those that there are."""
        self._activation = activation
        self._gate = BiasedProduct(tensors["w_gate"], tensors.get("b_gate"), layout) if "w_gate" in tensors else None
        self._up = BiasedProduct(tensors["w_up"], tensors.get("b_up"), layout)
        self._down = BiasedProduct(tensors["w_down"].T, tensors.get("b_down"), layout)

    def __call__(self, x_ND: Tensor) -> Tensor:
        gate_NF = self._gate(x_ND) if self._gate is not None else None
        return self._down(hidden(self._activation, gate_NF, self._up(x_ND)))


class BiasedProduct:
    """x_NI -> x W^T + b."""

    def __init__(self, w_RI: Tensor, bias_R: Tensor | None, layout: Layout) -> None:
        self._product, self._bias = Product(w_RI, layout), bias_R.detach() if bias_R is not None else None

    def __call__(self, x_NI: Tensor) -> Tensor:
        y_NR = self._product(x_NI)
        return y_NR if self._bias is None else y_NR.add_(self._bias)


def ffn_product(module: SwiGLU | FFN, layout: Layout) -> SwiGLUProduct | FFNProduct:
    if isinstance(module, SwiGLU):
        return SwiGLUProduct(module.w_gate, module.w_up, module.w_down, layout)
    return FFNProduct(module.activation, dict(module.named_parameters()), layout)


def expert_products(module: MixtureOfExperts, layout: Layout) -> list[SwiGLUProduct | FFNProduct]:
    """One for each expert."""
    names = [name for name, _ in module.named_parameters(recurse=False) if name[:2] in ("w_", "b_")]
    stacks = zip(*(module.get_parameter(name) for name in names), strict=True)
    experts = [dict(zip(names, parts, strict=True)) for parts in stacks]
    if module.is_swiglu:
        return [SwiGLUProduct(own["w_gate"], own["w_up"], own["w_down"], layout) for own in experts]
    return [FFNProduct(module.activation, own, layout) for own in experts]
