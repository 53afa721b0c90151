"""The one training loop behind `seed`, `expert.*`, `train.*`, `distil.*` and `dense`: open a model, train it, write it.

An expert's own worker group branches the seed: it opens the seed's weights and trains them; no copy is made in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bam_core.card import Subject, model_card
from bam_core.checkpoint import load_model, open_tensors, write_model
from bam_core.config import Distillation, ModelConfig, TrainConfig
from bam_core.documents import read_json
from bam_core.errors import UsageError
from bam_core.nn.costs import params_active, params_total, training_flops
from bam_core.nn.lm import LM, init_tensor, init_weights
from bam_core.nn.shapes import tensor_shapes
from bam_core.protocols import StageContext, Trained, TrainWorker
from bam_core.train.loop import Pace, train
from bam_core.train.peak import forget_peak, peak_of_process
from bam_core.train.saving import write_gathered
from bam_core.train.search import with_values
from bam_core.train.state import Progress
from pipelines.stages.cards import carrying, mixed_of, subject_of
from pipelines.stages.feeding import cost_of_judging, data_path, feed
from pipelines.stages.inputs import REFERENCE
from pipelines.stages.teaching import (
    cost_of_teaching,
    open_student,
    open_student_sharded,
    open_teacher,
    student_config,
)

if TYPE_CHECKING:
    from bam_core.train.sharded import Weights

HISTORY_FILE = "training.json"
BEST_FILE = "best.json"
"""What a search found: `values` by key of the recipe."""


def run_training(
    context: StageContext, start: Mapping[str, Any], distil: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Train on the stage's worker group and leave a model folder in `context.out`. Returns the stage's metrics.

    start: `{"init_seed": n, "model": config}` for a fresh model or `{"from": role}` for an input's weights, with
    `"sparser"` a cheaper form of it. distil: what a `Distillation` says, of a model that learns from its start.
    """
    phase = tuned_phase(context)
    facts = {"distilled with": _in_words(distil)} if distil is not None else {}
    config = {
        "start": dict(start),
        "phase": phase,
        "pace": dict(context.runtime.get("pace", {})),
        "subject": subject_of(context, _model(context, start), phase=phase, mixed=mixed_of(context), facts=facts),
        "ancestors": _ancestor_costs(context),
        **({"distil": dict(distil)} if distil is not None else {}),
    }
    return context.trainer.fit(train_loop, config, context.resources, context.out)


def _model(context: StageContext, start: Mapping[str, Any]) -> ModelConfig:
    return (
        student_config(context.inputs[start["from"]], start)
        if "from" in start
        else ModelConfig.from_json(start["model"])
    )


def _in_words(distil: Mapping[str, Any]) -> str:
    """For the model's card."""
    spec = Distillation.from_json(distil)
    gates = f", its gates by {spec.gate:g}" if spec.gate else ""
    return f"its teacher's probabilities by {spec.kl:g}, at temperature {spec.temperature:g}{gates}"


def tuned_phase(context: StageContext) -> dict[str, Any]:
    """The stage's phase with the best values of the searches that it reads (`tuned`: role -> {key: field})."""
    phase: dict[str, Any] = dict(context.config["phase"])
    tuned: Mapping[str, Mapping[str, str]] = context.config.get("tuned", {})
    for role, fields in tuned.items():
        values = read_json(context.inputs[role] / BEST_FILE)["values"]
        if missing := fields.keys() - values.keys():
            raise UsageError(f"{role}: its search has no best value of {', '.join(sorted(missing))}")
        phase = with_values(phase, {field: values[key] for key, field in fields.items()})
    return phase


