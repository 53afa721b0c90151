"""How one shared tensor is made from the dense models' tensors of its name: a table.

A merge takes (model, its tensor) in stacking order, the seed's first, as an iterator that reads one at a time, and
gives float32. Totals are float64: bf16 sources lose nothing, and equal tensors give that tensor to the bit, whatever
their number and the method. Memory beside the result: a float64 total and one tensor; `dare` holds the seed's too,
`ties` all of them (as they are stored). Work is done in pieces, so that conversions take no memory to speak of.

TIES and DARE act on differences from the seed ("task vectors"): the experts are copies of it, trained further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import atan2, fsum, pi, sin, sqrt
from typing import Any

import torch
from torch import Generator, Tensor

from bam_core import plugins
from bam_core.upcycle.pieces import pieces, together
from bam_core.upcycle.specs import MergeSpec

Parts = Iterator[tuple[str, Tensor]]
Merge = Callable[[Parts, MergeSpec, Generator], Tensor]


def mean(parts: Parts, spec: MergeSpec, generator: Generator) -> Tensor:
    """Average uniformly (BAM, section 4; BTX, section 3.2): the exact mean, rounded once."""
    _, tensor = next(parts)
    total = _copied(tensor, torch.float64)
    del tensor  # or it would stay alive while the iterator reads the next one
    count = 1
    for _, tensor in parts:
        _add(total, tensor)
        count += 1
        del tensor
    return total.div_(count).to(torch.float32)


def weighted(parts: Parts, spec: MergeSpec, generator: Generator) -> Tensor:
    """Average with `spec.weights`, which are taken as parts of their sum."""
    sum_of_weights = fsum(spec.weights.values())
    total = None
    for model, tensor in parts:
        if total is None:
            total = torch.full(tensor.shape, -0.0, dtype=torch.float64)  # -0 + x is x, for every x
        _add(total, tensor, weight=spec.weights[model] / sum_of_weights)
        del tensor
    assert total is not None, "a weighted mean of nothing"
    return total.to(torch.float32)


def seed(parts: Parts, spec: MergeSpec, generator: Generator) -> Tensor:
    """The seed's own; nothing else is read."""
    _, tensor = next(parts)
    return _copied(tensor, torch.float32)


def slerp(parts: Parts, spec: MergeSpec, generator: Generator) -> Tensor:
    """Interpolate along the arc between tensors, each taken as one long vector (Shoemake, 1985).

    Of two, with the angle a between them: (sin((1-t) a) x + sin(t a) y) / sin(a) at t = 1/2; of equal norms it has
    that norm, where the mean's is smaller. More than two: one after another, the k-th with t = 1/k; for small angles
    each has about the same part, and the result depends on their order. Where there is no one arc (a vector is zero,
    both point the same way or opposite ways) it is the straight line.
    """
    _, tensor = next(parts)
    total = _copied(tensor, torch.float64)
    del tensor
    count = 1
    for _, tensor in parts:
        count += 1
        of_total, of_tensor = _arc_weights(_angle(total, tensor), 1 / count)
        _add(total.mul_(of_total), tensor, weight=of_tensor)
        del tensor
    return total.to(torch.float32)


def _angle(x: Tensor, y: Tensor) -> float | None:
    """Between two vectors, from 0 to pi; None if one of them is zero. Exact near both ends, as acos is not (Kahan)."""
    x_norm, y_norm = _norm(x), _norm(y)
    if not x_norm or not y_norm:
        return None
    differences, sums = [], []
    for x_N, y_N in together(x, y):
        x_N, y_N = x_N.double() / x_norm, y_N.double() / y_norm
        differences.append((x_N - y_N).square().sum().item())
        sums.append((x_N + y_N).square().sum().item())
    return 2 * atan2(sqrt(fsum(differences)), sqrt(fsum(sums)))


def _norm(x: Tensor) -> float:
    return sqrt(fsum(part_N.double().square().sum().item() for part_N in pieces(x)))


def _arc_weights(angle: float | None, t: float) -> tuple[float, float]:
    if angle is None or angle == 0 or pi - angle < 1e-6:
        return 1 - t, t
    return sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)


def ties(parts: Parts, spec: MergeSpec, generator: Generator) -> Tensor:
    """Trim, elect sign, merge what agrees (Yadav et al., 2023, arXiv 2306.01708), per tensor.

    Of each model's difference from the seed the `density` largest entries are kept (all that are as large as the
    smallest of them); each element's sign is that of their sum; the seed moves by the mean of those with this sign. A
    draw, and an element that nobody keeps, leave it where it is.
    """
    tensors = [tensor for _, tensor in parts]
    start, others = tensors[0], tensors[1:]
    thresholds = [_threshold(start, other, spec.density) for other in others]
    merged = _copied(start, torch.float32)
    if not others:
        return merged
    for merged_N, start_N, *others_N in together(merged, *tensors):
        moved_KN = [_kept(start_N, *one) for one in zip(others_N, thresholds, strict=True)]
        _move(merged_N, start_N, _agreed_mean(torch.stack(moved_KN)))
    return merged


