"""What a person sees of a run while it is under way: the newest step's figures and how fast the run is.

Clock readings stay out of the run's results: they go to `TrainWorker.log` and nowhere else, and no random number of the
run is drawn for them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.costs import training_flops
from bam_core.protocols import TrainWorker

MEASURED_ABOVE_FLOPS = 1e12
"""A run of more FLOPs measures its device first: some seconds' work on a few cores, beside which that is nothing."""
MEASURE_S = 0.03


class Meter:
    """Publishes about once a second, and at the last step.

    tokens_per_s, flops_per_s: of the whole group, since the figures before. flops_utilization: flops_per_s over the
    matrix product that the group's devices reach; left out of runs too small to measure that. FLOPs are the model's
    (`training_flops`): what is computed again to save memory does not count.
    """

    def __init__(
        self, model: ModelConfig, config: TrainConfig, worker: TrainWorker, dtype: torch.dtype, every_s: float
    ) -> None:
        self._config, self._worker, self._every_s = config, worker, every_s
        self._step_flops = training_flops(model, config.batch_tokens, config.seq_len)
        is_long = self._step_flops * config.n_steps > MEASURED_ABOVE_FLOPS
        # All ranks at the same time, as they will share the machine when they train.
        self._peak = worker.world_size * product_flops_per_s(worker.device, dtype) if is_long else None
        self._since, self._steps = time.monotonic(), 0

    def publish(self, step: int, figures: Mapping[str, float]) -> None:
        """figures: of the step that was just done, the `step`-th."""
        self._steps += 1
        elapsed_s = time.monotonic() - self._since
        if elapsed_s < self._every_s and step < self._config.n_steps:
            return
        steps_per_s = self._steps / max(elapsed_s, 1e-9)
        flops_per_s = self._step_flops * steps_per_s
        speed = {"tokens_per_s": self._config.batch_tokens * steps_per_s, "flops_per_s": flops_per_s}
        if self._peak is not None:
            speed["flops_utilization"] = flops_per_s / self._peak
        place = {"tokens": step * self._config.batch_tokens, "total_steps": self._config.n_steps}
        self._worker.log(step, {**figures, **speed, **place})
        self._since, self._steps = time.monotonic(), 0


def product_flops_per_s(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of the square matrix products that fit into `MEASURE_S`, and of two at least."""
    on_gpu = torch.device(device).type == "cuda"
    n = 4096 if on_gpu else 1024
    a = torch.randn(n, n, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    times: list[float] = []
    while len(times) < 2 or sum(times) < MEASURE_S:  # the first compiles kernels and fills caches
        started = time.perf_counter()
        torch.mm(a, a)
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * n**3 / min(times)
