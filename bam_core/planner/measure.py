"""Measures this device: real training steps and forward passes of small models, in turns, and the memory of a few.

Random weights on random tokens, as `train.pacing`; the arithmetic of a step does not depend on what is in them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from bam_core.checkpoint import write_model
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.evaluate.perplexity import token_nll
from bam_core.nn.lm import LM, init_weights
from bam_core.planner.work import Training, pass_costs
from bam_core.protocols import Metrics
from bam_core.train.loop import DTYPES, Pace, train
from bam_core.train.meter import product_flops_per_s
from bam_core.train.pacing import Alone, Paced, step_seconds
from bam_core.train.peak import peak_of_process

Clock = Callable[[], float]
EXPERTS = ("a", "b", "c", "d")
STEPS = 2
"""Timed in each turn of a model, after one that warms up."""


@dataclass(frozen=True)
class Point:
    """One model and batch that is measured. family: `dense`, `btx` or `bam`."""

    family: str
    model: ModelConfig
    rows: int
    micro_batch_rows: int

    @property
    def phase(self) -> TrainConfig:
        seq_len = self.model.max_seq_len
        batch = self.rows * seq_len
        return TrainConfig((STEPS + 2) * batch, batch, 1e-6, {"text": 1.0}, seq_len)

    @property
    def training(self) -> Training:
        return Training.of(self.model, self.phase, micro_batch_rows=self.micro_batch_rows)

    def paced(self, device: str, threads: int) -> Paced:
        return Paced(self.model, self.phase, Pace(self.micro_batch_rows), device, threads)

    def __str__(self) -> str:
        m = self.model
        rows = f"{self.rows} rows of {m.max_seq_len}, {self.micro_batch_rows} at once"
        return f"{self.family} {m.d_model}x{m.n_layers}, {rows}"


_CPU = (  # vocabulary, width, layers, heads, d_ff, positions, rows, rows at once: each counts another thing most
    (1024, 64, 2, 2, 176, 64, 16, 4),
    (4096, 128, 4, 4, 352, 256, 8, 4),
    (2048, 128, 6, 4, 352, 128, 4, 2),
    (8192, 256, 2, 4, 704, 256, 2, 2),
    (16384, 192, 1, 3, 512, 128, 8, 8),
    (1024, 512, 2, 8, 1408, 256, 8, 8),
)
_GPU = (
    (8192, 512, 4, 8, 1408, 512, 16, 8),
    (32768, 1024, 4, 16, 2816, 1024, 8, 4),
    (8192, 1024, 12, 16, 2816, 512, 8, 2),
    (50304, 1024, 2, 16, 2816, 2048, 8, 8),
    (8192, 2048, 4, 16, 5632, 2048, 4, 4),
    (8192, 2048, 2, 16, 5632, 4096, 4, 2),
)


def points(kind: str) -> list[Point]:
    """Every shape of a device's kind as a dense model, and as BTX and BAM in turn; the first and the last as both."""
    found = []
    shapes = _CPU if kind == "cpu" else _GPU
    for number, (vocab, d, layers, heads, d_ff, positions, rows, at_once) in enumerate(shapes):
        dense = ModelConfig(vocab, d, layers, heads, heads, d_ff, positions)
        btx = replace(dense, ffn=FFNExperts(len(EXPERTS), 1), experts=EXPERTS)
        bam = replace(btx, attention=AttentionExperts(len(EXPERTS), len(EXPERTS)))
        families = {"dense": dense, "btx": btx, "bam": bam}
        if number not in (0, len(shapes) - 1):
            del families["btx" if number % 2 else "bam"]
        found += [Point(family, model, rows, at_once) for family, model in families.items()]
    return found


def time_steps(
    chosen: Sequence[Point],
    kind: str,
    threads: int,
    rounds: int = 2,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Seconds of a training step of each, the median over all turns: what slows the machine for a while slows all."""
    seconds: list[list[float]] = [[] for _ in chosen]
    for turn in range(rounds):
        for point, own in zip(chosen, seconds, strict=True):
            own += step_seconds(point.paced(kind, threads), STEPS, turn, clock)
    return [median(own) for own in seconds]


def least_seconds(kind: str, threads: int, dtype: str) -> dict[str, float]:
    """Of each FLOP of a product, at the device's best: no step of a model is faster."""
    torch.set_num_threads(threads)
    of_flop = 1 / product_flops_per_s(kind, DTYPES[dtype])
    return {"products": of_flop, "attention": of_flop}


@torch.no_grad()
def time_passes(
    chosen: Sequence[Point], kind: str, threads: int, rounds: int = 2, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds of one forward pass of each model in float32, with the loss of every token (`passed_costs`)."""
    torch.set_num_threads(threads)
    works = [_pass(point, kind) for point in chosen]
    seconds: list[list[float]] = [[] for _ in chosen]
    for work in works:  # warms up
        work()
    for _ in range(rounds):
        for work, own in zip(works, seconds, strict=True):
            started = clock()
            work()
            own.append(clock() - started)
    return [median(own) for own in seconds]


def passed_costs(point: Point) -> dict[str, float]:
    """What `time_passes` times."""
    seq_len = point.model.max_seq_len
    tokens = _rows_passed(point) * seq_len
    return pass_costs(point.model, tokens, seq_len, tokens)


def _rows_passed(point: Point) -> int:
    """About as many tokens as a stage that scores takes at once."""
    return max(1, 2048 // point.model.max_seq_len)


def _pass(point: Point, kind: str) -> Callable[[], None]:
    model = LM(point.model)
    init_weights(model, 0)
    model.to(kind).eval()
    shape = (_rows_passed(point), point.model.max_seq_len + 1)
    tokens_BT = torch.randint(point.model.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(kind)

    def work() -> None:
        output = model(tokens_BT[:, :-1])
        hidden_ND, targets_N = output.hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten()
        float(token_nll(model, hidden_ND, targets_N, None).sum())  # waits for the device

    return work


def peak_bytes(point: Point, kind: str, threads: int) -> int:
    """Peak memory of training and writing this model, a checkpoint on the way: of the GPU, or of this process, which
    must be a fresh one."""
    model = LM(point.model)
    init_weights(model, 0)
    with tempfile.TemporaryDirectory(prefix="bam-peak-") as folder:
        worker = _Saving(kind, threads, folder=Path(folder))
        pace = Pace(point.micro_batch_rows, checkpoint_steps=2)
        optimizer, _ = train(model, _Rows(point.model), point.phase, worker, pace)
        write_model(Path(folder, "model"), point.model, optimizer.masters(), tokenizer=None, card=None)
    return peak_of_process(kind)


@dataclass(frozen=True)
class _Rows:
    model: ModelConfig

    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        shape = (rows_per_batch, self.model.max_seq_len + 1)
        return np.random.default_rng(step).integers(0, self.model.vocab_size, shape)


@dataclass
class _Saving(Alone):
    """It writes its checkpoints."""

    folder: Path = field(kw_only=True)

    def save(
        self, step: int, write: Callable[[Path], None], *, metrics: Metrics | None = None, sharded: bool = False
    ) -> None:
        target = self.folder / f"step-{step}"
        target.mkdir()
        write(target)
