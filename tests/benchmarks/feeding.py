"""`python -m tests.benchmarks.feeding`: the part of a training step that passes until its batch is there.

The loop itself (`bam_core.train.loop`), reading packed shards of four domains, with the study's model: it is small, so
its steps are short and waiting counts most. What is timed is `batch(step)`: where the rows are, and copying them from
the mapped files; from the first call to the last, so that the permutations of the first epoch are in it. The result is
`.bench/feeding.json`. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bam_core.config import ModelConfig, TrainConfig
from bam_core.data.mixture import DomainMixture
from bam_core.data.packing import Rows
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.nn.lm import LM, init_weights
from bam_core.train.loop import Batches, Pace, train
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.timing import entry

MODEL = ModelConfig(vocab_size=4096, d_model=160, n_layers=4, n_heads=5, n_kv_heads=5, d_ff=448, max_seq_len=128)
BATCH_TOKENS = 4096
SHARES = {"general": 0.7, "code": 0.1, "law": 0.1, "math": 0.1}
ROWS = 20_000
"""Of each domain: 2.5M tokens."""


class Worker:
    """Of a training without a cluster that saves nothing."""

    rank, world_size, device = 0, 1, "cpu"
    inputs: Mapping[str, Path] = {}

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def resume_dir(self) -> None:
        return None

    def save(self, step: int, write: Callable[[Path], None], **_: Any) -> None:
        raise AssertionError("no checkpoint is due")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


class Timed:
    """Batches, with the time at which each was asked for and had."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.asked: list[float] = []
        self.had: list[float] = []

    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        self.asked.append(time.perf_counter())
        rows = self._batches.batch(step, rows_per_batch)
        self.had.append(time.perf_counter())
        return rows


def write_domains(root: Path) -> None:
    for index, domain in enumerate(SHARES):
        draws = np.random.default_rng(index)
        tokens = draws.integers(0, MODEL.vocab_size, (ROWS, MODEL.max_seq_len + 1), dtype=np.uint16)
        write_shards(root / domain, [Rows(tokens, np.full(ROWS, 4 * MODEL.max_seq_len, np.int32))])


def waited(root: Path, threads: int, n_steps: int) -> dict[str, float]:
    """Seconds of a step, and of them those until its batch was there."""
    phase = TrainConfig(n_steps * BATCH_TOKENS, BATCH_TOKENS, 1e-3, SHARES, MODEL.max_seq_len)
    rows = {domain: ShardedRows(root / domain) for domain in SHARES}
    timed = Timed(DomainMixture(rows, phase.shares, phase.seed))
    model = LM(MODEL)
    init_weights(model, 0)
    train(model, timed, phase, Worker(threads), Pace(checkpoint_steps=n_steps + 1))
    inside = sum(had - asked for asked, had in zip(timed.asked, timed.had, strict=True)) - (
        timed.had[-1] - timed.asked[-1]
    )
    n_timed = n_steps - 1  # the last has no step behind it that would be timed
    return {"step_s": (timed.asked[-1] - timed.asked[0]) / n_timed, "wait_s": inside / n_timed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of torch, as the study's trainings have")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bam-bench-") as folder:
        write_domains(Path(folder))
        rounds = [waited(Path(folder), options.threads, options.steps) for _ in range(options.rounds)]
    shares = [found["wait_s"] / found["step_s"] for found in rounds]
    step_s, wait_s = (statistics.median(found[name] for found in rounds) for name in ("step_s", "wait_s"))
    print(f"step {1000 * step_s:.1f} ms, of it waiting {1000 * wait_s:.2f} ms: {statistics.median(shares):.2%}")
    note = f"{BATCH_TOKENS // MODEL.max_seq_len} rows of {MODEL.max_seq_len} tokens, a step of {1000 * step_s:.0f} ms"
    table = [entry("data_wait", shares, "share", note)]
    write_result("feeding", {"threads": torch.get_num_threads(), "rounds": rounds, "table": table}, options.out)


if __name__ == "__main__":
    main()
