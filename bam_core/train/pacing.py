"""How long a training step of an architecture takes on this machine: real steps, of random weights on random tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.protocols import Metrics
from bam_core.train.loop import Pace, train

WARM_UP = 1
"""Steps that are not timed: a first one allocates, compiles and finds its kernels."""
LEARNING_RATE = 1e-6
"""Too low for anything to diverge; the arithmetic of a step does not depend on it."""


@dataclass(frozen=True)
class Paced:
    """What is trained: a model's shape, its phase and how it is executed."""

    model: ModelConfig
    phase: TrainConfig
    pace: Pace = field(default_factory=Pace)
    device: str = "cpu"
    threads: int = 1


@dataclass
class _Watched:
    """Random rows, and when each batch was asked for: the loop asks once a step, when the one before has ended."""

    vocab_size: int
    row_len: int
    clock: Callable[[], float]
    asked: list[float] = field(default_factory=list)

    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        rows = np.random.default_rng(step).integers(0, self.vocab_size, (rows_per_batch, self.row_len))
        self.asked.append(self.clock())
        return rows


@dataclass
class Alone:
    """A worker group of one that keeps nothing."""

    device: str
    threads: int
    rank: int = 0
    world_size: int = 1
    inputs: Mapping[str, Path] = field(default_factory=dict)

    def resume_dir(self) -> Path | None:
        return None

    def save(
        self, step: int, write: Callable[[Path], None], *, metrics: Metrics | None = None, sharded: bool = False
    ) -> None:
        pass

    def log(self, step: int, metrics: Metrics) -> None:
        pass


def step_seconds(
    paced: Paced, n_steps: int, seed: int = 0, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each of `n_steps` steps, after those that warm up."""
    phase = replace(
        paced.phase,
        tokens=(WARM_UP + n_steps + 1) * paced.phase.batch_tokens,  # the last step's end is nobody's start
        lr=LEARNING_RATE,
        anneal=None,
        adaptive=None,
        collapse_stop=False,
        attention_soft_frac=0.0,  # how most steps are, not the first
    )
    model = LM(paced.model)
    init_weights(model, seed)
    rows = _Watched(paced.model.vocab_size, phase.seq_len + 1, clock)
    pace = replace(paced.pace, checkpoint_steps=phase.n_steps + 1, strategy="ddp")
    train(model, rows, phase, Alone(paced.device, paced.threads), pace)
    times = rows.asked[WARM_UP:]
    return [end - start for start, end in pairwise(times)]


def seconds_per_token(
    models: Mapping[str, Paced],
    n_steps: int,
    rounds: int,
    say: Callable[[str, float], None] = lambda name, seconds: None,
    measure: Callable[[Paced, int, int], Sequence[float]] = step_seconds,
) -> dict[str, float]:
    """The median over all steps, for each model. They take turns, so that what slows the machine slows all of them.

    say: told the figure of each turn.
    """
    found: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        for name, paced in models.items():
            seconds = [s / paced.phase.batch_tokens for s in measure(paced, n_steps, turn)]
            found[name] += seconds
            say(name, median(seconds))
    return {name: median(seconds) for name, seconds in found.items()}
