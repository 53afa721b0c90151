"""The training loop: resumes bit-identical, splits one batch without changing its gradient, stops on divergence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.errors import ArtifactDamaged, TrainingDiverged
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.losses import load_balancing_loss
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer, learning_rate
from bam_core.train.parallel import rows_of_rank
from bam_core.train.step import accumulate_gradient

DENSE = ModelConfig(vocab_size=61, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, max_seq_len=8)
MIXTURE = replace(DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(3, 1), experts=("general", "code", "law"))
PHASE = TrainConfig(tokens=8 * 8 * 12, batch_tokens=64, lr=1e-2, shares={"a": 1.0}, seq_len=8, seed=3)


class Noise:
    """Batches that depend on the step alone."""

    def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, 61, size=(rows_per_batch, 9))


@dataclass
class Worker:
    folder: Path
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    threads: int = 1
    inputs: Mapping[str, Path] = field(default_factory=dict)
    die_at: int | None = None
    logged: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)

    def resume_dir(self) -> Path | None:
        saved = sorted(self.folder.glob("step-*"))
        return saved[-1] if saved else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        target = self.folder / f"step-{step:06d}"
        target.mkdir(parents=True)
        write(target)
        if step == self.die_at:
            raise KeyboardInterrupt

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, metrics))


def fresh(config: ModelConfig, seed: int = 0) -> LM:
    model = LM(config)
    init_weights(model, seed)
    return model


def masters(optimizer: Optimizer) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in optimizer.masters()}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_resumed_run_ends_bit_identical(tmp_path: Path, model: ModelConfig, dtype: str) -> None:
    phase, pace = replace(PHASE, dtype=dtype), Pace(micro_batch_rows=4, checkpoint_steps=5)
    whole, whole_progress = train(fresh(model), Noise(), phase, Worker(tmp_path / "a"), pace)

    with pytest.raises(KeyboardInterrupt):
        train(fresh(model), Noise(), phase, Worker(tmp_path / "b", die_at=5), pace)
    # Other initial weights: everything must come from the checkpoint.
    resumed, resumed_progress = train(fresh(model, seed=9), Noise(), phase, Worker(tmp_path / "b"), pace)

    assert masters(resumed) == masters(whole)
    assert json.dumps(resumed_progress.history) == json.dumps(whole_progress.history)


@pytest.mark.parametrize(("world_size", "micro_batch_rows"), [(1, 3), (2, 8), (3, 2)])
def test_any_split_of_a_batch_gives_the_same_gradient(world_size: int, micro_batch_rows: int) -> None:
    # Large coefficients, so that a router loss that depends on the split would show.
    phase = replace(PHASE, dtype="fp64", load_balancing_coef=1.0, z_loss_coef=0.5)
    frac = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
    rows = Noise().batch(0, phase.rows_per_batch)

    def gradient(world: int, micro: int) -> torch.Tensor:
        parts = []
        for rank in range(world):
            model = fresh(MIXTURE).cast(torch.float64)
            optimizer = Optimizer(model, phase)
            sums = accumulate_gradient(model, optimizer, rows_of_rank(rows, rank, world), phase, micro, frac)
            parts.append(torch.cat([*optimizer.gradients(), *(part.flatten() for part in sums.tensors())]))
        return torch.stack(parts).sum(0)

    expected = gradient(1, phase.rows_per_batch)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient(world_size, micro_batch_rows), expected, rtol=1e-10, atol=1e-13)


def test_history_covers_every_step_once(tmp_path: Path) -> None:
    _, progress = train(fresh(DENSE), Noise(), PHASE, Worker(tmp_path), Pace())
    assert [entry["step"] for entry in progress.history] == list(range(1, PHASE.n_steps + 1))
    assert progress.history[-1]["tokens"] == PHASE.n_steps * PHASE.batch_tokens
    assert progress.history[-1]["lr"] == pytest.approx(PHASE.lr * PHASE.min_lr_frac)


def test_training_learns(tmp_path: Path) -> None:
    class Fixed(Noise):
        def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
            return super().batch(0, rows_per_batch)

    _, progress = train(fresh(MIXTURE), Fixed(), replace(PHASE, tokens=64 * 60), Worker(tmp_path), Pace())
    assert progress.history[-1]["loss"] < 0.7 * progress.history[0]["loss"]


def test_nan_stops_with_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Poisoned(LM):
        n_calls = 0

        def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
            self.n_calls += 1
            return super().logits(hidden_BTD) * (float("nan") if self.n_calls > 7 else 1.0)

    model = Poisoned(DENSE)
    init_weights(model, 0)
    with pytest.raises(TrainingDiverged, match="step 7: loss is nan"):
        train(model, Noise(), PHASE, Worker(tmp_path), Pace(micro_batch_rows=8, checkpoint_steps=5))
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000005"]


def test_spike_stops(tmp_path: Path) -> None:
    class Spiking(LM):
        n_calls = 0

        def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
            self.n_calls += 1
            return super().logits(hidden_BTD) * (1e3 if self.n_calls > 7 else 1.0)

    model = Spiking(DENSE)
    init_weights(model, 0)
    with pytest.raises(TrainingDiverged, match=r"step 7: loss .* spiked"):
        train(model, Noise(), PHASE, Worker(tmp_path), Pace(micro_batch_rows=8))


def test_half_written_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-000005").mkdir()
    (tmp_path / "step-000005" / "state.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ArtifactDamaged, match="step-000005"):
        train(fresh(DENSE), Noise(), PHASE, Worker(tmp_path), Pace())


def test_learning_rate_warms_up_then_falls_to_the_floor() -> None:
    phase = replace(PHASE, tokens=64 * 100, warmup_frac=0.1)
    rates = [learning_rate(step, phase) for step in range(phase.n_steps)]
    assert rates[0] == pytest.approx(phase.lr / 10)
    assert rates[9] == pytest.approx(phase.lr)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(phase.lr * 0.1)
    # Golden: the middle of the cosine.
    assert rates[54] == pytest.approx(phase.lr * (0.1 + 0.9 * 0.5), rel=1e-6)


def test_weight_decay_moves_matrices_only() -> None:
    phase = replace(PHASE, weight_decay=0.5, dtype="fp32")
    model = fresh(DENSE)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    Optimizer(model, phase).step(lr=0.1)  # no gradient: only decay acts
    for name, param in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if param.ndim >= 2 else before[name]
        torch.testing.assert_close(param.detach(), expected, msg=name)


def test_balancing_follows_the_fractions_of_the_step_before() -> None:
    """By hand: E * sum_e f_e P_e with f given, P of this batch; its gradient is that of the loss at that f."""
    phase = replace(PHASE, dtype="fp64", load_balancing_coef=1.0, z_loss_coef=0.0)
    rows = Noise().batch(0, phase.rows_per_batch)

    def router_gradient(coefficient: float, frac: list[list[float]]) -> torch.Tensor:
        model = fresh(MIXTURE).cast(torch.float64)
        optimizer = Optimizer(model, phase)
        accumulate_gradient(model, optimizer, rows, replace(phase, load_balancing_coef=coefficient), 8, frac)
        names = optimizer.groups[0].names
        return optimizer.groups[0].grad_views[names.index("blocks.0.ffn.router")].clone()

    uniform = [[1 / 3] * 3] * 2
    torch.testing.assert_close(router_gradient(1.0, uniform), router_gradient(0.0, uniform), rtol=0, atol=1e-12)
    skewed = [[1.0, 0.0, 0.0], [1 / 3] * 3]
    push = router_gradient(1.0, skewed) - router_gradient(0.0, skewed)
    assert push.abs().max() > 1e-4
    # A softmax does not see a shift of all logits, so neither may the loss.
    torch.testing.assert_close(push.sum(0), torch.zeros(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_published_balance_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """The figure is f and P of one batch, whatever the micro-batches."""
    phase = replace(PHASE, dtype="fp64", tokens=PHASE.batch_tokens)
    figures = []
    for micro in (1, 8):
        model = fresh(MIXTURE).cast(torch.float64)
        sums = accumulate_gradient(model, Optimizer(model, phase), Noise().batch(0, 8), phase, micro)
        figures.append(sums.figures())
    assert figures[0] == pytest.approx(figures[1], rel=1e-12)
    model = fresh(MIXTURE).cast(torch.float64)
    ffn = [layer.ffn for layer in model(torch.from_numpy(Noise().batch(0, 8))[:, :-1]).routing]
    expected = load_balancing_loss([routing for routing in ffn if routing is not None]).item()
    assert figures[1]["load_balancing_loss"] == pytest.approx(expected, rel=1e-12)
