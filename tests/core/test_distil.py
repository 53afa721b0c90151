"""Distillation from soft to sparser attention: what the student starts as, what it learns from, and that it resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bam_core.checkpoint import write_model
from bam_core.config import AttentionExperts, Distillation, FFNExperts, ModelConfig, Sparser
from bam_core.errors import InvalidInput
from bam_core.nn.costs import cache_bytes_per_token
from bam_core.nn.lm import LM
from bam_core.nn.losses import IGNORED, load_balancing_loss, router_z_loss
from bam_core.train.distil import Teacher, divergence, gate_divergence
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from bam_core.upcycle.sparser import load_sparser
from tests.core.training_runs import DENSE, MIXTURE, PHASE, RandomRows, Worker, fresh, masters

EXACT = replace(PHASE, dtype="fp64", load_balancing_coef=0.7, z_loss_coef=0.3)
TOP_1 = Sparser(top_k=1)


def lively(config: ModelConfig, seed: int = 0) -> LM:
    """In float64, with routers that prefer some experts."""
    model = fresh(config, seed).cast(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def sparser_of(folder: Path, model: LM, sparser: Sparser) -> LM:
    """The model as a folder on the disk, and what is made of that."""
    write_model(folder, model.config, model.state_dict().items(), tokenizer=None, card=None)
    return load_sparser(folder, sparser)


def logits_of(model: LM, tokens_BT: Tensor) -> Tensor:
    output = model.eval()(tokens_BT)
    return model.logits(output.hidden_BTD, output.mix_BTE)


TOKENS = torch.from_numpy(RandomRows().batch(0, 6))


# The divergence


def naive_divergence(student_NV: Tensor, teacher_NV: Tensor, counts_N: Tensor, temperature: float) -> Tensor:
    p_NV, q_NV = (teacher_NV / temperature).softmax(-1), (student_NV / temperature).softmax(-1)
    return temperature**2 * ((p_NV * (p_NV.log() - q_NV.log())).sum(-1) * counts_N).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(3, 5, 11), (1, 7, 100_000)], ids=["one piece", "several pieces"])
def test_value_and_gradient_are_those_of_the_plain_form(shape: tuple[int, ...], temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    counts_BT = torch.rand(shape[:-1], generator=generator) < 0.7
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = divergence(one, teacher, counts_BT, temperature)
    expected = naive_divergence(other.flatten(0, 1), teacher.flatten(0, 1), counts_BT.flatten(), temperature)
    (2.5 * found).backward()
    (2.5 * expected).backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), temperature=st.floats(0.1, 10), shift=st.floats(-50, 50), scale=st.floats(0, 20))
def test_it_is_0_for_equals_above_0_for_others_and_ignores_a_shift(
    seed: int, temperature: float, shift: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(4, 7, generator=generator, dtype=torch.float64)
    student, counts = teacher.clone().requires_grad_(), torch.ones(4, dtype=torch.bool)
    same = divergence(student + shift, teacher, counts, temperature)
    same.backward()
    assert abs(float(same.detach())) < 1e-9
    assert float(student.grad.abs().max()) < 1e-9
    other = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    assert float(divergence(other, teacher, counts, temperature)) >= -1e-12


def test_rounded_logits_keep_a_gradient_of_their_own_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 300, generator=generator).bfloat16() for _ in range(2))
    student.requires_grad_()
    counts = torch.ones(5, dtype=torch.bool)
    found = divergence(student, teacher, counts, 2.0)
    found.backward()
    exact = naive_divergence(student.detach().double(), teacher.double(), counts, 2.0)
    assert (found.dtype, student.grad.dtype) == (torch.float32, torch.bfloat16)
    assert float(found.detach()) == pytest.approx(float(exact), rel=1e-4)


# The loss of a batch


def plain_loss(student: LM, teacher: LM, rows: np.ndarray, spec: Distillation) -> Tensor:
    """The objective on the whole batch at once, in words of the formula."""
    tokens = torch.from_numpy(rows)
    output, said = student(tokens[:, :-1]), teacher(tokens[:, :-1])
    logits_NV = student.logits(output.hidden_BTD).flatten(0, 1)
    teacher_NV = teacher.logits(said.hidden_BTD).flatten(0, 1).detach()
    nll = torch.nn.functional.cross_entropy(logits_NV, tokens[:, 1:].flatten())
    kl = naive_divergence(logits_NV, teacher_NV, torch.ones(len(logits_NV)), spec.temperature) / len(logits_NV)
    gates = []
    for mine, its in zip(output.routing, said.routing, strict=True):
        g_NE, h_NE = its.attention.probs_NE.detach(), mine.attention.probs_NE
        gates.append((g_NE * (g_NE.log() - h_NE.log())).sum(-1).mean())
    ffn = [layer.ffn for layer in output.routing]
    even = torch.full((len(ffn), 3), 1 / 3, dtype=torch.float64)
    routers = EXACT.load_balancing_coef * load_balancing_loss(ffn, even) + EXACT.z_loss_coef * router_z_loss(ffn)
    return (1 - spec.kl) * nll + spec.kl * kl + spec.gate * torch.stack(gates).mean() + routers


@pytest.mark.parametrize("micro_batch_rows", [8, 3, 1])
@pytest.mark.parametrize("target", [TOP_1, Sparser(kv="shared"), Sparser(top_k=2, kv="value_only")], ids=str)
def test_the_gradient_of_a_batch_is_that_of_the_plain_objective(
    tmp_path: Path, target: Sparser, micro_batch_rows: int
) -> None:
    spec = Distillation(kl=0.6, temperature=2.0, gate=0.3)
    teacher = lively(MIXTURE)
    student, other = (sparser_of(tmp_path / name, teacher, target).train() for name in "ab")
    rows = RandomRows().batch(1, EXACT.rows_per_batch)
    optimizer = Optimizer(student, EXACT)
    sums = accumulate_gradient(student, optimizer, rows, EXACT, micro_batch_rows, extra=Teacher(teacher, spec))
    plain_loss(other, teacher, rows, spec).backward()
    expected = {name: parameter.grad for name, parameter in other.named_parameters()}
    groups = optimizer.groups
    found = {n: g for group in groups for n, g in zip(group.names, group.grad_views, strict=True)}
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13, msg=name)
    assert set(sums.figures()) >= {"loss", "kl", "gate_kl", "router/attention_entropy"}
    assert sums.figures()["kl"] > 0.0


def test_a_target_that_counts_for_nothing_counts_for_nothing() -> None:
    """As for ranks without rows of their own, which run one that must not be heard."""
    teacher = Teacher(lively(MIXTURE, 1), Distillation(gate=1.0))
    student = lively(MIXTURE)
    output = student(TOKENS[:, :-1])
    targets = torch.full_like(TOKENS[:, 1:], IGNORED)
    loss, sums = teacher(TOKENS[:, :-1], targets, output, student.logits(output.hidden_BTD))
    assert float(loss.detach()) == 0.0
    assert sums.tolist() == [0.0, 0.0]


def test_gates_that_agree_are_at_no_distance() -> None:
    model = lively(MIXTURE)
    routing = model(TOKENS[:, :-1]).routing
    counts = torch.ones_like(TOKENS[:, 1:])
    other = lively(MIXTURE, 1)(TOKENS[:, :-1]).routing
    assert float(gate_divergence(routing, routing, counts).detach()) == 0.0
    assert float(gate_divergence(routing, other, counts).detach()) > 0.0


# A run


def distilled(folder: Path, make: Callable[[], LM], teacher: LM, **changes: object) -> tuple[dict[str, bytes], list]:
    extra = Teacher(teacher, Distillation(gate=0.1))
    die_at = changes.pop("die_at", None)
    phase = replace(PHASE, **changes)
    optimizer, progress = train(
        make(), RandomRows(), phase, Worker(folder, die_at=die_at), Pace(checkpoint_steps=4), extra=extra
    )
    return masters(optimizer), progress.history


def test_a_run_resumes_bit_for_bit_and_leaves_the_teacher_alone(tmp_path: Path) -> None:
    teacher = fresh(MIXTURE)
    before = {name: parameter.detach().clone() for name, parameter in teacher.named_parameters()}

    def make() -> LM:
        return sparser_of(tmp_path / "model", teacher, TOP_1)

    whole, history = distilled(tmp_path / "whole", make, teacher, attention_soft_frac=0.5)
    with pytest.raises(KeyboardInterrupt):
        distilled(tmp_path / "cut", make, teacher, attention_soft_frac=0.5, die_at=4)
    assert distilled(tmp_path / "cut", make, teacher, attention_soft_frac=0.5) == (whole, history)
    assert {"kl", "gate_kl", "loss"} <= history[0].keys()
    assert whole != {name: parameter.numpy().tobytes() for name, parameter in before.items()}
    assert all(torch.equal(parameter, before[name]) for name, parameter in teacher.named_parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_run_of_no_steps_is_the_start(tmp_path: Path) -> None:
    teacher = fresh(MIXTURE)
    start = sparser_of(tmp_path / "model", teacher, Sparser(kv="shared"))
    made, history = distilled(tmp_path / "run", lambda: start, teacher, tokens=0, dtype="fp32")
    start = sparser_of(tmp_path / "again", teacher, Sparser(kv="shared"))
    assert history == []
    assert made == {name: parameter.detach().numpy().tobytes() for name, parameter in start.named_parameters()}


def test_a_student_that_is_its_teacher_learns_nothing_from_it() -> None:
    teacher, student = lively(MIXTURE), lively(MIXTURE).train()
    phase = replace(EXACT, load_balancing_coef=0.0, z_loss_coef=0.0)
    optimizer = Optimizer(student, phase)
    rows = RandomRows().batch(0, phase.rows_per_batch)
    accumulate_gradient(student, optimizer, rows, phase, 8, extra=Teacher(teacher, Distillation(kl=1.0, gate=1.0)))
    assert max(float(gradient.abs().max()) for gradient in optimizer.gradients()) < 1e-15


# The student's start


@pytest.mark.parametrize("kv", ["shared", "value_only"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["plain", "qk-norm"])
def test_merging_equal_keys_and_values_changes_nothing(tmp_path: Path, kv: str, options: dict[str, bool]) -> None:
    """Experts that differ in nothing that is merged: queries too, where those become one for all."""
    teacher = lively(replace(MIXTURE, **options))
    merged = ("w_k", "w_v", "k_norm") if kv == "shared" else ("w_q", "w_k", "q_norm", "k_norm")
    for name, parameter in teacher.named_parameters():
        if name.rsplit(".", 1)[-1] in merged:
            parameter.data[:] = parameter.data.mean(0)
    student = sparser_of(tmp_path / "model", teacher, Sparser(kv=kv))
    expected = logits_of(teacher, TOKENS[:, :-1])
    torch.testing.assert_close(logits_of(student, TOKENS[:, :-1]), expected, rtol=1e-9, atol=1e-11)
    assert cache_bytes_per_token(student.config) < cache_bytes_per_token(teacher.config)


def test_what_experts_share_is_their_mean_and_all_else_is_theirs(tmp_path: Path) -> None:
    teacher = lively(MIXTURE)
    tensors = teacher.state_dict()
    student = sparser_of(tmp_path / "model", teacher, Sparser(top_k=2, kv="shared", gate="softmax_topk_renorm"))
    assert student.config.attention == AttentionExperts(3, 2, "shared", "softmax_topk_renorm")
    for name, tensor in student.state_dict().items():
        if tensor.shape == tensors[name].shape:
            assert torch.equal(tensor, tensors[name]), name
        else:
            assert name.rsplit(".", 1)[-1] in ("w_k", "w_v")
            torch.testing.assert_close(tensor, tensors[name].mean(0), rtol=1e-15, atol=0)


def test_value_only_experts_can_share_their_values_too(tmp_path: Path) -> None:
    teacher = lively(replace(MIXTURE, attention=AttentionExperts(3, 3, "value_only")))
    for name, parameter in teacher.named_parameters():
        if name.endswith("w_v"):
            parameter.data[:] = parameter.data.mean(0)
    student = sparser_of(tmp_path / "model", teacher, Sparser(kv="shared"))
    expected = logits_of(teacher, TOKENS[:, :-1])
    torch.testing.assert_close(logits_of(student, TOKENS[:, :-1]), expected, rtol=1e-9, atol=1e-11)


REFUSED = [
    (DENSE, Sparser(top_k=1), "there are no attention experts"),
    (replace(MIXTURE, attention=None), Sparser(top_k=1), "there are no attention experts"),
    (MIXTURE, Sparser(), "is soft, kv: expert, like its teacher"),
    (MIXTURE, Sparser(top_k=3), "is soft, kv: expert, like its teacher"),
    (MIXTURE, Sparser(top_k=4), "at most the number of experts, 3"),
    (MIXTURE, Sparser(top_k=0), "at least 1"),
    (MIXTURE, Sparser(kv="none"), "must be one of expert, shared, value_only"),
    (MIXTURE, Sparser(top_k=1, gate="sample_top1"), "is for FFN experts only"),
    (replace(MIXTURE, attention=AttentionExperts(3, 1, "shared")), Sparser(top_k=2), "must be at most 1"),
    (replace(MIXTURE, attention=AttentionExperts(3, 3, "shared")), Sparser(kv="expert"), "cannot be merged from"),
]


@pytest.mark.parametrize(("config", "sparser", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_what_would_cost_no_less_is_refused(config: ModelConfig, sparser: Sparser, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        sparser.config(config)


def test_a_loss_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        Distillation.from_json({"kl": 1.5, "temperature": 0.0, "gate": -1.0})
    assert [problem.path for problem in raised.value.problems] == ["kl", "temperature", "gate"]
    assert Distillation().identity() == {}
    assert Distillation.from_json({"kl": 1.0}) == Distillation(kl=1.0)


def test_ffn_experts_stay_as_they_are(tmp_path: Path) -> None:
    config = replace(MIXTURE, ffn=FFNExperts(3, 2, "topk_softmax"))
    assert TOP_1.config(config) == replace(config, attention=AttentionExperts(3, 1))
