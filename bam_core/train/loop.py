"""The run: step, watch for divergence, remember, publish, checkpoint.

Source: BAM, section 5 (AdamW, warm-up, cosine). What the paper leaves open is in `docs/deviations.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bam_core.config import TrainConfig
from bam_core.data.schedule import CountedMixture
from bam_core.errors import TrainingDiverged
from bam_core.nn.lm import LM
from bam_core.protocols import TrainWorker
from bam_core.train.collapse import watch_batch
from bam_core.train.judge import Judge
from bam_core.train.layers import compile_layers, recompute_activations
from bam_core.train.meter import Meter
from bam_core.train.optim import Optimizer, learning_rate, master_dtype
from bam_core.train.parallel import micro_batches_of_rank, rows_of_rank, sum_over_ranks
from bam_core.train.routers import fade_router_biases, harden_attention, move_balance, noise_of_step
from bam_core.train.saving import Checkpoints
from bam_core.train.state import Progress, load_state
from bam_core.train.step import ExtraLoss, accumulate_gradient

if TYPE_CHECKING:
    from bam_core.train.sharded import Weights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
SPIKE_FACTOR = 2.0
"""A loss above this multiple of its exponential mean stops the run."""
HISTORY_POINTS = 120
"""Entries kept of a run, whatever its length."""


class Batches(Protocol):
    def batch(self, step: int, rows_per_batch: int) -> NDArray[np.int64]:
        """[rows_per_batch, seq_len + 1] token ids: a pure function of its arguments."""
        ...


@dataclass(frozen=True)
class Pace:
    """How a run is executed; none of it changes what is computed, up to rounding (micro-batches, ranks).

    strategy: each rank holds all masters and moments (`ddp`), or a shard (`fsdp`, of several ranks).
    judged_at: steps at which the checkpoint is published at once, so that `TrainWorker.save` can judge the model.
    """

    micro_batch_rows: int = 8
    checkpoint_steps: int = 100
    log_every_s: float = 1.0
    strategy: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False
    judged_at: Sequence[int] = ()

    def shards(self, world_size: int) -> bool:
        """Whether parameters are sharded on that many ranks: a single one has nothing to share with."""
        return self.strategy == "fsdp" and world_size > 1


def train(
    model: LM,
    batches: Batches,
    config: TrainConfig,
    worker: TrainWorker,
    pace: Pace,
    weights: Weights | None = None,
    judge: Judge | None = None,
    extra: ExtraLoss | None = None,
) -> tuple[Optimizer, Progress]:
    """Train `model` in place and return its master weights (in the optimizer) and the history.

    weights: of a model on the meta device that is to be sharded. judge: extends `batches`, of shares that adapt.
    extra: a loss beside that of the text.
    Resumes from the worker's newest checkpoint. Raises TrainingDiverged, with the step, on a loss that is not finite or
    spikes, and where the config says so on routers that collapse; the last good checkpoint stays.
    """
    torch.set_num_threads(worker.threads)
    optimizer = _place(model, config, worker, pace, weights)
    checkpoints = Checkpoints(worker, optimizer)
    n_micro = micro_batches_of_rank(config.rows_per_batch, pace.micro_batch_rows, worker.world_size)
    resume_from = worker.resume_dir()
    progress = load_state(resume_from, optimizer) if resume_from else Progress()
    fade_router_biases(model, optimizer.start_biases, config, progress.step)
    meter = Meter(model.config, config, worker, DTYPES[config.dtype], pace.log_every_s)

    while progress.step < config.n_steps:
        step = progress.step
        harden_attention(model, config, step)
        if judge is not None:
            with checkpoints.finished_if_diverged():
                judge.before(step, model, progress)
        rows = rows_of_rank(batches.batch(step, config.rows_per_batch), worker.rank, worker.world_size)
        noise = noise_of_step(model.config, config, step, worker.rank, worker.world_size)
        sums = accumulate_gradient(
            model,
            optimizer,
            rows,
            config,
            pace.micro_batch_rows,
            progress.expert_frac,
            noise,
            n_micro if optimizer.sharded else 0,
            extra,
        )
        sum_over_ranks([*optimizer.gradients(), *sums.tensors()], worker.world_size)
        losses = sums.figures()
        with checkpoints.finished_if_diverged():
            _require_sane(losses["loss"], step, progress)
            progress.collapse = watch_batch(progress.collapse, sums, model.config, step + 1, config)
        lr = learning_rate(step, config)
        grad_norm = optimizer.step(lr, step)
        move_balance(model, sums.assigned_LE, config.balance_rate)
        progress.step += 1
        fade_router_biases(model, optimizer.start_biases, config, progress.step)
        progress.expert_frac = sums.expert_frac()
        figures = losses | {"grad_norm": grad_norm} | _shares(batches, step)
        _remember(progress, config, figures, lr)
        meter.publish(progress.step, figures | {"lr": lr})
        is_judged = progress.step in pace.judged_at
        if is_judged or (progress.step % pace.checkpoint_steps == 0 and progress.step < config.n_steps):
            checkpoints.save(progress)
            if is_judged:  # now, while the model is what is saved
                checkpoints.finish()
        else:
            checkpoints.publish_if_written()
    checkpoints.finish()
    return optimizer, progress


def _place(model: LM, config: TrainConfig, worker: TrainWorker, pace: Pace, weights: Weights | None) -> Optimizer:
    """Put the model where and how it is to run, and make its masters, which have the weights' every digit."""
    dtype = DTYPES[config.dtype]
    if pace.shards(worker.world_size):
        from bam_core.train.sharded import shard  # torch's modules for it take a second to import

        shard(model, worker.world_size, worker.device, dtype, master_dtype(config), weights)
        optimizer = Optimizer(model, config)
    else:
        assert weights is None, "weights are for a model that is sharded"
        optimizer = Optimizer(model.to(worker.device), config)
        model.cast(dtype)
    if pace.compile:
        compile_layers(model, worker.device)
    if pace.activation_checkpointing:
        recompute_activations(model)
    model.train()
    return optimizer


def _require_sane(loss: float, step: int, progress: Progress) -> None:
    if not isfinite(loss):
        raise TrainingDiverged(f"step {step}: loss is {loss}; lower the learning rate or look at the data of this step")
    mean = progress.smooth_loss
    if mean is not None and loss > SPIKE_FACTOR * mean + 1:
        raise TrainingDiverged(f"step {step}: loss {loss:.3f} spiked from about {mean:.3f}; lower the learning rate")
    progress.smooth_loss = loss if mean is None else 0.95 * mean + 0.05 * loss


def _shares(batches: Batches, step: int) -> dict[str, float]:
    """Of each domain, where they change; those that stay are in the phase."""
    if not isinstance(batches, CountedMixture):
        return {}
    return {f"data/{domain}": share for domain, share in batches.shares(step).items()}


def _remember(progress: Progress, config: TrainConfig, figures: Mapping[str, float], lr: float) -> None:
    """Add the step to the sums; close a history entry every n-th step and at the end."""
    for name, value in figures.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + value
    progress.sums["steps"] = progress.sums.get("steps", 0.0) + 1
    every = max(1, config.n_steps // HISTORY_POINTS)
    if progress.step % every == 0 or progress.step == config.n_steps:
        n_steps = progress.sums.pop("steps")
        means = {name: total / n_steps for name, total in progress.sums.items()}
        progress.history.append(
            {"step": progress.step, "tokens": progress.step * config.batch_tokens, "lr": lr} | means
        )
        progress.sums.clear()
