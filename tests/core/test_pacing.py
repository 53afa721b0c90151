"""Paces: what is timed, that models take turns, and that the median counts. No clock of this machine is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from statistics import median

import pytest
import torch

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.lm import LM
from bam_core.train import pacing
from bam_core.train.pacing import Paced, seconds_per_token, step_seconds
from bam_core.upcycle.variants import VARIANTS, mixture_config

DENSE = ModelConfig(vocab_size=50, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=12, max_seq_len=8)
PHASE = TrainConfig(tokens=10**9, batch_tokens=32, lr=1.0, shares={"a": 1.0}, seq_len=8, dtype="fp32")


def ticking(seconds: list[float]) -> Iterator[float]:
    """A clock that stands at the end of each step."""
    now = 0.0
    for step in seconds:
        yield now
        now += step


@pytest.mark.parametrize("variant", ["dense", "bam", "btx"])
def test_the_steps_after_the_warm_up_are_timed(variant: str) -> None:
    config = DENSE if variant == "dense" else mixture_config(DENSE, ["a", "b"], VARIANTS[variant])
    clock = ticking([100.0, 1.0, 2.0, 4.0, 100.0])
    assert step_seconds(Paced(config, PHASE), 3, clock=lambda: next(clock)) == [1.0, 2.0, 4.0]
    assert next(clock, None) is None, "no more steps than that"


def test_a_whole_batch_is_trained_as_the_phase_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Size, torch.dtype]] = []
    forward = LM.forward

    def watched(self: LM, tokens: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen.append((tokens.shape, next(self.parameters()).dtype))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(LM, "forward", watched)
    clock = count()
    phase = TrainConfig(tokens=64, batch_tokens=32, lr=1.0, shares={"a": 1.0}, seq_len=8, dtype="bf16")
    step_seconds(Paced(DENSE, phase, pacing.Pace(micro_batch_rows=2)), 1, clock=lambda: float(next(clock)))
    assert set(seen) == {(torch.Size([2, 8]), torch.bfloat16)}
    assert len(seen) == 3 * 2, "three steps of two micro-batches"


def test_models_take_turns_and_the_median_of_all_steps_counts() -> None:
    seconds = {"a": iter([[32.0, 64.0], [96.0, 3200.0]]), "b": iter([[3.2, 3.2], [3.2, 6.4]])}
    turns, told = [], []

    def measure(paced: Paced, n_steps: int, seed: int) -> list[float]:
        name = "a" if paced.threads == 1 else "b"
        turns.append((name, n_steps, seed))
        return next(seconds[name])

    models = {"a": Paced(DENSE, PHASE, threads=1), "b": Paced(DENSE, PHASE, threads=2)}
    found = seconds_per_token(models, 2, 2, lambda name, pace: told.append((name, pace)), measure)
    assert turns == [("a", 2, 0), ("b", 2, 0), ("a", 2, 1), ("b", 2, 1)]
    assert found == {"a": median([1.0, 2.0, 3.0, 100.0]), "b": pytest.approx(0.1)}
    assert told[0] == ("a", 1.5)
