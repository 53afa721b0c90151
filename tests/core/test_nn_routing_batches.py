"""Routing of batches: any leading dimensions, the device of the logits, noise to the last bit; entropies by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from bam_core.config import FFNExperts
from bam_core.errors import BamError
from bam_core.nn.routing import (
    GATES,
    Noise,
    Routing,
    expert_counts,
    mean_entropy,
    normalised_entropy,
    route,
    router_reads,
    sampled_top1,
)
from bam_core.seeds import child_seed

FIELDS = ("weights_NK", "experts_NK", "probs_NE", "logits_NE")
META = torch.device("meta")
"""A device that is not the CPU and that every machine has; its tensors have no values."""
PLUGGED_IN = "acme.no_such_gate"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def require_same(by_row: Routing, flat: Routing) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(by_row, name).flatten(0, 1), getattr(flat, name)), name


def test_a_router_reads_each_token_beside_the_text_so_far() -> None:
    x_BTD, text_BTD = randn(2, 3, 4), randn(2, 3, 5, seed=1).float()
    read = router_reads(x_BTD, text_BTD)
    assert read.dtype == text_BTD.dtype
    assert torch.equal(read[..., :4], x_BTD.float())
    assert torch.equal(read[..., 4:], text_BTD)
    assert router_reads(x_BTD, None) is x_BTD


def test_sampling_keeps_leading_dimensions() -> None:
    logits_BTE, noise_BTE = randn(3, 5, 4), randn(3, 5, 4, seed=1)
    by_row = sampled_top1(logits_BTE, noise_BTE, 0.7)
    require_same(by_row, sampled_top1(logits_BTE.flatten(0, 1), noise_BTE.flatten(0, 1), 0.7))
    assert by_row.logits_NE is logits_BTE


@pytest.mark.parametrize("gate", GATES)
def test_a_balance_bias_keeps_leading_dimensions(gate: str) -> None:
    logits_BTE, balance_E = randn(3, 5, 4), torch.tensor([0.3, 0.0, -0.3, 0.1], dtype=torch.float64)
    by_row = GATES[gate](logits_BTE, 1, balance_E)
    require_same(by_row, GATES[gate](logits_BTE.flatten(0, 1), 1, balance_E))
    assert not torch.equal(by_row.experts_NK, GATES[gate](logits_BTE, 1).experts_NK), "or the bias would prove nothing"


def test_a_balance_bias_moves_a_draw_and_not_its_weight() -> None:
    logits_NE, noise_NE = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[log(2), log(2), log(4)]]).double()
    balance_E = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    experts = FFNExperts(3, 1, "sample_top1")
    assert route(logits_NE, experts, noise_NE=noise_NE).experts_NK.tolist() == [[2]]
    routing = route(logits_NE, experts, noise_NE=noise_NE, balance_E=balance_E)
    assert routing.experts_NK.tolist() == [[1]]
    assert routing.weights_NK.item() == pytest.approx(0.25), "2 of 2 + 2 + 4, at temperature 1"


def test_soft_routing_asks_no_plug_in() -> None:
    """Which chooses among experts; where all are taken there is nothing to choose."""
    logits_BTE = randn(2, 3, 4)
    routing = route(logits_BTE, FFNExperts(4, 4, PLUGGED_IN))
    assert torch.equal(routing.weights_NK, logits_BTE.softmax(-1))
    assert torch.equal(routing.experts_NK, torch.arange(4).expand(2, 3, 4))
    with pytest.raises(BamError, match=PLUGGED_IN):
        route(logits_BTE, FFNExperts(4, 2, PLUGGED_IN))


@pytest.mark.parametrize("top_k", [1, 4])
def test_everything_is_made_where_the_logits_are(top_k: int) -> None:
    routing = route(torch.zeros(5, 4, device=META), FFNExperts(4, top_k))
    assert {getattr(routing, name).device for name in FIELDS} == {META}
    assert expert_counts(routing).device == META
    assert Noise((1, 2), 1.0).gumbel(0, 5, 4, META).device == META


def test_noise_is_minus_log_of_minus_log_of_a_double() -> None:
    """To the bit, so that a run is repeated by its seed."""
    noise_TE = Noise((5,), 1.0).gumbel(3, 6, 4, torch.device("cpu"))[0]
    generator = torch.Generator().manual_seed(child_seed(5, "gumbel/3"))
    u_TE = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    assert torch.equal(noise_TE, (-(-u_TE.log()).log()).float())


def test_noise_is_finite_where_the_draw_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape, dtype=torch.float64))
    noise_BTE = Noise((5,), 1.0).gumbel(0, 2, 3, torch.device("cpu"))
    assert noise_BTE.tolist() == [[[pytest.approx(-log(54 * log(2)))] * 3] * 2], "of 2**-54"


def test_entropy_is_one_for_a_uniform_router_and_zero_for_a_sure_one() -> None:
    for n_experts in (2, 3, 4):
        uniform = torch.full((3, 5, n_experts), 1 / n_experts, dtype=torch.float64)
        torch.testing.assert_close(normalised_entropy(uniform), torch.ones(3, 5, dtype=torch.float64))
    sure = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert normalised_entropy(sure).tolist() == [0, 0]
    assert normalised_entropy(torch.tensor([[0.5, 0.25, 0.125, 0.125]])).tolist() == [pytest.approx(1.75 / 2)]
    assert normalised_entropy(torch.ones(2, 1)).tolist() == [0, 0], "one expert: nothing to be unsure of"


def test_mean_entropy_is_of_all_layers_and_has_no_gradient() -> None:
    sure, even = torch.tensor([[90.0, 0.0], [0.0, 90.0]]), torch.zeros(2, 2)
    layers = [route(logits.requires_grad_(), FFNExperts(2, 2)) for logits in (sure, even, even, even)]
    found = mean_entropy(layers)
    assert found.item() == pytest.approx(0.75)
    assert not found.requires_grad
