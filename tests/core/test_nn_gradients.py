"""Functions that bring their own backward pass: their gradients against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from bam_core.nn import grouped, rms
from bam_core.nn.grouped import grouped_swiglu, places_of
from bam_core.nn.layers import apply_rotary, rotary_tables
from bam_core.nn.rms import rms_norm
from bam_core.nn.routing import Routing


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def routing_of(experts_NK: list[list[int]], n_experts: int) -> Routing:
    chosen_NK = torch.tensor(experts_NK)
    probs_NE = torch.full((len(chosen_NK), n_experts), 1 / n_experts)
    return Routing(torch.ones(chosen_NK.shape), chosen_NK, probs_NE, probs_NE)


def test_rotary() -> None:
    cos_TR, sin_TR = rotary_tables(5, 6, 100.0, torch.float64, torch.device("cpu"))
    assert gradcheck(lambda x: apply_rotary(x, cos_TR, sin_TR), values(2, 5, 3, 8))


@pytest.mark.parametrize("n_values", [4, 12, 100], ids=["a row a time", "an uneven end", "at once"])
def test_rms_norm(n_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms, "VALUES", n_values)
    x_BTD, weight_D = values(2, 5, 4), values(4)
    assert gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x_BTD, weight_D))
    torch.testing.assert_close(rms_norm(x_BTD, weight_D, 1e-3), F.rms_norm(x_BTD, (4,), weight_D, 1e-3))


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("experts_NK", [[[2], [0], [2], [2], [0]], [[2, 0], [0, 3], [3, 2], [2, 3]]])
def test_grouped_swiglu(experts_NK: list[list[int]], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert 1 gets no token; groups with and without pads, against each token through its experts alone."""
    monkeypatch.setattr(grouped, "BLOCK", block)
    E, D, n_hidden = 4, 3, 2
    x_ND, *w_EFD = values(len(experts_NK), D), *(values(E, n_hidden, D) for _ in range(3))
    places = places_of(routing_of(experts_NK, E))
    assert gradcheck(lambda x, *w: grouped_swiglu(x, *w, places), (x_ND, *w_EFD))
    for token, chosen in enumerate(experts_NK):
        for choice, e in enumerate(chosen):
            w_gate, w_up, w_down = (w[e] for w in w_EFD)
            alone_D = (F.silu(w_gate @ x_ND[token]) * (w_up @ x_ND[token])) @ w_down
            torch.testing.assert_close(grouped_swiglu(x_ND, *w_EFD, places)[token, choice], alone_D)


def test_groups_fill_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are few shapes; groups that would hardly fill one are left as they are."""
    monkeypatch.setattr(grouped, "BLOCK", 4)
    many = places_of(routing_of([[e] for e in [2] * 9 + [0] * 3], 3))
    assert many.ends == (4, 4, 16)
    assert sorted(many.of_NK.flatten().tolist()) == [0, 1, 2, *range(4, 13)]
    few = places_of(routing_of([[e] for e in [2, 0, 2, 2]], 3))
    assert few.ends == (1, 1, 4)
    assert few.token_P.tolist() == [1, 0, 2, 3]
