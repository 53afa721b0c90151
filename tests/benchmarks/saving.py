"""`python -m tests.benchmarks.saving`: what a checkpoint takes from training, as a share of the time at one a minute.

A model of 50M parameters trains in this process, as on the local executor: its masters and moments, 600 MB, are copied,
then written and brought to the disk beside the steps that follow. Rounds of some steps with a checkpoint at their
start alternate with rounds without one. `extra_s` is the difference of two such rounds: it has what the writing takes
from the processor too, and the noise of the steps. `blocked_s` is what the loop spends in `save` and in publishing. The
share is the larger of the two over a minute. The result is `.bench/saving.json`. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bam_core.config import ModelConfig, TrainConfig
from bam_core.graph.stage import Resources
from bam_core.nn.costs import params_total
from bam_core.nn.lm import LM, init_weights
from bam_core.train.optim import Optimizer
from bam_core.train.saving import Checkpoints
from bam_core.train.state import Progress
from bam_core.train.step import accumulate_gradient
from infra.local_executor import LocalTrainer, LocalWorker
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.timing import entry

MODEL = ModelConfig(vocab_size=8192, d_model=640, n_layers=9, n_heads=10, n_kv_heads=10, d_ff=1760, max_seq_len=256)
ROWS = 2
PHASE = TrainConfig(10**6 * ROWS * 256, ROWS * 256, 1e-4, {"a": 1.0}, 256)
EVERY_S = 60.0


class Training:
    """Steps on random tokens; the loop's calls of `Checkpoints`, timed."""

    def __init__(self, root: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = LM(MODEL)
        init_weights(self._model, 0)
        self._model.cast(torch.bfloat16).train()
        self._optimizer = Optimizer(self._model, PHASE)
        self._rows = np.random.default_rng(0).integers(0, MODEL.vocab_size, (ROWS, MODEL.max_seq_len + 1))
        worker = LocalWorker(LocalTrainer(root), Resources(cpus=threads))
        self._checkpoints = Checkpoints(worker, self._optimizer)
        self._progress = Progress()

    def steps(self, n_steps: int, saves: bool) -> tuple[float, float]:
        """Seconds of so many steps, and of them those spent on a checkpoint that is begun after the first."""
        started, blocked_s = time.perf_counter(), 0.0
        for index in range(n_steps):
            accumulate_gradient(self._model, self._optimizer, self._rows, PHASE, ROWS)
            self._optimizer.step(1e-4, self._progress.step)
            self._progress.step += 1
            before = time.perf_counter()
            if saves and index == 0:
                self._checkpoints.save(self._progress)
            elif index == n_steps - 1:
                self._checkpoints.finish()
            else:
                self._checkpoints.publish_if_written()
            blocked_s += time.perf_counter() - before
        return time.perf_counter() - started, blocked_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    extra: list[float] = []
    blocked: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bam-bench-") as folder:
        training = Training(Path(folder), options.threads)
        training.steps(2, saves=True)  # the first compiles kernels and fills caches
        for _ in range(options.rounds):
            plain_s, _ = training.steps(options.steps, saves=False)
            saving_s, blocked_s = training.steps(options.steps, saves=True)
            extra.append(saving_s - plain_s)
            blocked.append(blocked_s)
    shares = [max(a, b) / EVERY_S for a, b in zip(extra, blocked, strict=True)]
    blocked_s = statistics.median(blocked)
    print(f"{params_total(MODEL) / 1e6:.1f}M parameters, steps of {plain_s / options.steps:.2f} s")
    print(
        f"the loop waits {blocked_s:.2f} s for a checkpoint, rounds with one take {statistics.median(extra):.2f} s more"
    )
    print(f"at one a minute: {statistics.median(shares):.2%} of training time")
    note = f"{params_total(MODEL) / 1e6:.0f}M parameters; of it the loop waits {blocked_s / EVERY_S:.2%}"
    figures = {"threads": options.threads, "extra_s": extra, "blocked_s": blocked}
    table = [entry("checkpoint_share", shares, "share", note)]
    write_result("saving", {**figures, "table": table}, options.out)


if __name__ == "__main__":
    main()
