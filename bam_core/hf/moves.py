"""How a tensor of ours becomes tensors of an export: a `Move` takes some of ours and makes some of theirs.

Invariant: the moves of a model name each of our tensors once and each of theirs once, so nothing is lost or left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import frexp, prod

import torch
from torch import Tensor

from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem
from bam_core.nn.attention import half_pairs as in_halves
from bam_core.nn.shapes import Shape

Turn = Callable[[Sequence[Tensor]], list[Tensor]]
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Move:
    """theirs: names and shapes, in the order in which `turn` makes them; none for what is left out. how: in words.

    is_router: a matrix or bias of a router, which the self-contained file keeps in float32 and other classes do not.
    rounds: numbers change by rounding, and so not at all in float32 or wider for all that a logit shows.
    """

    ours: tuple[str, ...]
    theirs: Mapping[str, Shape]
    how: str
    turn: Turn
    is_router: bool = False
    rounds: bool = False

    @property
    def is_small(self) -> bool:
        """Whether it reads vectors only: what is said of their values can be found out before anything is written."""
        return all(len(shape) < 2 for shape in self.theirs.values())


def same(ours: str, theirs: str, shape: Shape, *, is_router: bool = False) -> Move:
    return Move((ours,), {theirs: shape}, AS_IT_IS, list, is_router)


def folded(ours: str, theirs: str, shape: Shape, half_pairs: ModelConfig | None = None) -> Move:
    """Rows of all experts one below the other. half_pairs: also each head's rows, for rotary pairs (j, j + R/2), of a
    model of this config."""
    rows_at = len(shape) - (2 if ours.rsplit(".", 1)[-1].startswith("w_") else 1)
    flat = (prod(shape[: rows_at + 1]), *shape[rows_at + 1 :])
    how = ["experts below each other"] if rows_at else []
    if half_pairs is not None and half_pairs.rotary_pairs != "half":
        how.append("rotary pairs (2j, 2j + 1) as (j, j + R/2)")

    def turn(found: Sequence[Tensor]) -> list[Tensor]:
        rows = found[0].reshape(flat)
        return [rows if half_pairs is None else paired(rows, half_pairs).contiguous()]

    return Move((ours,), {theirs: flat}, ", ".join(how) or AS_IT_IS, turn)


def interleaved(ours: str, theirs: str, shape: Shape, config: ModelConfig) -> Move:
    """Rows, or numbers, of one model's queries or keys, in the order of rotary pairs (2j, 2j + 1)."""
    if config.rotary_pairs == "interleaved":
        return same(ours, theirs, shape)

    def turn(found: Sequence[Tensor]) -> list[Tensor]:
        heads = found[0].reshape(-1, config.head_dim, *shape[1:])
        pairs = heads[:, : config.rotary_dim].reshape(len(heads), 2, -1, *shape[1:])
        turning = pairs.transpose(1, 2).flatten(1, 2)
        return [torch.cat((turning, heads[:, config.rotary_dim :]), 1).reshape(shape)]

    return Move((ours,), {theirs: shape}, "rotary pairs (j, j + R/2) as (2j, 2j + 1)", turn)


def paired(rows: Tensor, config: ModelConfig) -> Tensor:
    """Rows (or numbers) of queries or keys, each head's in the order of halves."""
    return in_halves(rows, config) if rows.ndim > 1 else in_halves(rows.unsqueeze(-1), config).squeeze(-1)


def transposed(ours: str, theirs: str, shape: Shape, *, how: str = "transposed") -> Move:
    """shape: of ours; a leading E is kept."""
    return Move((ours,), {theirs: (*shape[:-2], shape[-1], shape[-2])}, how, lambda found: [found[0].mT.contiguous()])


def apart(ours: str, theirs: Sequence[str], shape: Shape, *, transpose: bool = False, factor: float = 1.0) -> Move:
    """A stack of experts as a tensor for each. shape: of ours. factor: of all numbers."""
    one = shape[:0:-1] if transpose else shape[1:]
    words = "a tensor for each expert" + (", transposed" if transpose else "")

    def turn(found: Sequence[Tensor]) -> list[Tensor]:
        parts = [part.mT if transpose else part for part in found[0].unbind()]
        if factor != 1:
            parts = [(part.double() * factor).to(part.dtype) for part in parts]
        return [part.clone().contiguous() for part in parts]

    rounds = factor != 1 and not _is_power_of_two(factor)
    how = words if factor == 1 else f"{words}, times the gain {factor!r}"
    return Move((ours,), dict.fromkeys(theirs, one), how, turn, rounds=rounds)


def one_for_all(ours: str, theirs: str, heads: int, channels: int, what: str, config: ModelConfig) -> Move:
    """One scale for every head there, one of each here. `turn` raises InvalidInput where heads differ."""

    def turn(found: Sequence[Tensor]) -> list[Tensor]:
        scale_HC = paired(found[0].flatten(), config).view(heads, channels)
        if not bool((scale_HC == scale_HC[0]).all()):
            reason = f"must be the same for all {heads} heads: {what} has one scale for them"
            raise InvalidInput(what, [Problem(ours, f"{heads} scales", reason, "export to bam")])
        return [scale_HC[0].clone()]

    return Move((ours,), {theirs: (channels,)}, f"one scale for {heads} heads that have the same", turn)


def left_out_if_zero(ours: str, what: str) -> Move:
    """`turn` raises InvalidInput where it is not zero."""

    def turn(found: Sequence[Tensor]) -> list[Tensor]:
        if bool(found[0].any()):
            reason = f"must be zero: {what} has no such bias"
            raise InvalidInput(what, [Problem(ours, [round(x, 4) for x in found[0].tolist()], reason, "export to bam")])
        return []

    return Move((ours,), {}, "left out: it is zero", turn)


def require_each_once(moves: Sequence[Move], ours: Sequence[str]) -> None:
    """Raises AssertionError naming what would be lost or made twice."""
    read = [name for move in moves for name in move.ours]
    made = [name for move in moves for name in move.theirs]
    assert sorted(read) == sorted(ours), f"not moved once: {sorted(set(read) ^ set(ours)) or _twice(read)}"
    assert len(set(made)) == len(made), f"made twice: {_twice(made)}"


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _is_power_of_two(value: float) -> bool:
    return frexp(value)[0] == 0.5
