"""What a person sees of a training: its routers' figures are those of the whole batch, its speed is by the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import DENSE, MIXTURE, PHASE, RandomRows, Worker, fresh

from bam_core.config import FFNExperts, ModelConfig
from bam_core.evaluate.routing import RoutingSums
from bam_core.nn.costs import training_flops
from bam_core.train import meter
from bam_core.train.loop import Pace, train
from bam_core.train.meter import Meter, product_flops_per_s
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient

EXACT = replace(PHASE, dtype="fp64", tokens=PHASE.batch_tokens)
SPEED = {"tokens_per_s", "flops_per_s", "flops_utilization"}
ROUTERS = {
    "router/ffn_entropy",
    "router/attention_entropy",
    "router/ffn_max_load",
    "router/ffn_min_load",
}
MODELS = {
    "both": MIXTURE,
    "ffn": replace(MIXTURE, attention=None),
    "attention": replace(MIXTURE, ffn=None),
    "one layer": replace(MIXTURE, ffn=FFNExperts(3, 1, layers=(1,))),
    "top 2": replace(MIXTURE, ffn=FFNExperts(3, 2)),
}


def lively(config: ModelConfig) -> Any:
    """A model in float64 whose routers are neither sure nor uniform."""
    model = fresh(config).cast(torch.float64)
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data.mul_(40)
    return model


def figures(config: ModelConfig, micro_batch_rows: int) -> dict[str, float]:
    model = lively(config)
    rows = RandomRows().batch(0, EXACT.rows_per_batch)
    return accumulate_gradient(model, Optimizer(model, EXACT), rows, EXACT, micro_batch_rows).figures()


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_router_figures_are_those_of_the_evaluation_whatever_the_micro_batches(config: ModelConfig) -> None:
    """The same definitions as in `routing.json`, computed there by other code."""
    sums = RoutingSums(config)
    sums.add(lively(config)(torch.from_numpy(RandomRows().batch(0, 8))[:, :-1]).routing)
    expected = {}
    for branch, table in sums.to_json().items():
        if table is not None:
            expected[f"router/{branch}_entropy"] = np.mean([e for e in table["entropy"] if e is not None])
        if branch == "ffn" and table is not None:
            shares = [share for layer in table["fraction"] if layer is not None for share in layer]
            expected |= {"router/ffn_max_load": max(shares), "router/ffn_min_load": min(shares)}
    assert 0.02 < expected.get("router/ffn_entropy", 0.5) < 0.98  # else this says little
    for micro_batch_rows in (8, 3):
        found = figures(config, micro_batch_rows)
        assert {name: found[name] for name in found if name in ROUTERS} == pytest.approx(expected, rel=1e-9)


def test_a_dense_model_has_no_router_figures() -> None:
    assert figures(DENSE, 8).keys() == {"loss"}


def test_the_history_has_the_routers_and_no_clock_reading(tmp_path: Path) -> None:
    """What is live is the newest step's; at one history entry for each step, the entry itself."""
    worker = Worker(tmp_path)
    _, progress = train(fresh(MIXTURE), RandomRows(), PHASE, worker, Pace(log_every_s=0))
    assert [step for step, _ in worker.logged] == list(range(1, PHASE.n_steps + 1))
    for (step, live), row in zip(worker.logged, progress.history, strict=True):
        assert row.keys() >= ROUTERS | {"loss", "lr", "grad_norm", "load_balancing_loss", "z_loss"}
        assert not row.keys() & SPEED
        assert {"step": step, **live} == row | {
            "tokens_per_s": live["tokens_per_s"],
            "flops_per_s": live["flops_per_s"],
            "total_steps": PHASE.n_steps,
        }


@dataclass
class Clock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter.time, "monotonic", clock.monotonic)
    return clock


def test_speed_is_of_the_steps_since_the_figures_before(clock: Clock, tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    shown = Meter(MIXTURE, PHASE, worker, torch.float32, every_s=1.0)
    for step, passed_s in enumerate((0.5, 0.25, 0.75, 2.0), 1):
        clock.now += passed_s
        shown.publish(step, {"loss": float(step)})
    (first, one), (second, two) = worker.logged
    assert (first, second) == (3, 4)
    flops = training_flops(MIXTURE, PHASE.batch_tokens, PHASE.seq_len)
    assert one["tokens_per_s"] == pytest.approx(3 * PHASE.batch_tokens / 1.5)
    assert two["tokens_per_s"] == pytest.approx(PHASE.batch_tokens / 2.0)
    assert one["flops_per_s"] == pytest.approx(3 * flops / 1.5)
    assert two["flops_per_s"] == pytest.approx(flops / 2.0)
    assert [one["loss"], two["loss"]] == [3.0, 4.0]
    assert "flops_utilization" not in one  # too small a run to measure the device for


def test_utilisation_is_over_what_all_devices_reach(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def reach(device: str, dtype: torch.dtype) -> float:
        asked.append((device, dtype))
        return 1e6

    monkeypatch.setattr(meter, "product_flops_per_s", reach)
    monkeypatch.setattr(meter, "MEASURED_ABOVE_FLOPS", 0)
    worker = Worker(tmp_path, world_size=4)
    shown = Meter(DENSE, PHASE, worker, torch.bfloat16, every_s=1.0)
    clock.now += 2.0
    shown.publish(1, {})
    [(_, live)] = worker.logged
    assert asked == [("cpu", torch.bfloat16)]
    assert live["flops_utilization"] == pytest.approx(live["flops_per_s"] / 4e6)


def test_measuring_the_device_draws_no_random_number_of_the_run() -> None:
    before = torch.random.get_rng_state()
    assert product_flops_per_s("cpu", torch.float32) > 0
    assert torch.equal(torch.random.get_rng_state(), before)
