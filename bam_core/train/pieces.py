"""A tensor by its pieces: what each rank holds of it, and files of pieces that any number of ranks can read.

A file is safetensors, in the layout of torch's distributed checkpoints (`HuggingFaceStorageWriter` with
`save_distributed`): the header's `DCP_SHARDING_INFO` says where each piece begins in its tensor. So torch reads it too,
and nothing is pickled. We write and read it ourselves: torch's writer plans with collectives, which could not run
beside a training step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Box = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """tensor: what is held, which may be empty. offset: where it begins in the whole tensor, of `shape`."""

    tensor: Tensor
    offset: Box
    shape: Box


def whole(tensor: Tensor) -> Piece:
    return Piece(tensor, (0,) * tensor.ndim, tuple(tensor.shape))


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a part. Where nothing was sharded the module of such tensors, a second of imports, is
    not there to be asked."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def piece_of(tensor: DTensor) -> Piece:
    """This rank's shard of a tensor that is split along one dimension: equal parts, rounded up, the last ones short."""
    from torch.distributed.tensor import Shard

    (placement,), mesh = tensor.placements, tensor.device_mesh
    assert isinstance(placement, Shard), placement
    size = tensor.shape[placement.dim]
    step = -(-size // mesh.size())
    offset = [0] * tensor.ndim
    offset[placement.dim] = min(size, mesh.get_local_rank() * step)
    return Piece(tensor.to_local(), tuple(offset), tuple(tensor.shape))


def write_pieces(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write the pieces that are not empty."""
    held = {name: piece for name, piece in pieces.items() if piece.tensor.numel()}
    offsets = {name: {"saved_offsets": list(piece.offset)} for name, piece in held.items()}
    tensors = {name: piece.tensor.detach().cpu().contiguous() for name, piece in held.items()}
    save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"})


class PieceFiles:
    """The tensors whose pieces lie in some files; what is read is read where it is asked for.

    Raises ValueError if two files hold the same piece.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._held: dict[str, list[tuple[Box, Box, Any]]] = {}
        """tensor name -> (where a piece begins, its shape, its slices) of each piece"""
        for path in paths:
            file: Any = safe_open(path, framework="pt")
            offsets = json.loads((file.metadata() or {})["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                piece = file.get_slice(name)
                begin, shape = tuple(offsets[name]["saved_offsets"]), tuple(piece.get_shape())
                held = self._held.setdefault(name, [])
                if any(begin == other for other, *_ in held):
                    raise ValueError(f"{path.name} has a piece of {name} that another file has too")
                held.append((begin, shape, piece))

    def names(self) -> set[str]:
        return set(self._held)

    @torch.no_grad()
    def read_into(self, name: str, target: Piece) -> None:
        """Fill a piece from all that overlap it. Raises ValueError unless they fill it, and have its tensor's shape."""
        held = self._held.get(name, [])
        shape = tuple(max(ends) for ends in zip(*(_end(begin, size) for begin, size, _ in held), strict=True))
        if shape != target.shape:
            raise ValueError(f"{name} has shape {list(shape)}; must be {list(target.shape)}")
        if not target.tensor.numel():
            return
        n_filled, end_of_target = 0, _end(target.offset, tuple(target.tensor.shape))
        for begin, size, values in held:
            low = tuple(map(max, begin, target.offset))
            high = tuple(map(min, _end(begin, size), end_of_target))
            if all(a < b for a, b in zip(low, high, strict=True)):
                target.tensor[_within(low, high, target.offset)] = values[_within(low, high, begin)].to(
                    target.tensor.device
                )
                n_filled += prod(b - a for a, b in zip(low, high, strict=True))
        if n_filled != target.tensor.numel():
            raise ValueError(f"{name}: {n_filled:,} of {target.tensor.numel():,} values are there")


def _end(begin: Box, shape: Box) -> Box:
    return tuple(a + n for a, n in zip(begin, shape, strict=True))


def _within(low: Box, high: Box, origin: Box) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
