"""What a distillation opens: the student, a cheaper form of its teacher, and the teacher beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bam_core.checkpoint import load_model, read_config
from bam_core.config import Distillation, ModelConfig, Sparser, TrainConfig
from bam_core.nn.costs import forward_flops
from bam_core.nn.lm import LM
from bam_core.protocols import TrainWorker
from bam_core.train.distil import Teacher
from bam_core.train.loop import DTYPES
from bam_core.upcycle.sparser import load_sparser, open_sparser
from pipelines.stages.inputs import TEACHER


def student_config(folder: Path, start: Mapping[str, Any]) -> ModelConfig:
    """Of the model that a training makes of an input's. start: as in `training.run_training`."""
    config = read_config(folder)
    return Sparser.from_json(start["sparser"]).config(config) if "sparser" in start else config


def open_student(folder: Path, start: Mapping[str, Any]) -> LM:
    return load_sparser(folder, Sparser.from_json(start["sparser"])) if "sparser" in start else load_model(folder)


def open_student_sharded(folder: Path, start: Mapping[str, Any]) -> tuple[LM, Callable[[str], Tensor]]:
    """Without weights, and what reads one of them by its name."""
    model, source = open_sparser(folder, Sparser.from_json(start["sparser"]), device="meta")
    return model, source.get


def open_teacher(worker: TrainWorker, phase: TrainConfig, spec: Mapping[str, Any]) -> Teacher:
    """In the precision of the training, whole on every rank."""
    model = load_model(worker.inputs[TEACHER]).cast(DTYPES[phase.dtype]).to(worker.device)
    return Teacher(model, Distillation.from_json(spec))


def cost_of_teaching(worker: TrainWorker, phase: TrainConfig) -> int:
    """FLOPs of the teacher's forward passes over a whole run."""
    tokens = phase.n_steps * phase.batch_tokens
    return forward_flops(read_config(worker.inputs[TEACHER]), tokens, phase.seq_len)
