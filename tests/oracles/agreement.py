"""Comparisons that are remembered: each oracle's largest difference and its tolerance, for the table at the end.

A test asks for `agree` (conftest.py) and carries `@pytest.mark.oracle("name")`, the name of its row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

EXACT = 1e-12
"""float64 algebra: only the order of additions differs."""


class Disagreement(AssertionError):
    """Two results that must be one are not."""


@dataclass
class Row:
    """The largest difference that an oracle has seen, and what was allowed there."""

    n_comparisons: int = 0
    difference: float = 0.0
    allowed: float = EXACT

    @property
    def used(self) -> float:
        """The part of the tolerance that was needed; counts are compared with none."""
        return self.difference / self.allowed if self.allowed else (inf if self.difference else 0.0)


def worst(one: Row, other: Row) -> Row:
    """Both rows in one."""
    n_comparisons = one.n_comparisons + other.n_comparisons
    if not one.n_comparisons or other.used > one.used:
        return replace(other, n_comparisons=n_comparisons)
    return replace(one, n_comparisons=n_comparisons)


class Agreement:
    """Compare, remember the largest difference relative to what is allowed, raise if it is too large."""

    def __init__(self) -> None:
        self.row = Row()

    def __call__(self, actual: Tensor, expected: Tensor, tolerance: float = EXACT, what: str = "output") -> None:
        """tolerance: of a value of order 1; larger values are allowed as much more."""
        if actual.shape != expected.shape:
            raise Disagreement(f"{what}: {tuple(actual.shape)} is not {tuple(expected.shape)}")
        actual, expected = actual.detach().double(), expected.detach().double()
        allowed = tolerance * max(1.0, float(expected.abs().max()))
        difference = float(torch.nan_to_num(actual - expected, nan=torch.inf).abs().max())
        self.row = worst(self.row, Row(1, difference, allowed))
        if difference > allowed:
            raise Disagreement(f"{what}: differs by {difference:.3g}, allowed {allowed:.3g}")
