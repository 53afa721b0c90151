"""Whole training steps of the paper's small models with 8192 tokens of context, and decoding, on a GPU.

A step is the one of `train.loop`: forward, loss, backward, clipping, AdamW, and the figures that a run publishes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn import paper
from bam_core.nn.costs import params_total, training_bytes, training_flops
from bam_core.nn.generate import generate
from bam_core.nn.lm import LM, Output
from bam_core.nn.losses import next_token_loss
from bam_core.train import step as step_module
from bam_core.train.layers import compile_layers, recompute_activations
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from tests.benchmarks.gpu_kit import (
    DATASHEET_FLOP_PER_S,
    TOO_LONG,
    Bench,
    Figures,
    attention_by,
    build,
    seconds,
    spread,
    top_kernels,
)
from tests.benchmarks.gpu_parts import compiling

CONTEXT, ROWS, ROUNDS = 8192, 8, 4


@dataclass(frozen=True)
class Variant:
    """One way to run a step. attention: a backend, `best` for the one that was fastest alone, None for torch's choice.

    loss: `linear` (compiled), `linear_eager`, or `logits`, which are kept.
    """

    model: str
    compile: bool = False
    micro_rows: int = 4
    attention: str | None = "best"
    loss: str = "linear"
    recompute: bool = False
    deterministic: bool = False
    profile: bool = False

    @property
    def name(self) -> str:
        how = ["compiled" if self.compile else "eager", f"rows{self.micro_rows}"]
        how += [f"attention-{self.attention}"] if self.attention != "best" else []
        how += [f"loss-{self.loss}"] if self.loss != "linear" else []
        how += ["recomputed"] if self.recompute else []
        how += ["deterministic"] if self.deterministic else []
        return "_".join([self.model, *how])


FIRST = (
    Variant("dense", profile=True),
    Variant("bam", profile=True),
    Variant("dense", compile=True, profile=True),
    Variant("bam", compile=True, profile=True),
    Variant("btx"),
    Variant("btx_top3of6", profile=True),
)
THEN = (
    Variant("dense", micro_rows=1, loss="logits", attention=None),
    Variant("dense", loss="linear_eager"),
    Variant("dense", micro_rows=1),
    Variant("dense", micro_rows=2),
    Variant("bam", attention="flash"),
    Variant("bam", attention="flash", deterministic=True),
    Variant("bam", micro_rows=1),
    Variant("dense", recompute=True),
)
LAST = (Variant("btx_top3of6", compile=True), Variant("btx", compile=True))


def model_config(bench: Bench, name: str) -> ModelConfig:
    config = paper.METHODS[name]
    if bench.tiny:
        return replace(config, vocab_size=512, d_model=64, n_layers=2, n_heads=4, n_kv_heads=4, d_ff=64, max_seq_len=32)
    return replace(config, max_seq_len=CONTEXT)


class Trainer:
    """Full training steps on random tokens."""

    def __init__(self, config: ModelConfig, device: str, rows: int, micro_rows: int) -> None:
        length = config.max_seq_len
        self.phase = TrainConfig(10**9, rows * length, 1e-4, {"a": 1.0}, length)
        self.model, self.micro_rows = build(config, device), micro_rows
        self.optimizer = Optimizer(self.model, self.phase)
        self.rows = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length + 1))
        self.frac: list[list[float]] = []

    def step(self) -> float:
        """Returns the loss."""
        sums = accumulate_gradient(
            self.model, self.optimizer, self.rows, self.phase, self.micro_rows, self.frac or None
        )
        loss = sums.figures()["loss"]
        self.optimizer.step(1e-4)
        self.frac = sums.expert_frac()
        return loss


def logits_kept(model: LM, output: Output, targets_BT: Tensor, wants_logits: bool) -> tuple[Tensor, Tensor | None]:
    return next_token_loss(model.logits(output.hidden_BTD, output.mix_BTE), targets_BT), None


@contextmanager
def loss_by(name: str) -> Iterator[None]:
    before = step_module._text_loss
    if name == "logits":
        step_module._text_loss = logits_kept
    try:
        with compiling(name == "linear"):
            yield
    finally:
        step_module._text_loss = before


def training_step(variant: Variant) -> Callable[[Bench], Figures]:
    """Measure it; where it fails, without what is likeliest to be the cause."""

    def work(bench: Bench) -> Figures:
        backend = bench.attention() if variant.attention == "best" else variant.attention
        ways = dict.fromkeys([(backend, variant.loss), ("flash", variant.loss), ("flash", "linear_eager")])
        failed: dict[str, str] = {}
        for way in ways:
            try:
                return measure(bench, variant, *way) | ({"failed_before": str(failed)} if failed else {})
            except (TimeoutError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if TOO_LONG in str(error):  # a compiler wraps it
                    raise
                failed[str(way)] = f"{type(error).__name__}: {error}"[:1200]
                print(f"    {way} failed: {failed[str(way)]}", flush=True)
                if not bench.is_usable():
                    break
        raise RuntimeError(str(failed))

    return work


def measure(bench: Bench, variant: Variant, backend: str | None, loss: str) -> Figures:
    config = model_config(bench, variant.model)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(config, bench.device, 4 if bench.tiny else ROWS, variant.micro_rows)
    if variant.compile:
        torch._dynamo.reset()
        compile_layers(trainer.model, bench.device)
    if variant.recompute:
        recompute_activations(trainer.model)
    with ExitStack() as stack:
        stack.enter_context(attention_by(backend) if bench.on_gpu else nullcontext())
        stack.enter_context(loss_by(loss))
        stack.enter_context(deterministic(variant.deterministic))
        started = time.perf_counter()
        first_loss = trainer.step()
        first_s = time.perf_counter() - started
        times = seconds(bench, trainer.step, ROUNDS, 1)
        found = figures(bench, config, trainer, times)
        optimizer_s = statistics.median(seconds(bench, lambda: trainer.optimizer.step(0.0), 3, 1))
        kernels = top_kernels(trainer.step) if variant.profile else []
    found |= {"first_step_s": first_s, "optimizer_s": optimizer_s, "first_loss": first_loss}
    return found | {"attention": backend, "loss": loss, "profile": kernels}


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Torch's deterministic algorithms where it has them, without its filling of new memory."""
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = not on
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def figures(bench: Bench, config: ModelConfig, trainer: Trainer, times: list[float]) -> Figures:
    tokens = trainer.phase.batch_tokens
    flop_per_s = [training_flops(config, tokens, config.max_seq_len) / s for s in times]
    found: Figures = spread(times) | {
        "params": params_total(config),
        "batch_tokens": tokens,
        "micro_batch_rows": trainer.micro_rows,
        "tokens_per_s": tokens / statistics.median(times),
        "tflop_per_s": statistics.median(flop_per_s) / 1e12,
        "of_product": statistics.median(flop_per_s) / bench.peak(),
        "of_product_low": min(flop_per_s) / bench.peak(),
        "of_product_high": max(flop_per_s) / bench.peak(),
        "of_datasheet": statistics.median(flop_per_s) / DATASHEET_FLOP_PER_S,
        "state_bytes": training_bytes(config),
    }
    if bench.on_gpu:
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def decode(bench: Bench) -> Figures:
    """64 tokens after prompts of 128, one and sixteen at a time, through `generate`."""
    n_new, n_prompt = (4, 8) if bench.tiny else (64, 128)
    found: Figures = {}
    for name in ("dense", "btx", "bam"):
        config = model_config(bench, name)
        model = build(config, bench.device)
        for batch in (1, 16):
            prompts = list(torch.randint(0, config.vocab_size, (batch, n_prompt)))

            def work(model: LM = model, prompts: Any = prompts) -> None:
                generate(model, prompts, n_new)

            times = seconds(bench, work, 2, 1)
            found[f"{name}_b{batch}"] = spread(times) | {"tokens_per_s": batch * n_new / statistics.median(times)}
            print(f"    {name} batch {batch}: {found[f'{name}_b{batch}']['tokens_per_s']:.0f} tokens/s", flush=True)
    return found
