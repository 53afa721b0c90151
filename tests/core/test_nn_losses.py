"""Losses against torch's own in float64, and in the cases where the value is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from bam_core.nn import losses
from bam_core.nn.losses import (
    assignments,
    linear_next_token_loss,
    load_balancing_loss,
    next_token_loss,
    router_z_loss,
)
from bam_core.nn.routing import GATES, Routing

Loss = Callable[..., Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def route(logits_NE: Tensor, top_k: int = 1) -> Routing:
    return GATES["softmax_topk"](logits_NE, top_k)


@pytest.mark.parametrize("vocab", [7, 100_000])  # one chunk; three chunks
def test_next_token_loss_sums_over_targets_that_count(vocab: int) -> None:
    logits_BTV = (3 * randn(2, 3, vocab)).requires_grad_()
    targets_BT = torch.tensor([[0, -1, 6], [vocab - 1, 2, -1]])
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-1, reduction="sum")
    actual = next_token_loss(logits_BTV, targets_BT)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for scale in (1.0, 1 / 7):  # a trainer divides the sum by a count
        ours, theirs = (torch.autograd.grad(x * scale, logits_BTV, retain_graph=True)[0] for x in (actual, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert not ours[0, 1].any()


def test_next_token_loss_of_bf16_logits_is_a_float32_sum() -> None:
    logits_BTV = (3 * randn(4, 8, 50)).bfloat16().requires_grad_()
    targets_BT = torch.arange(32).view(4, 8)
    exact = logits_BTV.detach().double().requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), targets_BT.flatten(), reduction="sum")
    actual = next_token_loss(logits_BTV, targets_BT)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    (grad,), (exact_grad,) = torch.autograd.grad(actual, logits_BTV), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=2**-8, atol=1e-6)  # bf16 rounds to 2^-9


def test_a_hopeless_prediction_costs_its_margin_not_infinity() -> None:
    logits_TV = torch.tensor([[0.0, 500.0]])
    assert next_token_loss(logits_TV, torch.tensor([0])).item() == 500.0


@pytest.mark.parametrize("form", [losses._in_chunks, losses._at_once])
def test_tokens_of_another_scale_leave_a_token_alone(form: Loss) -> None:
    """Each row is scaled by its own largest logit: by another's, its probabilities would all be 0."""
    logits_NV = torch.tensor([[0.0, 1.0], [1000.0, 1001.0]], dtype=torch.float64)
    expected = 2 * log(1 + exp(-1))
    assert form(logits_NV, torch.tensor([1, 1]), None).item() == pytest.approx(expected, rel=1e-12)


