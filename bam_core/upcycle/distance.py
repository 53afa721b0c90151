"""How far a model's weights are from its seed's, by group of tensors: whether one was trained from the other.

Models that were trained apart have weights that know nothing of each other, whatever they learned: the cosine of two
matrices of n entries is then about 1 / sqrt(n). One that was trained from the other keeps most of its direction.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt

from bam_core.checkpoint import TensorSource
from bam_core.upcycle.pieces import pieces

GROUPS = ("embedding", "attention", "ffn", "norms", "head")
RELATED = 0.5
"""Cosine of attention and FFN matrices from which on one is taken to come from the other. Those of models trained
apart are within 0.05 of 0; fine-tuning leaves 0.9 and more."""
JUDGED = ("attention", "ffn")
"""Norm scales are all near 1, and embeddings share the frequencies of tokens: they are alike in any two models."""


@dataclass(frozen=True)
class Distance:
    """relative: norm of the difference over the seed's. cosine: of the two, all entries as a vector."""

    relative: float
    cosine: float


@dataclass
class _Sums:
    seed: float = 0.0
    other: float = 0.0
    product: float = 0.0
    difference: float = 0.0

    def add(self, seed: TensorSource, other: TensorSource, name: str) -> None:
        for a, b in zip(pieces(seed.get(name)), pieces(other.get(name)), strict=True):
            x, y = a.double().flatten(), b.double().flatten()
            self.seed += float(x @ x)
            self.other += float(y @ y)
            self.product += float(x @ y)
            self.difference += float((x - y) @ (x - y))

    def distance(self) -> Distance:
        norms = sqrt(self.seed) * sqrt(self.other)
        relative = sqrt(self.difference / self.seed) if self.seed else float(self.difference > 0)
        return Distance(relative, self.product / norms if norms else float(self.seed == self.other))


def distances(seed: TensorSource, other: TensorSource) -> dict[str, Distance]:
    """Group -> distance, of models with tensors of equal names and shapes; `judged` is of those that tell.

    One tensor of each is held.
    """
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    for name in seed.names():
        group = group_of(name)
        sums[group].add(seed, other, name)
    found = {group: sums[group].distance() for group in GROUPS if group in sums}
    judged = [sums[group] for group in JUDGED if group in sums]
    whole = _Sums(*(sum(getattr(one, name) for one in judged) for name in ("seed", "other", "product", "difference")))
    return found | {"judged": whole.distance()}


def group_of(name: str) -> str:
    """The group of a dense model's tensor."""
    first, *rest = name.split(".")
    if first in ("embed", "head"):
        return "embedding" if first == "embed" else "head"
    module = rest[1] if first == "blocks" else ""
    if module == "attn" and not name.endswith(("q_norm", "k_norm")):
        return "attention"
    return "ffn" if module == "ffn" else "norms"
