"""Seconds and bytes of one stage on one kind of node: what it does, at the prices that were measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bam_core.config import ModelConfig
from bam_core.nn.costs import params_total
from bam_core.planner.calibration import Calibration
from bam_core.planner.work import Training, pass_costs

STATE_BYTES_SAVED = 12
"""Of a checkpoint, for each parameter: a master weight and two moments."""
OTHER_DEVICE = "that it computes on a CPU or GPU where the other was calibrated"
MODEL_BYTES = 4
"""Of a model that is written or scored, for each parameter."""


@dataclass(frozen=True)
class Pass:
    """Scoring of so many tokens, windows' overlap included, in rows of `context`."""

    model: ModelConfig
    tokens: float
    context: int


@dataclass(frozen=True)
class Work:
    """What a stage does. kind: `seed`, `data`, ...; of a stage that trains, `training` and its number of steps.

    checkpoints: written on the way. text_bytes: of text that it goes through; None where nobody knows. read_s: seconds
    to get that text from its source. written: parameters of models that it writes. held_bytes: what it holds in memory
    beside what its kind always does. unknown: what of its work is not counted, in words. gpu: it computes on one.
    """

    kind: str
    threads: int = 1
    training: Training | None = None
    steps: int = 0
    checkpoints: int = 0
    passes: tuple[Pass, ...] = ()
    text_bytes: float | None = 0.0
    read_s: float = 0.0
    written: int = 0
    held_bytes: float = 0.0
    unknown: tuple[str, ...] = ()
    loads_torch: bool = False
    gpu: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its peak, by what holds them. on_gpu: of the GPU; otherwise of the node."""

    parts: Mapping[str, float]
    on_gpu: bool = False

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    seconds: float
    memory: Memory
    unknown: tuple[str, ...] = field(default=())


def estimate(work: Work, device: Calibration, executor: str) -> Estimate:
    """Alone on a node like the one that was calibrated."""
    computes = work.training is not None or bool(work.passes)
    other = (OTHER_DEVICE,) if computes and work.gpu != (device.kind == "cuda") else ()
    return Estimate(seconds(work, device, executor), memory(work, device, executor), (*work.unknown, *other))


def seconds(work: Work, device: Calibration, executor: str) -> float:
    found = device.fixed(work.kind, executor) + work.read_s
    if work.training is not None:
        step = device.step_seconds(work.training.step_costs(), work.threads)
        if work.training.teacher is not None:
            step += device.pass_seconds(work.training.teacher_costs(), work.threads)
        saved = STATE_BYTES_SAVED * params_total(work.training.model) * work.checkpoints
        found += work.steps * step + saved * device.write_s_per_byte
    for scored in work.passes:
        found += device.pass_seconds(pass_costs(scored.model, scored.tokens, scored.context), work.threads)
    if work.text_bytes:
        found += work.text_bytes * device.text_s_per_byte.get(work.kind, 0.0)
    return found + MODEL_BYTES * work.written * device.write_s_per_byte


def memory(work: Work, device: Calibration, executor: str) -> Memory:
    parts: dict[str, float] = {"process": device.idle(executor)}
    if work.training is not None:
        price, counts = device.peak.of, work.training.peak_bytes()
        parts |= {_NAMES[name]: price.get(name, 0.0) * count for name, count in counts.items() if name != "shapes"}
        parts["products of experts"] = price.get("shapes", 0.0) * counts["shapes"]
    parts["data"] = work.held_bytes
    kept = {name: size for name, size in parts.items() if size}
    return Memory(kept, on_gpu=work.training is not None and work.training.gpu)


_NAMES = {
    "state": "weights, gradients, masters, moments",
    "values": "activations",
    "scores": "attention probabilities",
    "logits": "logits",
}


def at(work: Work, training: Training) -> Work:
    """The same with another way to train."""
    return replace(work, training=training)