def _kept(start_N: Tensor, other_N: Tensor, threshold: float) -> Tensor:
    """The differences that are large enough, and else 0."""
    difference_N = other_N.double() - start_N.double()
    return difference_N.where(_magnitude(difference_N) >= threshold, 0)


def _threshold(start: Tensor, other: Tensor, density: float) -> float:
    """The magnitude of the smallest entry to keep: the k-th largest of N, k = density * N, rounded, at least 1."""
    magnitude = torch.empty(start.shape, dtype=torch.float32)
    for found_N, start_N, other_N in together(magnitude, start, other):
        found_N.copy_(_magnitude(other_N.double() - start_N.double()))
    values = magnitude.flatten().numpy()
    k = max(1, round(density * values.size))
    values.partition(values.size - k)
    return float(values[values.size - k])


def _magnitude(difference_N: Tensor) -> Tensor:
    """Rounded to float32, which keeps the order and halves the memory for finding the k-th largest."""
    return difference_N.abs().to(torch.float32)


def _agreed_mean(moved_KN: Tensor) -> Tensor:
    """Mean over the models whose entry has the sign of the sum; 0 where the sum is 0."""
    agrees_KN = moved_KN.sign() == moved_KN.sum(0).sign()
    return moved_KN.where(agrees_KN, 0).sum(0) / agrees_KN.sum(0).clamp(min=1)


def dare(parts: Parts, spec: MergeSpec, generator: Generator) -> Tensor:
    """Drop and rescale (Yu et al., 2023, arXiv 2311.03099), then average.

    Each entry of each model's difference from the seed is left out with probability `drop` and else divided by 1 -
    drop; the seed moves by their mean over all models, itself included. So the expectation is the plain mean.
    """
    _, start = next(parts)
    total = torch.zeros(start.shape, dtype=torch.float64)
    count = 1
    for _, tensor in parts:
        _add_kept(total, start, tensor, spec.drop, generator)
        count += 1
        del tensor
    total.div_(count * (1 - spec.drop))
    merged = _copied(start, torch.float32)
    for merged_N, start_N, moved_N in together(merged, start, total):
        _move(merged_N, start_N, moved_N)
    return merged


def _add_kept(total: Tensor, start: Tensor, tensor: Tensor, drop: float, generator: Generator) -> None:
    for sum_N, start_N, part_N in together(total, start, tensor):
        kept_N = torch.rand(sum_N.shape, generator=generator, dtype=torch.float32) >= drop
        sum_N.add_((part_N.double() - start_N.double()) * kept_N)


def _move(merged_N: Tensor, start_N: Tensor, moved_N: Tensor) -> None:
    """merged = start + moved, rounded once; where nothing moves, start itself (also a -0)."""
    merged_N.copy_((start_N.double() + moved_N).where(moved_N != 0, start_N.double()))


def _add(total: Tensor, tensor: Tensor, weight: float = 1.0) -> None:
    """total += weight * tensor. A function, as a piece that outlives its loop would keep the tensor alive."""
    for sum_N, part_N in together(total, tensor):
        sum_N.add_(part_N.double(), alpha=weight)


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of its own, contiguous, so that its pieces are views."""
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


MERGES: dict[str, Merge] = {
    "mean": mean,
    "weighted": weighted,
    "seed": seed,
    "slerp": slerp,
    "ties": ties,
    "dare": dare,
}


def merge_rule(name: str) -> Merge:
    """The merge of this name: a row of MERGES, or a plug-in's. Raises UsageError."""
    if name in MERGES:
        return MERGES[name]
    rule: Merge = plugins.load(plugins.MERGE_RULES, name, _require_merge)
    return rule


_ANY = ((0.5, -1.0, 2.0), (0.25, 3.0, -4.0))
_COPIES, _DIFFERENT = (1, 1), (1, 2, -1)
"""What a plug-in's rule is tried on: a tensor, and multiples of it as its models."""


def _require_merge(rule: Any) -> None:
    """What `upcycle` relies on. Raises ValueError."""
    if not callable(rule):
        raise ValueError(f"must be a function (parts, spec, generator) -> Tensor, not {rule!r:.60}")
    values = torch.tensor(_ANY, dtype=torch.float32)
    for factors in (_COPIES, _DIFFERENT):
        parts = ((f"model {number}", factor * values) for number, factor in enumerate(factors))
        merged = rule(parts, MergeSpec(), Generator().manual_seed(0))
        if not isinstance(merged, Tensor) or merged.dtype != torch.float32 or merged.shape != values.shape:
            raise ValueError("must return a float32 tensor of the shape of those that it merges")
        if not torch.isfinite(merged).all():
            raise ValueError("of finite tensors it makes one that is not finite")
        if factors == _COPIES and (merged - values).abs().max() > 1e-6:
            raise ValueError("of equal tensors it must make that tensor: copies of one model are that model")
