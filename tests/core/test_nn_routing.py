"""Gates by hand-made numbers: probabilities 1/2, 1/4, 1/8, 1/8 are exact in binary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bam_core.config import GATES as GATE_NAMES
from bam_core.nn.routing import GATES, dense_gate, expert_counts, router_logits

PROBS_E = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
LOGITS_NE = torch.stack((PROBS_E, PROBS_E.flip(0))).log() + 3.0
"""Two tokens; the constant changes no probability."""


def close(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_table_has_the_gates_that_a_config_may_name() -> None:
    assert tuple(GATES) == GATE_NAMES


@pytest.mark.parametrize(
    ("gate", "top_k", "weights"),
    [
        ("softmax_topk", 1, [0.5]),
        ("softmax_topk", 2, [0.5, 0.25]),
        ("topk_softmax", 1, [1.0]),
        ("topk_softmax", 2, [2 / 3, 1 / 3]),
        ("softmax_topk_renorm", 1, [1.0]),
        ("softmax_topk_renorm", 2, [2 / 3, 1 / 3]),
    ],
)
def test_weights_and_choices(gate: str, top_k: int, weights: list[float]) -> None:
    routing = GATES[gate](LOGITS_NE, top_k)
    close(routing.weights_NK, [weights, weights])
    assert routing.experts_NK.tolist() == [[1, 3][:top_k], [2, 0][:top_k]]
    close(routing.probs_NE, [PROBS_E.tolist(), PROBS_E.flip(0).tolist()])
    assert torch.equal(routing.logits_NE, LOGITS_NE)


def test_dense_gate_is_zero_where_an_expert_was_not_chosen() -> None:
    gate_NE = dense_gate(GATES["softmax_topk"](LOGITS_NE, 2))
    close(gate_NE, [[0, 0.5, 0, 0.25], [0.25, 0, 0.5, 0]])


@pytest.mark.parametrize("gate", GATE_NAMES)
def test_soft_routing_is_the_probabilities_in_stacking_order_bit_for_bit(gate: str) -> None:
    routing = GATES[gate](LOGITS_NE, 4)
    assert torch.equal(routing.weights_NK, LOGITS_NE.softmax(-1))
    assert torch.equal(dense_gate(routing), LOGITS_NE.softmax(-1))
    assert routing.experts_NK.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("gate", GATE_NAMES)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_leading_dimensions_are_kept(gate: str, top_k: int) -> None:
    logits_BTE = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    by_row, flat = GATES[gate](logits_BTE, top_k), GATES[gate](logits_BTE.flatten(0, 1), top_k)
    assert by_row.weights_NK.shape == (3, 5, top_k)
    assert torch.equal(by_row.weights_NK.flatten(0, 1), flat.weights_NK)
    assert torch.equal(by_row.experts_NK.flatten(0, 1), flat.experts_NK)
    assert torch.equal(dense_gate(by_row).flatten(0, 1), dense_gate(flat))


@pytest.mark.parametrize(
    ("gate", "learns"), [("softmax_topk", True), ("topk_softmax", False), ("softmax_topk_renorm", False)]
)
def test_a_top_1_router_learns_only_from_weights_that_are_not_renormalised(gate: str, learns: bool) -> None:
    logits_NE = LOGITS_NE.clone().requires_grad_()
    GATES[gate](logits_NE, 1).weights_NK.sum().backward()
    assert (logits_NE.grad.abs().max().item() > 0.1) is learns


def test_counts_are_of_choices() -> None:
    assert expert_counts(GATES["softmax_topk"](LOGITS_NE, 1)).tolist() == [0, 1, 1, 0]
    assert expert_counts(GATES["softmax_topk"](LOGITS_NE, 2)).tolist() == [1, 1, 1, 1]
    assert expert_counts(GATES["softmax_topk"](LOGITS_NE, 4)).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("x", "router", "logits"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_router_logits_are_float32_or_wider(x: torch.dtype, router: torch.dtype, logits: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(5, 16, generator=generator).to(x)
    router_ED = torch.randn(4, 16, generator=generator).to(router)
    actual = router_logits(x_ND, router_ED)
    assert actual.dtype == logits
    torch.testing.assert_close(actual.double(), x_ND.double() @ router_ED.double().T, rtol=1e-5, atol=1e-5)
