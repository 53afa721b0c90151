"""Tiny models, a worker without a cluster and batches by step, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.train.optim import Optimizer

DENSE = ModelConfig(vocab_size=61, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, max_seq_len=8)
MIXTURE = replace(DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(3, 1), experts=("general", "code", "law"))
PHASE = TrainConfig(tokens=8 * 8 * 12, batch_tokens=64, lr=1e-2, shares={"a": 1.0}, seq_len=8, seed=3)


class RandomRows:
    """Batches that depend on the step alone."""

    def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, 61, size=(rows_per_batch, 9))


@dataclass
class Worker:
    """die_at: the step whose checkpoint is the last thing it does."""

    folder: Path
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    threads: int = 1
    inputs: Mapping[str, Path] = field(default_factory=dict)
    die_at: int | None = None
    logged: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)

    def resume_dir(self) -> Path | None:
        saved = sorted(self.folder.glob("step-*"))
        return saved[-1] if saved else None

    def save(self, step: int, write: Callable[[Path], None], **_: Any) -> None:
        target = self.folder / f"step-{step:06d}"
        target.mkdir(parents=True)
        write(target)
        if step == self.die_at:
            raise KeyboardInterrupt

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, metrics))


def fresh(config: ModelConfig, seed: int = 0) -> LM:
    model = LM(config)
    init_weights(model, seed)
    return model


def masters(optimizer: Optimizer) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in optimizer.masters()}