def test_next_token_loss_without_gradients_and_with_nothing_to_count() -> None:
    with torch.no_grad():
        assert next_token_loss(torch.zeros(2, 8), torch.tensor([3, -1])).item() == pytest.approx(log(8))
    logits_TV = torch.zeros(2, 8, requires_grad=True)
    loss = next_token_loss(logits_TV, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert not logits_TV.grad.any()


@pytest.mark.parametrize("values", [2**31, 40, 1], ids=["one product", "uneven parts", "a token each"])
def test_the_loss_of_a_head_whose_logits_are_not_kept(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    monkeypatch.setattr(losses, "VALUES_PER_PRODUCT", values)
    hidden_BTD, weight_VD = randn(2, 5, 4).requires_grad_(), randn(9, 4, seed=1).requires_grad_()
    targets_BT = torch.tensor([[0, -1, 6, 8, 2], [1, 2, -1, 3, 3]])
    logits_NV = F.linear(hidden_BTD, weight_VD).flatten(0, 1)
    expected = F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=-1, reduction="sum") / 7
    actual = linear_next_token_loss(hidden_BTD, weight_VD, targets_BT) / 7
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(loss, (hidden_BTD, weight_VD)) for loss in (actual, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_parts_of_a_bf16_head_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 parts: a sum in bf16 stands still at 128, where a half is too small to change it."""
    hidden_ND, weight_VD = torch.full((1024, 8), 1.0).bfloat16(), torch.zeros(2, 8).bfloat16().requires_grad_()
    monkeypatch.setattr(losses, "VALUES_PER_PRODUCT", 2)
    loss = linear_next_token_loss(hidden_ND, weight_VD, torch.zeros(1024, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1024 * log(2), rel=1e-4)
    (grad,) = torch.autograd.grad(loss / 1024, weight_VD)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad, torch.tensor([[-0.5], [0.5]]).bfloat16().expand(2, 8), rtol=0, atol=0)


def test_no_part_has_more_logits_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def measured(logits_NV: Tensor, *others: Any) -> Tensor:
        sizes.append(logits_NV.numel())
        return losses._in_chunks(logits_NV, *others)

    monkeypatch.setattr(losses, "VALUES_PER_PRODUCT", 40)
    monkeypatch.setattr(losses, "_loss_and_gradient", measured)
    linear_next_token_loss(randn(2, 5, 4), randn(9, 4, seed=1), torch.zeros(2, 5, dtype=torch.int64))
    assert sizes == [36, 27, 27]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_form_for_a_compiler_agrees_with_the_one_in_chunks(dtype: torch.dtype) -> None:
    logits_NV = (3 * randn(600, 1001)).to(dtype)  # three chunks
    targets_N = torch.arange(600) - 1
    grads = [torch.empty_like(logits_NV), logits_NV.clone()]
    in_chunks = losses._in_chunks(logits_NV, targets_N, grads[0])
    at_once = losses._at_once(grads[1], targets_N, grads[1])
    wide = dtype == torch.float64
    torch.testing.assert_close(at_once, in_chunks, rtol=1e-12 if wide else 1e-5, atol=0)
    torch.testing.assert_close(*grads, rtol=1e-12 if wide else 2**-7, atol=1e-15 if wide else 1e-9)
    assert losses._at_once(logits_NV, targets_N, None) == at_once


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balanced_routing_costs_1_for_every_top_k(top_k: int) -> None:
    logits_NE = torch.stack([torch.eye(4, dtype=torch.float64).roll(i, 1) for i in range(4)]).flatten(0, 1)
    logits_NE = logits_NE + 0.5 * logits_NE.roll(1, 1)
    assert load_balancing_loss([route(logits_NE, top_k)]).item() == pytest.approx(1.0, abs=1e-12)


def test_a_single_token_is_no_division_by_another_number() -> None:
    logits_NE = randn(3, 4).float()
    alone = load_balancing_loss([route(logits_NE[:1])])
    assert alone.dtype == torch.float32
    assert alone.item() == pytest.approx(4 * logits_NE[0].softmax(0).max().item(), rel=1e-6)
    first = torch.tensor([True, False, False])
    assert load_balancing_loss([route(logits_NE)], mask_N=first).item() == pytest.approx(alone.item(), rel=1e-6)


def test_collapsed_routing_costs_the_number_of_experts() -> None:
    logits_NE = torch.zeros(10, 4).index_fill_(1, torch.tensor([2]), 100.0)
    assert load_balancing_loss([route(logits_NE)]).item() == pytest.approx(4.0)


@pytest.mark.parametrize("top_k", [1, 2])
def test_load_balancing_is_transformers_over_k_then_the_mean_over_layers(top_k: int) -> None:
    layers = [randn(50, 4, seed=seed).float() for seed in range(3)]
    one_by_one = [load_balancing_loss_func((logits,), 4, top_k).item() / top_k for logits in layers]
    for logits, expected in zip(layers, one_by_one, strict=True):
        assert load_balancing_loss([route(logits, top_k)]).item() == pytest.approx(expected, rel=1e-6)
    mean = load_balancing_loss([route(logits, top_k) for logits in layers]).item()
    assert mean == pytest.approx(sum(one_by_one) / 3, rel=1e-6)


def test_load_balancing_is_the_huggingface_formula_over_k() -> None:
    """Written out: HF has E * sum_i (n_i / T) P_i, balanced at k; ours divides n by k too, balanced at 1."""
    n_experts, top_k, n_tokens = 4, 2, 50
    logits = randn(n_tokens, n_experts)
    probs = [[exp(x) / sum(exp(y) for y in token) for x in token] for token in logits.tolist()]
    n, mean_p = [0] * n_experts, [sum(column) / n_tokens for column in zip(*probs, strict=True)]
    for token in probs:
        for expert in sorted(range(n_experts), key=lambda e: -token[e])[:top_k]:
            n[expert] += 1
    huggingface = n_experts * sum(n_i / n_tokens * p_i for n_i, p_i in zip(n, mean_p, strict=True))
    assert load_balancing_loss([route(logits, top_k)]).item() == pytest.approx(huggingface / top_k, rel=1e-12)
    assert load_balancing_loss([route(logits, top_k)]).item() != pytest.approx(1, abs=1e-3)  # else this says little
    theirs = load_balancing_loss_func((logits,), n_experts, top_k).item()
    assert theirs == pytest.approx(huggingface, rel=1e-6)  # theirs rounds to float32


def test_a_double_softmax_would_hide_the_scale_of_the_logits() -> None:
    """Probabilities fed as logits would all be near uniform: ten times the logits must make another loss."""
    logits_NE = randn(50, 4) + torch.tensor([1.0, 0, 0, 0])
    for loss in (load_balancing_loss, router_z_loss):
        once, scaled = loss([route(logits_NE)]).item(), loss([route(10 * logits_NE)]).item()
        assert scaled > 1.05 * once, loss.__name__
        double = loss([route(logits_NE.softmax(-1))]).item()
        assert abs(double - once) > 0.05, loss.__name__


@pytest.mark.parametrize("loss", [load_balancing_loss, router_z_loss])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_masked_loss_and_its_gradient_are_those_of_the_kept_tokens(loss: Loss, top_k: int) -> None:
    layers = [randn(5, 8, 4, seed=seed) for seed in range(2)]
    mask_BT = torch.rand(5, 8, generator=torch.Generator().manual_seed(9)) < 0.6
    for logits in layers:
        logits[~mask_BT] = float("nan")  # what padding holds must not matter
        logits.requires_grad_()
    masked = loss([route(logits, top_k) for logits in layers], mask_N=mask_BT)
    kept = loss([route(logits[mask_BT], top_k) for logits in layers])
    torch.testing.assert_close(masked, kept, rtol=1e-12, atol=0)
    for logits in layers:
        ours, theirs = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (masked, kept))
        torch.testing.assert_close(ours[mask_BT], theirs[mask_BT], rtol=1e-12, atol=1e-15)
    everything = torch.ones_like(mask_BT)
    whole = [route(logits.detach().nan_to_num(), top_k) for logits in layers]
    assert loss(whole, mask_N=everything).item() == pytest.approx(loss(whole).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [load_balancing_loss, router_z_loss])
def test_a_loss_over_no_tokens_is_0(loss: Loss) -> None:
    logits = randn(3, 4).requires_grad_()
    nothing = loss([route(logits)], mask_N=torch.zeros(3, dtype=torch.bool))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_masked_assignments_count_the_kept_tokens() -> None:
    logits = 5 * torch.eye(4, dtype=torch.float64)[[0, 0, 1, 3, 3, 3]]
    mask = torch.tensor([1, 0, 1, 1, 1, 0])
    assert assignments([route(logits)], mask).tolist() == [[1, 1, 0, 2]]
    assert assignments([route(logits)]).tolist() == [[2, 1, 0, 3]]


def test_a_soft_layer_among_sparse_ones_is_balanced() -> None:
    """Its own f is over its own number of choices: every expert gets every token, so it costs 1."""
    sparse, soft = randn(50, 4), 3 * randn(50, 4, seed=1)
    assert load_balancing_loss([route(soft, 4)]).item() == pytest.approx(1, rel=1e-12)
    expected = (1 + load_balancing_loss([route(sparse)]).item()) / 2
    assert load_balancing_loss([route(sparse), route(soft, 4)]).item() == pytest.approx(expected, rel=1e-12)
    assert load_balancing_loss([route(soft, 4), route(sparse)]).item() == pytest.approx(expected, rel=1e-12)


def test_load_balancing_pushes_the_crowded_expert_down_and_takes_logits_not_probabilities() -> None:
    logits_NE = (randn(50, 4) + torch.tensor([2.0, 0, 0, 0])).requires_grad_()
    loss = load_balancing_loss([route(logits_NE)])
    (grad_NE,) = torch.autograd.grad(loss, logits_NE)
    assert grad_NE[:, 0].sum() > 0  # descent lowers it
    assert grad_NE[:, 1:].sum() < 0
    assert load_balancing_loss([route(10 * logits_NE)]).item() > 1.05 * loss.item()


def test_z_loss_is_the_mean_square_of_logsumexp() -> None:
    two_tokens = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    first = (log(4) ** 2 + (3 + log(4)) ** 2) / 2
    assert router_z_loss([route(two_tokens)]).item() == pytest.approx(first, rel=1e-6)
    second = (1 + log(4)) ** 2
    layers = [route(two_tokens), route(torch.ones(5, 4))]
    assert router_z_loss(layers).item() == pytest.approx((first + second) / 2, rel=1e-6)
