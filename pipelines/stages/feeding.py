"""What a training reads: the batches of its phase, and where shares follow the losses what these are measured on.

Losses are measured on rows of the training text that this training keeps back, never on those that `evaluate` scores. A
model of comparison may have been trained on them: it was trained before, on all of its domain's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bam_core.checkpoint import load_model, read_config
from bam_core.config import ModelConfig, TrainConfig
from bam_core.data.mixture import DomainMixture
from bam_core.data.schedule import CountedMixture, annealed
from bam_core.data.shards import ShardedRows
from bam_core.data.subset import keep_back
from bam_core.nn.lm import LM
from bam_core.protocols import TrainWorker
from bam_core.train.adapt import Segment, judging_flops
from bam_core.train.judge import Judge
from bam_core.train.loop import DTYPES, HISTORY_POINTS, Batches, Pace
from bam_core.train.state import Progress
from pipelines.stages.inputs import REFERENCE


def feed(worker: TrainWorker, phase: TrainConfig, pace: Pace) -> tuple[Batches, Judge | None]:
    """The batches of a phase, and what extends them where its shares adapt."""
    rows = {domain: ShardedRows(worker.inputs[f"data.{domain}"] / "train") for domain in phase.domains}
    if phase.anneal is not None:
        return annealed(rows, phase), None
    if phase.adaptive is None:
        return DomainMixture(rows, phase.shares, phase.seed), None
    wanted = max(1, phase.adaptive.eval_tokens // phase.seq_len)
    parts = {domain: keep_back(domain, rows[domain], wanted) for domain in phase.domains}
    trained_on = {domain: kept for domain, (kept, _) in parts.items()}
    batches = CountedMixture(trained_on, phase.domains, phase.seed, phase.rows_per_batch)
    judged = {domain: tokens for domain, (_, tokens) in parts.items()}

    def references() -> Iterator[tuple[LM, Sequence[str]]]:
        for folder in dict.fromkeys(_references(worker, phase).values()):
            domains = [domain for domain, other in _references(worker, phase).items() if other == folder]
            yield load_model(folder).cast(DTYPES[phase.dtype]).to(worker.device), domains

    return batches, Judge(phase, worker, batches, judged, references, pace.micro_batch_rows)


def _references(worker: TrainWorker, phase: TrainConfig) -> dict[str, Path]:
    return {domain: worker.inputs[f"{REFERENCE}{domain}"] for domain in phase.domains}


def data_path(phase: TrainConfig, batches: Batches, progress: Progress) -> list[dict[str, Any]]:
    """The shares of a run that has ended: {step, shares, losses} wherever they change; empty if they do not.

    step: of the first batch with these shares. losses: as measured there, on rows that are not trained on; none where
    shares follow a plan. Of such a plan HISTORY_POINTS steps are told.
    """
    if progress.data_path:
        segments = [Segment.from_json(said) for said in progress.data_path]
        return [{"step": part.step, "shares": part.shares, "losses": dict(part.losses)} for part in segments]
    if phase.anneal is None or not isinstance(batches, CountedMixture):
        return []
    steps = np.unique(np.linspace(0, phase.n_steps - 1, min(phase.n_steps, HISTORY_POINTS)).round().astype(int))
    return [{"step": step, "shares": batches.shares(step), "losses": {}} for step in steps.tolist()]


def cost_of_judging(worker: TrainWorker, model: ModelConfig, phase: TrainConfig, judge: Judge | None) -> int:
    """FLOPs of all forward passes of a whole run that no gradient comes from."""
    if judge is None or phase.adaptive is None:
        return 0
    compared = phase.adaptive.compares
    dense = read_config(worker.inputs[f"{REFERENCE}{phase.domains[0]}"]) if compared else model
    return judging_flops(model, dense, phase, judge.tokens)
