"""Each part of a mixture at its own learning rate, or standing still for a while."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.train.optim import Optimizer
from bam_core.train.parts import lr_factor, part_of
from bam_core.train.routers import harden_attention
from bam_core.train.step import accumulate_gradient

MODEL = ModelConfig(
    vocab_size=64,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    d_ff=24,
    max_seq_len=8,
    qk_norm=True,
    experts=("a", "b"),
    attention=AttentionExperts(n_experts=2, top_k=2, kv="expert"),
    ffn=FFNExperts(n_experts=2, top_k=1, shared_expert=True),
)
PHASE = TrainConfig(tokens=10 * 64, batch_tokens=64, lr=1e-2, shares={"a": 1.0}, seq_len=8, dtype="fp64")
OF_PART = {
    "router": {"attn.router", "ffn.router"},
    "attention": {f"attn.{name}" for name in ("w_q", "w_k", "w_v", "w_o", "q_norm", "k_norm")},
    "ffn": {f"ffn.{name}" for name in ("w_gate", "w_up", "w_down")},
}


BIASED = replace(MODEL, qkv_bias=True, o_bias=True, norm_bias=True, ffn_bias=True)


def lm() -> LM:
    model = LM(MODEL)
    init_weights(model, 0)
    return model.double()


def parts(model: LM) -> dict[str, str]:
    return {name: part_of(name, param) for name, param in model.named_parameters()}


def moved(config: TrainConfig, n_steps: int = 1) -> dict[str, float]:
    """Parameter -> how far it went."""
    model = lm()
    optimizer = Optimizer(model, config)
    before = {name: tensor.clone() for name, tensor in optimizer.masters()}
    for step in range(n_steps):
        rows = np.random.default_rng(step).integers(0, 64, (8, 9))
        accumulate_gradient(model, optimizer, rows, config, 8)
        optimizer.step(config.lr, step)
    return {name: float((tensor - before[name]).norm()) for name, tensor in optimizer.masters()}


def test_every_tensor_has_its_part() -> None:
    found = parts(lm())
    for part, names in OF_PART.items():
        assert {name for name, its in found.items() if its == part} == {
            f"blocks.{n}.{name}" for n in (0, 1) for name in names
        }
    assert {name.split(".")[-2] for name, part in found.items() if part == "shared"} == {"embed", "norm", "shared"}


@pytest.mark.parametrize("part", ["router", "expert", "shared"])
def test_a_frozen_part_stands_still_and_the_others_go_as_they_would(part: str) -> None:
    free, frozen = moved(PHASE), moved(replace(PHASE, **{f"{part}_freeze_frac": 0.5}))
    for name, its in parts(lm()).items():
        stands = its == part or (part == "expert" and its in ("attention", "ffn"))
        assert frozen[name] == (0 if stands else pytest.approx(free[name], rel=1e-12)), name


def test_it_moves_again_after_its_fraction_of_the_steps() -> None:
    config = replace(PHASE, expert_freeze_frac=0.3)
    still, moves = moved(config, 3), moved(config, 4)
    name = "blocks.0.attn.w_q"
    assert still[name] == 0 < moves[name]


@pytest.mark.parametrize("part", ["router", "attention", "ffn", "shared"])
def test_a_factor_is_one_of_that_part_alone(part: str) -> None:
    config = replace(PHASE, weight_decay=0.0)
    one, three = moved(config), moved(replace(config, **{f"{part}_lr_factor": 3.0}))
    for name, its in parts(lm()).items():
        assert three[name] == pytest.approx((3 if its == part else 1) * one[name], rel=1e-9), name


def test_a_part_decays_at_its_own_rate() -> None:
    config = replace(PHASE, router_lr_factor=0.0, weight_decay=0.5)
    far = moved(config)
    assert far["blocks.0.ffn.router"] == 0 < far["embed.weight"]


def test_the_biases_of_an_expert_are_of_its_part() -> None:
    biases = {name: part for name, part in parts(LM(BIASED)).items() if "bias" in name or ".b_" in name}
    assert {name.split(".", 2)[-1] for name, part in biases.items() if part == "attention"} == {
        f"attn.b_{letter}" for letter in "qkvo"
    }
    assert {name.split(".", 2)[-1] for name, part in biases.items() if part == "ffn"} == {
        f"ffn.b_{part}" for part in ("gate", "up", "down")
    }
    assert biases["norm.bias"] == biases["blocks.0.norm.bias"] == biases["blocks.0.ffn.shared.b_up"] == "shared"


def test_factors_of_one_leave_the_groups_as_they_were() -> None:
    assert not PHASE.has_rates_by_part
    assert len(Optimizer(lm(), PHASE).groups) == 2
    assert PHASE.identity() == replace(PHASE, router_lr_factor=1.0).identity()
    assert "router_lr_factor" not in PHASE.identity()


@pytest.mark.parametrize(("step", "factor"), [(0, 0.0), (4, 0.0), (5, 2.0), (9, 2.0)])
def test_frozen_first_then_the_factor(step: int, factor: float) -> None:
    config = replace(PHASE, router_freeze_frac=0.5, router_lr_factor=2.0)
    assert lr_factor("router", step, config) == factor


@pytest.mark.parametrize(
    ("name", "value"), [("router_freeze_frac", 1.5), ("shared_lr_factor", -1.0), ("ffn_lr_factor", float("nan"))]
)
def test_what_cannot_be_is_named(name: str, value: float) -> None:
    assert [problem.path for problem in replace(PHASE, **{name: value}).problems()] == [name]


def sparse_lm() -> LM:
    config = replace(MODEL, qk_norm=False, attention=AttentionExperts(n_experts=2, top_k=1, kv="shared"))
    model = LM(config)
    init_weights(model, 0)
    return model.double()


def test_attention_that_starts_soft_ends_as_its_gate_says() -> None:
    config, model = replace(PHASE, attention_soft_frac=0.5), sparse_lm()
    tokens = torch.arange(8)[None]
    sparse = model(tokens).hidden_BTD
    soft = LM(replace(model.config, attention=replace(model.config.attention, top_k=2))).double()
    soft.load_state_dict(model.state_dict())
    harden_attention(model, config, 0)
    assert torch.allclose(model(tokens).hidden_BTD, soft(tokens).hidden_BTD, rtol=0, atol=1e-12)
    harden_attention(model, config, 2)
    assert [block.attn.softness for block in model.blocks] == pytest.approx([0.6, 0.6])
    harden_attention(model, config, 5)
    assert torch.equal(model(tokens).hidden_BTD, sparse)
