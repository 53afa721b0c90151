"""How a router starts: a table of `(shape, generator) -> float32 tensor`.

The papers name no distribution (docs/deviations.md). A router reads a normalised vector of squared length
about D, so std 0.02 gives logits of std 0.02 * sqrt(D): small enough that no expert is shut out before
training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from bam_core.nn.shapes import Shape

ROUTER_STD = 0.02


def random(shape: Shape, generator: Generator) -> Tensor:
    """Normal with std 0.02."""
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, ROUTER_STD, generator=generator)


def zero(shape: Shape, generator: Generator) -> Tensor:
    """All experts equal: soft attention starts as their average; a top-k gate breaks the tie by position."""
    return torch.zeros(shape, dtype=torch.float32)


INITS: dict[str, Callable[[Shape, Generator], Tensor]] = {"random": random, "zero": zero}
