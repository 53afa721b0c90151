"""How tensors of a public layout and of ours correspond: a `Link` joins some of theirs with some of ours, both ways.

Invariant: the links of a model name each of our tensors once and each of theirs once, so that nothing is lost in either
direction, and `to_theirs` undoes `to_ours` to the bit.

Ours have D last (`nn.shapes`). A public linear layer has its output first, so what writes to the residual stream is
transposed and what reads from it is as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bam_core.errors import InvalidInput, Problem
from bam_core.nn.shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

Turn = Callable[[Sequence["Tensor"]], "list[Tensor]"]


@dataclass(frozen=True)
class Link:
    """ours: names, in the order of `to_ours`' result. theirs: names and shapes, in the order that it takes them.

    is_wide: our numbers have digits that theirs have no room for, so they are not to be narrowed with the rest.
    """

    ours: tuple[str, ...]
    theirs: Mapping[str, Shape]
    to_ours: Turn
    to_theirs: Turn
    is_wide: bool = False


def same(ours: str, theirs: str, shape: Shape) -> Link:
    return Link((ours,), {theirs: shape}, list, list)


def transposed(ours: str, theirs: str, shape: Shape) -> Link:
    """shape: of ours."""
    return Link((ours,), {theirs: shape[::-1]}, _transpose, _transpose)


def offset_scale(ours: str, theirs: str, shape: Shape) -> Link:
    """A norm's scale that is stored as its difference from 1. In float64, so that the difference comes back whole."""
    return Link((ours,), {theirs: shape}, _add_one, _subtract_one, is_wide=True)


def reshaped(ours: str, theirs: str, shape: Shape, ours_shape: Shape) -> Link:
    """shape: of theirs."""
    return Link(
        (ours,),
        {theirs: shape},
        lambda found: [tensor.reshape(ours_shape) for tensor in found],
        lambda found: [tensor.reshape(shape) for tensor in found],
    )


def repeated(ours: str, theirs: str, heads: int, channels: int) -> Link:
    """One scale for every head there, one of each here: the same function until training tells them apart."""

    def to_theirs(found: Sequence[Tensor]) -> list[Tensor]:
        scale_HC = found[0].view(heads, channels)
        if not bool((scale_HC == scale_HC[0]).all()):
            expected = f"must be the same for all {heads} heads: theirs is one scale, {theirs}"
            raise InvalidInput("the way back", [Problem(ours, [heads, channels], expected, "export with a model file")])
        return [scale_HC[0].clone()]

    return Link((ours,), {theirs: (channels,)}, lambda found: [found[0].repeat(heads)], to_theirs)


def listed(ours: str, theirs: Sequence[str], channels: int) -> Link:
    """A tensor for each head there, one after another here."""

    def to_ours(found: Sequence[Tensor]) -> list[Tensor]:
        import torch  # a config is read without it

        return [torch.cat(list(found))]

    return Link(
        (ours,),
        dict.fromkeys(theirs, (channels,)),
        to_ours,
        lambda found: [part.clone() for part in found[0].view(-1, channels)],
    )


def packed(ours: Sequence[str], theirs: str, groups: int, queries: int, channels: int, tail: Shape) -> Link:
    """Queries, keys and values in one matrix: of each group the query heads that share a key, the key, the value.

    groups: key/value heads, G. queries: query heads of each. tail: (D,), or () for the bias. That of GPT-NeoX and of
    Falcon without shared keys has one query head in each of H groups; Falcon's multi-query has one group.
    """

    def to_ours(found: Sequence[Tensor]) -> list[Tensor]:
        heads = found[0].view(groups, queries + 2, channels, *tail)
        parts = (heads[:, :queries], heads[:, queries], heads[:, queries + 1])
        return [part.reshape(-1, *tail) for part in parts]

    def to_theirs(found: Sequence[Tensor]) -> list[Tensor]:
        import torch

        heads = [part.reshape(groups, -1, channels, *tail) for part in found]
        return [torch.cat(heads, 1).reshape(-1, *tail)]

    rows = groups * (queries + 2) * channels
    return Link(tuple(ours), {theirs: (rows, *tail)}, to_ours, to_theirs)


def _transpose(found: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.mT.contiguous() for tensor in found]


def _add_one(found: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() + 1 for tensor in found]


def _subtract_one(found: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() - 1 for tensor in found]
