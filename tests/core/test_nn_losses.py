"""Losses against torch's own in float64, and in the cases where the value is known beforehand."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from bam_core.nn.losses import load_balancing_loss, next_token_loss, router_z_loss
from bam_core.nn.routing import GATES, Routing


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


def test_next_token_loss_without_gradients_and_with_nothing_to_count() -> None:
    with torch.no_grad():
        assert next_token_loss(torch.zeros(2, 8), torch.tensor([3, -1])).item() == pytest.approx(log(8))
    logits_TV = torch.zeros(2, 8, requires_grad=True)
    loss = next_token_loss(logits_TV, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert not logits_TV.grad.any()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balanced_routing_costs_1_for_every_top_k(top_k: int) -> None:
    logits_NE = torch.stack([torch.eye(4, dtype=torch.float64).roll(i, 1) for i in range(4)]).flatten(0, 1)
    logits_NE = logits_NE + 0.5 * logits_NE.roll(1, 1)
    assert load_balancing_loss([route(logits_NE, top_k)]).item() == pytest.approx(1.0, abs=1e-12)


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