def train_loop(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """What every rank runs."""
    forget_peak(worker.device)
    phase = TrainConfig.from_json(config["phase"])
    pace = Pace(**config["pace"])
    weights = None
    if pace.shards(worker.world_size):
        model, tokenizer, weights = open_sharded(worker, config["start"])
    else:
        model, tokenizer = open_model(worker, config["start"])
    batches, judge = feed(worker, phase, pace)
    distil = config.get("distil")
    teacher = open_teacher(worker, phase, distil) if distil is not None else None
    optimizer, progress = train(model, batches, phase, worker, pace, weights, judge, teacher)
    judging = cost_of_judging(worker, model.config, phase, judge)
    judging += cost_of_teaching(worker, phase) if teacher is not None else 0
    figures = _figures(model.config, phase, progress, config["ancestors"], judging)
    subject, path = replace(config["subject"], figures=figures), data_path(phase, batches, progress)
    write = _ModelWriter(model.config, progress, tokenizer, subject, path)
    # For the record alone: no file may hold what another run would find otherwise.
    result = figures | {"peak_memory_bytes": peak_of_process(worker.device)}
    if optimizer.sharded:
        return Trained(result, write_gathered(worker, optimizer, write))
    return Trained(result, partial(write, tensors=optimizer.masters()))


def open_model(worker: TrainWorker, start: Mapping[str, Any]) -> tuple[LM, Path]:
    if "from" in start:
        folder = worker.inputs[start["from"]]
        return open_student(folder, start), folder / "tokenizer.json"
    model = LM(ModelConfig.from_json(start["model"]))
    init_weights(model, start["init_seed"])
    return model, worker.inputs["tokenizer"] / "tokenizer.json"


def open_sharded(worker: TrainWorker, start: Mapping[str, Any]) -> tuple[LM, Path, Weights]:
    """`open_model` without weights, and what reads one of them by its name: no rank ever holds all of them."""
    if "from" in start:
        folder = worker.inputs[start["from"]]
        if "sparser" in start:
            model, read = open_student_sharded(folder, start)
            return model, folder / "tokenizer.json", read
        return load_model(folder, device="meta"), folder / "tokenizer.json", open_tensors(folder).get
    config = ModelConfig.from_json(start["model"])
    with torch.device("meta"):
        model = LM(config)
    shapes, seed = tensor_shapes(config), start["init_seed"]
    return (
        model,
        worker.inputs["tokenizer"] / "tokenizer.json",
        lambda name: init_tensor(name, shapes[name], config.n_layers, seed),
    )


def _figures(
    model: ModelConfig, phase: TrainConfig, progress: Progress, ancestors: Mapping[str, float], judging: int
) -> dict[str, Any]:
    """judging: FLOPs of forward passes beside the training: the losses that shares follow, a teacher's answers."""
    tokens = phase.n_steps * phase.batch_tokens
    flops = training_flops(model, tokens, phase.seq_len) + judging
    return {
        "loss": progress.history[-1]["loss"],
        "train_tokens": tokens,
        "train_flops": flops,
        "lineage_tokens": tokens + ancestors["tokens"],
        "lineage_flops": flops + ancestors["flops"],
        "params_total": params_total(model),
        "params_active": params_active(model),
    }


def _ancestor_costs(context: StageContext) -> dict[str, float]:
    """Tokens and FLOPs that went into the models this stage starts from; those that it is compared with are no such."""
    others = ("data.", REFERENCE)
    models = [record.metrics for role, record in context.records.items() if not role.startswith(others)]
    return {
        "tokens": sum(metrics.get("lineage_tokens", 0) for metrics in models),
        "flops": sum(metrics.get("lineage_flops", 0) for metrics in models),
    }


@dataclass(frozen=True)
class _ModelWriter:
    """Writes the model folder: master weights, so the next phase starts from what was trained, not its rounding."""

    model: ModelConfig
    progress: Progress
    tokenizer: Path
    subject: Subject
    data_path: Sequence[Mapping[str, Any]] = ()

    def __call__(self, folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        card, texts = model_card(self.subject), carrying(self.subject.texts)
        write_model(folder, self.model, tensors, tokenizer=self.tokenizer, card=card, provenance=texts)
        figures, phase = dict(self.subject.figures), dict(self.subject.phase)
        training = {"history": self.progress.history, "figures": figures, "phase": phase}
        if alarms := self.progress.collapse.get("alarms"):
            training["collapse"] = alarms
        if self.data_path:
            training["data_path"] = list(self.data_path)
        (folder / HISTORY_FILE).write_text(json.dumps(training, indent=1) + "\n")
