"""Large tensors a piece at a time: what a conversion to float64 or a check allocates stays small. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 20
"""Elements looked at together. `merge.dare` draws piece by piece: another size is another draw."""


def pieces(x: Tensor) -> Iterator[Tensor]:
    """Flat pieces, in order; views where the tensor is contiguous."""
    flat_N = x.flatten()
    for start in range(0, flat_N.numel(), PIECE):
        yield flat_N[start : start + PIECE]


def together(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The pieces of tensors of one shape, side by side."""
    for other in others:
        assert x.shape == other.shape, f"{tuple(x.shape)} != {tuple(other.shape)}"
    yield from zip(pieces(x), *map(pieces, others), strict=True)
