"""All that a resume needs, and nothing else: a killed and resumed run ends bit-identical to an undisturbed one.

A step is a pure function of (masters, moments, biases, step): batches are drawn by (seed, step), the learning rate
follows from the step, random numbers from (seed, step, row). So there is no schedule, data or RNG state to lose.

A checkpoint is `state.json` and one file of pieces for each rank that holds some. Tensors go by the parameters' names
and say where each piece lies, so any number of ranks, sharded or not, can go on from what any other wrote.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bam_core.errors import ArtifactDamaged
from bam_core.train.optim import Optimizer
from bam_core.train.pieces import Piece, PieceFiles, write_pieces

_FACTS = "state.json"


@dataclass
class Progress:
    """What a run remembers beside its tensors. step: steps done. history: one entry per logged step."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Sums since the last history entry."""
    expert_frac: list[list[float]] = field(default_factory=list)
    """Per layer, the fraction of the last step's tokens that each FFN expert got: what the next step balances."""
    smooth_loss: float | None = None
    """Exponential mean of the loss, to tell a spike."""
    collapse: dict[str, Any] = field(default_factory=dict)
    """What `collapse.watch` knows: experts without work, and the alarms."""
    data_path: list[dict[str, Any]] = field(default_factory=list)
    """Where shares follow the losses: every `adapt.Segment` so far, in JSON."""
    reference: dict[str, float] = field(default_factory=dict)
    """There: each domain's loss of comparison."""


@dataclass(frozen=True)
class State:
    """What one of `n_files` ranks writes of a checkpoint. facts: the progress, in JSON."""

    facts: str
    pieces: dict[str, Piece]
    rank: int = 0
    n_files: int = 1

    @classmethod
    def of(cls, optimizer: Optimizer, progress: Progress, rank: int = 0, world_size: int = 1) -> State:
        """Where parameters are sharded every rank writes its shards; what all hold is written by rank 0 alone."""
        n_files = world_size if optimizer.sharded else 1
        pieces = {
            name: piece
            for name, piece in optimizer.pieces().items()
            if rank == 0 or piece.shape != tuple(piece.tensor.shape)
        }
        return cls(json.dumps(asdict(progress) | {"n_files": n_files}), pieces, rank, n_files)

    def copy(self) -> State:
        """In the host's memory, as it is now, whatever becomes of the optimizer."""
        copies = {
            name: Piece(_host_copy(piece.tensor), piece.offset, piece.shape) for name, piece in self.pieces.items()
        }
        return State(self.facts, copies, self.rank, self.n_files)

    def write(self, folder: Path) -> None:
        """The facts come last: their presence means that rank 0's tensors are whole."""
        write_pieces(folder / _file(self.rank, self.n_files), self.pieces)
        if self.rank == 0:
            (folder / _FACTS).write_text(self.facts)


def _host_copy(tensor: Tensor) -> Tensor:
    bytes_N = torch.from_numpy(np.empty(tensor.nbytes, np.uint8))  # numpy asks for large pages: half the time to fill
    return bytes_N.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())


def load_state(folder: Path, optimizer: Optimizer) -> Progress:
    """Restore what some ranks wrote. Raises ArtifactDamaged, naming the folder, if it cannot be read."""
    try:
        facts = json.loads((folder / _FACTS).read_text())
        n_files = facts.pop("n_files")
        files = PieceFiles(folder / _file(rank, n_files) for rank in range(n_files))
        progress = Progress(**facts)
        wanted = optimizer.pieces()
        if differing := files.names() ^ wanted.keys():
            raise ValueError(f"other tensors than this run's: {', '.join(sorted(differing)[:3])}")
        for name, piece in wanted.items():
            files.read_into(name, piece)
    except Exception as error:
        raise ArtifactDamaged(
            f"{folder}: not a whole checkpoint ({error}); remove it to train from the start"
        ) from error
    optimizer.loaded(progress.step)
    return progress


def _file(rank: int, n_files: int) -> str:
    return f"state-{rank + 1:05d}-of-{n_files:05d}.safetensors"
