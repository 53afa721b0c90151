"""The training loop: resumes bit-identical, splits one batch without changing its gradient, stops on divergence."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import DENSE, MIXTURE, PHASE, RandomRows, Worker, fresh, masters

from bam_core.config import AttentionExperts, ModelConfig
from bam_core.errors import ArtifactDamaged, TrainingDiverged
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.losses import load_balancing_loss
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer, learning_rate
from bam_core.train.state import State
from bam_core.train.step import accumulate_gradient


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_resumed_run_ends_bit_identical(tmp_path: Path, model: ModelConfig, dtype: str) -> None:
    phase, pace = replace(PHASE, dtype=dtype), Pace(micro_batch_rows=4, checkpoint_steps=5)
    whole, whole_progress = train(fresh(model), RandomRows(), phase, Worker(tmp_path / "a"), pace)

    with pytest.raises(KeyboardInterrupt):
        train(fresh(model), RandomRows(), phase, Worker(tmp_path / "b", die_at=5), pace)
    # Other initial weights: everything must come from the checkpoint.
    resumed, resumed_progress = train(fresh(model, seed=9), RandomRows(), phase, Worker(tmp_path / "b"), pace)

    assert masters(resumed) == masters(whole)
    assert json.dumps(resumed_progress.history) == json.dumps(whole_progress.history)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of step 5 is written in step 7 at the earliest, and holds nothing of it."""
    pace, later, write = Pace(micro_batch_rows=4, checkpoint_steps=5), threading.Event(), State.write

    class Steps(RandomRows):
        def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
            if step == 7:
                later.set()
            return super().batch(step, rows_per_batch)

    def slowly(state: State, folder: Path) -> None:
        assert later.wait(60), "training waits for its checkpoint"
        write(state, folder)

    with monkeypatch.context() as patch:
        patch.setattr(State, "write", slowly)
        with pytest.raises(KeyboardInterrupt):
            train(fresh(MIXTURE), Steps(), PHASE, Worker(tmp_path / "b", die_at=5), pace)
    resumed, _ = train(fresh(MIXTURE, seed=9), RandomRows(), PHASE, Worker(tmp_path / "b"), pace)
    whole, _ = train(fresh(MIXTURE), RandomRows(), PHASE, Worker(tmp_path / "a"), pace)
    assert masters(resumed) == masters(whole)


def test_history_covers_every_step_once(tmp_path: Path) -> None:
    _, progress = train(fresh(DENSE), RandomRows(), PHASE, Worker(tmp_path), Pace())
    assert [entry["step"] for entry in progress.history] == list(range(1, PHASE.n_steps + 1))
    assert progress.history[-1]["tokens"] == PHASE.n_steps * PHASE.batch_tokens
    assert progress.history[-1]["lr"] == pytest.approx(PHASE.lr * PHASE.min_lr_frac)


def test_masters_start_with_every_digit_of_the_weights(tmp_path: Path) -> None:
    model = fresh(MIXTURE)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer, _ = train(model, RandomRows(), replace(PHASE, lr=0.0, dtype="bf16"), Worker(tmp_path), Pace())
    assert model.embed.weight.dtype == torch.bfloat16
    for name, master in optimizer.masters():
        assert torch.equal(master, before[name]), name


def test_training_learns(tmp_path: Path) -> None:
    class Fixed(RandomRows):
        def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
            return super().batch(0, rows_per_batch)

    _, progress = train(fresh(MIXTURE), Fixed(), replace(PHASE, tokens=64 * 60), Worker(tmp_path), Pace())
    assert progress.history[-1]["loss"] < 0.7 * progress.history[0]["loss"]


def test_nan_stops_with_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Poisoned(LM):
        n_calls = 0

        def logits(self, hidden_BTD: torch.Tensor, mix_BTE: torch.Tensor | None = None) -> torch.Tensor:
            self.n_calls += 1
            return super().logits(hidden_BTD) * (float("nan") if self.n_calls > 7 else 1.0)

    model = Poisoned(DENSE)
    init_weights(model, 0)
    with pytest.raises(TrainingDiverged, match="step 7: loss is nan"):
        train(model, RandomRows(), PHASE, Worker(tmp_path), Pace(micro_batch_rows=8, checkpoint_steps=5))
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000005"]


