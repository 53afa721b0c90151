"""All that a resume needs, and nothing else: a killed and resumed run ends bit-identical to an undisturbed one.

A step is a pure function of (masters, moments, biases, step): batches are drawn by (seed, step), the learning rate
follows from the step, random numbers from (seed, step, row). So there is no schedule, data or RNG state to lose.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from bam_core.errors import ArtifactDamaged
from bam_core.train.optim import Optimizer

_TENSORS, _FACTS = "state.safetensors", "state.json"


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


def save_state(folder: Path, optimizer: Optimizer, progress: Progress) -> None:
    """Write optimizer and progress into `folder`. The facts come last: their presence means the tensors are whole."""
    save_file({name: tensor.contiguous() for name, tensor in optimizer.state().items()}, folder / _TENSORS)
    (folder / _FACTS).write_text(json.dumps(asdict(progress)))


def load_state(folder: Path, optimizer: Optimizer) -> Progress:
    """Restore what `save_state` wrote. Raises ArtifactDamaged, naming the folder, if it cannot be read."""
    try:
        facts = json.loads((folder / _FACTS).read_text())
        tensors = load_file(folder / _TENSORS)
        progress = Progress(**facts)
    except Exception as error:
        raise ArtifactDamaged(
            f"{folder}: not a whole checkpoint ({error}); remove it to train from the start"
        ) from error
    optimizer.load(tensors)
    return progress
