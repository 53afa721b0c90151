"""Training of every gate and option: one gradient for any split of a batch, biases that move, resumes bit-identical."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_runs import DENSE, MIXTURE, PHASE, RandomRows, Worker, fresh, masters

from bam_core.config import GATES, AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.lm import LM
from bam_core.nn.shapes import tensor_shapes
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer
from bam_core.train.parallel import rows_of_rank
from bam_core.train.routers import fade_router_biases, move_balance, noise_of_step
from bam_core.train.state import Progress, State, load_state
from bam_core.train.step import BatchSums, accumulate_gradient


def with_ffn(**options: object) -> ModelConfig:
    return replace(MIXTURE, ffn=replace(FFNExperts(3, 1), **options))


KINDS = {
    **{
        f"{gate}-{k}": with_ffn(gate=gate, top_k=k) for gate in GATES for k in (1, 2) if (gate, k) != ("sample_top1", 2)
    },
    "soft": with_ffn(top_k=3),
    "capacity": with_ffn(top_k=2, capacity_factor=0.7),
    "sampled, capacity": with_ffn(gate="sample_top1", capacity_factor=0.7),
    "sampled, dense gradient": with_ffn(gate="sample_top1", dense_router_gradient=True),
    "dense gradient": with_ffn(dense_router_gradient=True),
    "balance": with_ffn(balance="bias"),
    "sampled, balance": with_ffn(gate="sample_top1", balance="bias"),
    "soft first layer": with_ffn(gate="sample_top1", soft_layers=(0,)),
    "one layer": with_ffn(layers=(1,)),
    "shared, split": with_ffn(n_experts=6, top_k=2, split=2, shared_expert=True, gain=(2.0, 1.5)),
    "top-k attention": replace(MIXTURE, attention=AttentionExperts(3, 1, "shared", dense_router_gradient=True)),
}


def part_of_the_gradient(config: ModelConfig, world: int, micro: int, rank: int, step: int = 7) -> Tensor:
    """What one of `world` ranks adds to the gradient and the figures of step 7."""
    # Large coefficients, so that a router loss that depends on the split would show.
    phase = replace(PHASE, dtype="fp64", load_balancing_coef=1.0, z_loss_coef=0.5, gumbel_rate=0.05)
    model = fresh(config).cast(torch.float64)
    for name, parameter in model.named_parameters():
        if name.endswith("balance_bias"):
            parameter.data.copy_(torch.tensor([0.3, -0.2, -0.1]))
        if name.endswith("ffn.router"):
            parameter.data.mul_(50)
    optimizer = Optimizer(model, phase)
    rows = rows_of_rank(RandomRows().batch(0, phase.rows_per_batch), rank, world)
    n_experts = config.ffn.n_experts
    frac = [np.roll([0.7, *[0.3 / (n_experts - 1)] * (n_experts - 1)], layer).tolist() for layer in range(2)]
    if config.ffn.layers is not None:
        frac = frac[: len(config.ffn.layers)]
    noise = noise_of_step(config, phase, step, rank, world)
    sums = accumulate_gradient(model, optimizer, rows, phase, micro, frac, noise)
    return torch.cat([*optimizer.gradients(), *(part.flatten() for part in sums.tensors())])


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_any_split_of_a_batch_gives_the_same_gradient(config: ModelConfig) -> None:
    """Ranks, micro-batches, and accumulation over as many as a rank needs; with all auxiliary losses."""
    expected = part_of_the_gradient(config, 1, PHASE.rows_per_batch, 0)
    assert expected.abs().max() > 1e-3
    for world, micro in ((1, 3), (2, 8), (3, 2), (8, 1)):
        total = sum(part_of_the_gradient(config, world, micro, rank) for rank in range(world))
        torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-13, msg=f"{world} ranks, {micro} rows")


def test_each_step_draws_other_experts() -> None:
    config = KINDS["sample_top1-1"]
    assert not torch.allclose(*(part_of_the_gradient(config, 1, 8, 0, step) for step in (7, 8)), rtol=1e-3)


def test_noise_is_by_phase_seed_step_and_row_of_the_global_batch_and_cools_to_its_floor() -> None:
    config, phase = KINDS["sample_top1-1"], replace(PHASE, gumbel_rate=0.1, gumbel_min=0.5)
    whole = noise_of_step(config, phase, 3)
    assert len(set(whole.row_seeds)) == phase.rows_per_batch
    for rank in range(3):
        assert noise_of_step(config, phase, 3, rank, 3).row_seeds == whole.row_seeds[rank::3]
    for other in (noise_of_step(config, phase, 4), noise_of_step(config, replace(phase, seed=4), 3)):
        assert not set(other.row_seeds) & set(whole.row_seeds)
    temperatures = [noise_of_step(config, phase, step).temperature for step in (0, 3, 6, 7, 1000)]
    assert temperatures == pytest.approx([1.0, exp(-0.3), exp(-0.6), 0.5, 0.5], rel=1e-12)
    assert noise_of_step(DENSE, phase, 3) is None
    assert noise_of_step(MIXTURE, phase, 3) is None


BIASED = with_ffn(balance="bias", router_bias=True, gate="sample_top1")


def test_balancing_moves_the_choice_by_its_rate_against_the_load() -> None:
    model = fresh(with_ffn(balance="bias"))
    move_balance(model, torch.tensor([[10.0, 1.0, 1.0], [4.0, 4.0, 4.0]], dtype=torch.float64), rate=0.3)
    first, second = (block.ffn.balance_bias for block in model.blocks)
    # -0.3, +0.3, +0.3 less their mean, 0.1; equal loads move nothing.
    torch.testing.assert_close(first.detach(), torch.tensor([-0.4, 0.2, 0.2]), rtol=1e-6, atol=0)
    assert not second.any()
    move_balance(model, torch.tensor([[2.0, 9.0, 4.0], [5.0, 3.0, 4.0]], dtype=torch.float64), rate=0.3)
    torch.testing.assert_close(first.detach(), torch.tensor([-0.2, -0.2, 0.4]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(second.detach(), torch.tensor([-0.3, 0.3, 0.0]), rtol=1e-6, atol=1e-7)
    assert abs(float(first.sum())) < 1e-6


class SameRows(RandomRows):
    def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
        return super().batch(0, rows_per_batch)


def test_balancing_by_bias_relieves_an_overloaded_expert_without_a_loss(tmp_path: Path) -> None:
    """A tiny learning rate keeps the routers: what moves tokens away from an expert is its bias."""

    def after(n_steps: int, balance_rate: float) -> tuple[LM, Progress]:
        model = fresh(with_ffn(balance="bias"))
        for block in model.blocks:
            block.ffn.router.data[0] *= 30  # wide logits: far the likeliest for about every second token
        phase = replace(PHASE, tokens=64 * n_steps, lr=1e-9, load_balancing_coef=0.0, balance_rate=balance_rate)
        _, progress = train(model, SameRows(), phase, Worker(tmp_path), Pace())
        return model, progress

    before = after(1, 0.0)[1].expert_frac
    model, progress = after(60, 0.02)
    for layer, (block, first, last) in enumerate(zip(model.blocks, before, progress.expert_frac, strict=True)):
        busiest = int(np.argmax(first))
        assert first[busiest] > 0.45, layer  # else this says little
        assert last[busiest] < 0.40, layer
        assert block.ffn.balance_bias[busiest] < -0.05, layer
    assert after(60, 0.0)[1].expert_frac == before  # and nothing else did


def test_a_router_bias_falls_on_a_line_to_exactly_0() -> None:
    model = fresh(BIASED)
    names = [name for name, _ in model.named_parameters() if name.endswith("router_bias")]
    for name in names:
        model.get_parameter(name).data.copy_(torch.tensor([0.0, -30.0, 1.0]))
    starts = Optimizer(model, PHASE).start_biases
    assert sorted(starts) == sorted(names)
    assert PHASE.n_steps == 12
    for frac, step, left in (
        (0.5, 0, 1.0),
        (0.5, 3, 0.5),
        (0.5, 6, 0),
        (0.5, 9, 0),
        (1.0, 12, 0),
        (1.0, 9, 0.25),
        (0, 0, 0),
    ):
        fade_router_biases(model, starts, replace(PHASE, router_bias_frac=frac), step)
        for name in names:
            assert model.get_parameter(name).tolist() == pytest.approx([0.0, -30.0 * left, left], rel=1e-6, abs=0), step


def biased_start(seed: int = 0, start: float = -3.0) -> LM:
    model = fresh(BIASED, seed)
    for block in model.blocks:
        block.ffn.router_bias.data.copy_(torch.tensor([0.0, 0.0, start]))
    return model


@pytest.mark.parametrize("die_at", [2, 5, 9])  # while a router bias fades, and after it
def test_a_run_with_noise_and_biases_resumes_bit_identical(tmp_path: Path, die_at: int) -> None:
    phase, pace = replace(PHASE, balance_rate=0.05, gumbel_rate=0.05), Pace(micro_batch_rows=4, checkpoint_steps=1)
    whole, whole_progress = train(biased_start(), RandomRows(), phase, Worker(tmp_path / "a"), pace)
    with pytest.raises(KeyboardInterrupt):
        train(biased_start(), RandomRows(), phase, Worker(tmp_path / "b", die_at=die_at), pace)
    # Other initial weights and biases: everything must come from the checkpoint.
    resumed, progress = train(biased_start(9, start=7.0), RandomRows(), phase, Worker(tmp_path / "b"), pace)
    assert masters(resumed) == masters(whole)
    assert json.dumps(progress.history) == json.dumps(whole_progress.history)

    written = dict(resumed.masters())
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == tensor_shapes(BIASED)
    for layer in range(2):
        assert written[f"blocks.{layer}.ffn.router_bias"].tolist() == [0, 0, 0]
        assert written[f"blocks.{layer}.ffn.balance_bias"].abs().max() > 0.04


def test_a_checkpoint_has_the_biases_as_they_are_and_where_they_started(tmp_path: Path) -> None:
    model = biased_start()
    optimizer = Optimizer(model, PHASE)
    fade_router_biases(model, optimizer.start_biases, PHASE, 3)
    State.of(optimizer, Progress(step=3)).write(tmp_path)
    other = biased_start(9, start=7.0)
    loaded = Optimizer(other, PHASE)
    assert load_state(tmp_path, loaded).step == 3
    bias = "blocks.0.ffn.router_bias"
    assert other.get_parameter(bias).tolist() == [0, 0, -1.5]
    assert loaded.start_biases[bias].tolist() == [0, 0, -3]


def test_the_bias_is_in_force_from_the_first_step_on(tmp_path: Path) -> None:
    """Step 0 runs with the whole bias: nobody is sent to the unheard expert, and later somebody is."""
    model = biased_start(start=-30.0)
    seen: list[float] = []
    model.blocks[0].ffn.register_forward_hook(
        lambda module, inputs, output: seen.append(output[1].probs_NE.detach()[..., 2].mean().item())
    )
    train(model, RandomRows(), PHASE, Worker(tmp_path), Pace(micro_batch_rows=8))
    assert len(seen) == PHASE.n_steps
    assert seen[0] < 1e-12
    assert seen[0] < seen[3] < seen[5] < 0.1
    assert min(seen[6:]) > 0.2


def test_figures_are_of_the_layers_that_have_experts() -> None:
    sums = BatchSums.zero(KINDS["one layer"], torch.device("cpu"))
    assert sums.assigned_LE.shape == (1, 3)
    assert BatchSums.zero(DENSE, torch.device("cpu")).expert_frac() == []
    assert "load_balancing_loss" not in BatchSums.zero(replace(MIXTURE, ffn=None), torch.device("cpu")).figures()