def test_spike_stops(tmp_path: Path) -> None:
    class Spiking(LM):
        n_calls = 0

        def logits(self, hidden_BTD: torch.Tensor, mix_BTE: torch.Tensor | None = None) -> torch.Tensor:
            self.n_calls += 1
            return super().logits(hidden_BTD) * (1e3 if self.n_calls > 7 else 1.0)

    model = Spiking(DENSE)
    init_weights(model, 0)
    with pytest.raises(TrainingDiverged, match=r"step 7: loss .* spiked"):
        train(model, RandomRows(), PHASE, Worker(tmp_path), Pace(micro_batch_rows=8))


def test_half_written_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-000005").mkdir()
    (tmp_path / "step-000005" / "state.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ArtifactDamaged, match="step-000005"):
        train(fresh(DENSE), RandomRows(), PHASE, Worker(tmp_path), Pace())


def test_learning_rate_warms_up_then_falls_to_the_floor() -> None:
    phase = replace(PHASE, tokens=64 * 100, warmup_frac=0.1)
    rates = [learning_rate(step, phase) for step in range(phase.n_steps)]
    assert rates[0] == pytest.approx(phase.lr / 10)
    assert rates[9] == pytest.approx(phase.lr)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(phase.lr * 0.1)
    # Golden: the middle of the cosine.
    assert rates[54] == pytest.approx(phase.lr * (0.1 + 0.9 * 0.5), rel=1e-6)


NORMS_OF_EXPERTS = replace(DENSE, qk_norm=True, attention=AttentionExperts(2, 2), experts=("general", "code"))
"""Its q_norm and k_norm have two dimensions, as one of an expert."""
BIASES_OF_EXPERTS = replace(NORMS_OF_EXPERTS, qkv_bias=True, o_bias=True, norm_bias=True, ffn_bias=True)


@pytest.mark.parametrize("model", [DENSE, NORMS_OF_EXPERTS, BIASES_OF_EXPERTS], ids=["dense", "norms", "biases"])
def test_weight_decay_moves_matrices_and_no_norm_and_no_bias(model: ModelConfig) -> None:
    phase = replace(PHASE, weight_decay=0.5, dtype="fp32")
    lm = fresh(model)
    for name, param in lm.named_parameters():
        if "bias" in name or ".b_" in name:
            torch.nn.init.ones_(param)
    before = {name: param.detach().clone() for name, param in lm.named_parameters()}
    Optimizer(lm, phase).step(lr=0.1)  # no gradient: only decay acts
    kept = set()
    for name, param in lm.named_parameters():
        is_norm = "norm" in name or ".b_" in name
        expected = before[name] if is_norm else before[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(param.detach(), expected, msg=name)
        kept |= {before[name].ndim} if is_norm else set()
    assert kept == ({1, 2} if model.is_mixture else {1})


def test_balancing_follows_the_fractions_of_the_step_before() -> None:
    """By hand: E * sum_e f_e P_e with f given, P of this batch; its gradient is that of the loss at that f."""
    phase = replace(PHASE, dtype="fp64", load_balancing_coef=1.0, z_loss_coef=0.0)
    rows = RandomRows().batch(0, phase.rows_per_batch)

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
        sums = accumulate_gradient(model, Optimizer(model, phase), RandomRows().batch(0, 8), phase, micro)
        figures.append(sums.figures())
    assert figures[0] == pytest.approx(figures[1], rel=1e-12)
    model = fresh(MIXTURE).cast(torch.float64)
    ffn = [layer.ffn for layer in model(torch.from_numpy(RandomRows().batch(0, 8))[:, :-1]).routing]
    expected = load_balancing_loss([routing for routing in ffn if routing is not None]).item()
    assert figures[1]["load_balancing_loss"] == pytest.approx(expected, rel=1e-12)


def test_a_training_loads_neither_compiler_nor_sharding() -> None:
    """They take seconds of each process that starts, also of one that takes a killed worker's place."""
    program = (
        "import sys, tempfile; from pathlib import Path; from training_runs import *;"
        "from bam_core.train.loop import Pace, train; worker = Worker(Path(tempfile.mkdtemp()));"
        "train(fresh(DENSE), RandomRows(), PHASE, worker, Pace());"
        "print({'torch._dynamo', 'torch.distributed.tensor', 'torch.distributed.fsdp', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == "set()"
