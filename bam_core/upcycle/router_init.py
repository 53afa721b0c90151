"""How a router starts: two tables, of what needs no data and of what is fitted to it.

A router reads a normalised vector of squared length about D, so rows of length `std * sqrt(D)` give logits of
standard deviation `std * sqrt(D)`: at the default 0.02 no expert is shut out before training. The papers name no
distribution (docs/deviations.md).

A fitted router is a linear classifier of domains: one row per domain, from the very vectors that the router will read.
Its direction comes from the data, its length from `temperature`: the factor, of a fixed ladder, with the least cross
entropy on the same tokens. So a router that cannot tell domains apart starts soft, and one that can starts sure.
Everything is a function of its inputs alone, in float64, every domain with equal weight whatever its number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import fsum, inf, sqrt

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bam_core.nn.shapes import Shape

ROUTER_STD = 0.02

RIDGE = 1e-2
"""Penalty of the ridge regression, of the mean squared value of an input channel."""

LADDER: tuple[float, ...] = tuple(2.0 ** (step / 2) for step in range(-8, 17))
"""Temperatures tried: half octaves from 1/16 to 256."""


def random(shape: Shape, generator: Generator, std: float = ROUTER_STD) -> Tensor:
    """Normal."""
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)


def zero(shape: Shape, generator: Generator, std: float = ROUTER_STD) -> Tensor:
    """All experts equal: soft attention starts as their average; a top-k gate breaks the tie by position."""
    return torch.zeros(shape, dtype=torch.float32)


def orthogonal(shape: Shape, generator: Generator, std: float = ROUTER_STD) -> Tensor:
    """Rows at right angles, each as long as a random one is on average; with E > D, columns at right angles."""
    n_experts, d = shape
    normal = torch.empty((max(shape), min(shape)), dtype=torch.float64).normal_(generator=generator)
    columns, triangle = torch.linalg.qr(normal)
    columns = columns * triangle.diagonal().sign()  # or the signs would be the routine's choice, not the generator's
    unit_ED: Tensor = columns.mT if n_experts <= d else columns * sqrt(n_experts / d)
    return (unit_ED * (std * sqrt(d))).to(torch.float32).contiguous()


INITS: dict[str, Callable[[Shape, Generator, float], Tensor]] = {
    "random": random,
    "zero": zero,
    "orthogonal": orthogonal,
}


def centroid(inputs: Sequence[Tensor]) -> Tensor:
    """router_ED: each domain's mean input less the mean of all domains, at unit length, times `temperature`.

    inputs: h_ND of each domain. Rows are at right angles to the mean of all: a router has no bias that could take off
    what all inputs have in common. A domain at the mean of all gets a row of zeros.
    """
    means_ED = torch.stack([h_ND.double().mean(0) for h_ND in inputs])
    common_D = means_ED.mean(0)
    away_ED = means_ED - common_D
    away_ED = away_ED - torch.outer(away_ED @ common_D, common_D) / common_D.square().sum().clamp(min=1e-30)
    unit_ED = F.normalize(away_ED, dim=1)
    return (unit_ED * temperature(unit_ED, inputs)).to(torch.float32)


def ridge(inputs: Sequence[Tensor]) -> Tensor:
    """router_ED: argmin over W of mean |W h - onehot(domain)|^2 + RIDGE s |W|^2, times `temperature`.

    inputs: h_ND of each domain. s is the mean squared value of a channel, so the penalty has no unit.
    """
    weights = [1 / sqrt(len(inputs) * len(h_ND)) for h_ND in inputs]
    h_ND = torch.cat([h_ND.double() * weight for h_ND, weight in zip(inputs, weights, strict=True)])
    domain_N = torch.arange(len(inputs)).repeat_interleave(torch.tensor([len(h) for h in inputs]))
    target_NE = F.one_hot(domain_N, len(inputs)) * torch.tensor(weights, dtype=torch.float64)
    n, d = h_ND.shape
    penalty = RIDGE * h_ND.square().sum().item() / d
    if n < d:  # the same solution by a smaller system
        gram_NN = h_ND @ h_ND.mT
        gram_NN.diagonal().add_(penalty)
        router_ED: Tensor = torch.linalg.solve(gram_NN, target_NE).mT @ h_ND
    else:
        gram_DD = h_ND.mT @ h_ND
        gram_DD.diagonal().add_(penalty)
        router_ED = torch.linalg.solve(gram_DD, h_ND.mT @ target_NE).mT
    return (router_ED * temperature(router_ED, inputs)).to(torch.float32)


def temperature(router_ED: Tensor, inputs: Sequence[Tensor]) -> float:
    """The factor of LADDER that, put to the router's logits, has the least cross entropy over the domains."""
    logits = [h_ND.to(router_ED.dtype) @ router_ED.mT for h_ND in inputs]

    def cross_entropy(factor: float) -> float:
        log_probs = [float((logits_NE * factor).log_softmax(1)[:, e].mean()) for e, logits_NE in enumerate(logits)]
        return -fsum(log_probs)

    return min(LADDER, key=cross_entropy)


FITS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"centroid": centroid, "ridge": ridge}


def condition(router_ED: Tensor) -> float:
    """Condition number of the differences between experts, which are all that a softmax sees; inf if all tie.

    Rows that are equal on purpose (copies of one expert, column groups of one FFN) count once.
    """
    rows_ED = torch.unique(router_ED.double(), dim=0)
    if len(rows_ED) < 2:
        return inf if len(router_ED) > 1 else 1.0
    singular = torch.linalg.svdvals(rows_ED - rows_ED.mean(0))[: len(rows_ED) - 1].tolist()
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else inf
