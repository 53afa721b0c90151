"""Gates by hand-made numbers and written-out formulas: probabilities 1/2, 1/4, 1/8, 1/8 are exact in binary."""

from __future__ import annotations

from math import exp, pi

import pytest
import torch
from torch import Tensor

from bam_core.config import GATES as GATE_NAMES
from bam_core.config import AttentionExperts, FFNExperts
from bam_core.nn.routing import (
    GATES,
    Noise,
    Routing,
    dense_gate,
    expert_counts,
    route,
    router_logits,
    sampled_top1,
    straight_through,
)

PROBS_E = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
LOGITS_NE = torch.stack((PROBS_E, PROBS_E.flip(0))).log() + 3.0
"""Two tokens; the constant changes no probability."""

GATE_AND_K = [(gate, k) for gate in GATE_NAMES for k in (1, 2, 4) if (gate, k) != ("sample_top1", 2)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def softmax(values: list[float]) -> list[float]:
    return [exp(value) / sum(exp(other) for other in values) for value in values]


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
        ("softmax_topk_ste", 1, [1.0]),
        ("softmax_topk_ste", 2, [2 / 3, 1 / 3]),
        ("sample_top1", 1, [1.0]),
    ],
)
def test_weights_and_choices(gate: str, top_k: int, weights: list[float]) -> None:
    routing = GATES[gate](LOGITS_NE, top_k)
    close(routing.weights_NK, [weights, weights])
    assert routing.experts_NK.tolist() == [[1, 3][:top_k], [2, 0][:top_k]]
    close(routing.probs_NE, [PROBS_E.tolist(), PROBS_E.flip(0).tolist()])
    assert torch.equal(routing.logits_NE, LOGITS_NE)


def written_out(gate: str, logits: list[float], top_k: int) -> list[float]:
    """The gate of one token, expert by expert."""
    probs = softmax(logits)
    chosen = sorted(range(len(logits)), key=lambda e: -logits[e])[:top_k]
    if top_k == len(logits):
        return probs
    among_chosen = dict(zip(chosen, softmax([logits[e] for e in chosen]), strict=True))
    weight = {
        "softmax_topk": lambda e: probs[e],
        "topk_softmax": lambda e: among_chosen[e],
        "softmax_topk_renorm": lambda e: probs[e] / sum(probs[i] for i in chosen),
        "softmax_topk_ste": lambda e: probs[e] / sum(probs[i] for i in chosen),
        "sample_top1": lambda e: 1.0,
    }[gate]
    return [weight(e) if e in chosen else 0.0 for e in range(len(logits))]


@pytest.mark.parametrize(("gate", "top_k"), GATE_AND_K)
def test_each_gate_is_its_formula(gate: str, top_k: int) -> None:
    logits_NE = 2 * randn(20, 4)
    routing = route(logits_NE, FFNExperts(4, top_k, gate))
    close(dense_gate(routing), [written_out(gate, token, top_k) for token in logits_NE.tolist()])
    close(routing.probs_NE, [softmax(token) for token in logits_NE.tolist()])


def test_dense_gate_is_zero_where_an_expert_was_not_chosen() -> None:
    gate_NE = dense_gate(GATES["softmax_topk"](LOGITS_NE, 2))
    close(gate_NE, [[0, 0.5, 0, 0.25], [0.25, 0, 0.5, 0]])


@pytest.mark.parametrize("gate", GATE_NAMES)
def test_soft_routing_is_the_probabilities_in_stacking_order_bit_for_bit(gate: str) -> None:
    routing = GATES[gate](LOGITS_NE, 4)
    assert torch.equal(routing.weights_NK, LOGITS_NE.softmax(-1))
    assert torch.equal(dense_gate(routing), LOGITS_NE.softmax(-1))
    assert routing.experts_NK.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(("gate", "top_k"), GATE_AND_K)
def test_leading_dimensions_are_kept(gate: str, top_k: int) -> None:
    logits_BTE = randn(3, 5, 4).float()
    by_row, flat = GATES[gate](logits_BTE, top_k), GATES[gate](logits_BTE.flatten(0, 1), top_k)
    assert by_row.weights_NK.shape == (3, 5, top_k)
    assert torch.equal(by_row.weights_NK.flatten(0, 1), flat.weights_NK)
    assert torch.equal(by_row.experts_NK.flatten(0, 1), flat.experts_NK)
    assert torch.equal(dense_gate(by_row).flatten(0, 1), dense_gate(flat))


@pytest.mark.parametrize(
    ("gate", "learns"),
    [
        ("softmax_topk", True),
        ("topk_softmax", False),
        ("softmax_topk_renorm", False),
        ("softmax_topk_ste", True),
        ("sample_top1", False),  # as in inference: it learns by its noise
    ],
)
def test_a_top_1_router_learns_only_from_weights_that_are_not_renormalised(gate: str, learns: bool) -> None:
    logits_NE = LOGITS_NE.clone().requires_grad_()
    weights_NK = GATES[gate](logits_NE, 1).weights_NK
    # Something that depends on the logits though its gradient is 0, for the gates that learn nothing.
    grad_NE = torch.autograd.grad(weights_NK.sum() + 0 * logits_NE.sum(), logits_NE)[0]
    assert (grad_NE.abs().max().item() > 0.1) is learns


@pytest.mark.parametrize("top_k", [1, 2])
def test_ste_has_the_value_of_the_renormalised_gate_and_the_gradient_of_the_papers(top_k: int) -> None:
    logits_NE, direction_NK = randn(20, 4).requires_grad_(), randn(20, top_k, seed=1)
    ste, renorm, paper = (
        GATES[gate](logits_NE, top_k) for gate in ("softmax_topk_ste", "softmax_topk_renorm", "softmax_topk")
    )
    assert torch.equal(ste.weights_NK, renorm.weights_NK)
    actual, expected = (torch.autograd.grad(r.weights_NK, logits_NE, direction_NK)[0] for r in (ste, paper))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert actual.abs().max() > 0.01


@pytest.mark.parametrize(("gate", "top_k"), GATE_AND_K)
def test_straight_through_has_the_sparse_value_and_the_gradient_of_the_soft_mixture(gate: str, top_k: int) -> None:
    """Against autograd of sum_e p_e o_e; and each expert's output gets the gradient of the sparse mixture."""
    logits_NE, outputs_NED = randn(20, 4).requires_grad_(), randn(20, 4, 3, seed=1).requires_grad_()
    direction_ND = randn(20, 3, seed=2)
    routing = route(logits_NE, AttentionExperts(4, top_k, gate=gate))
    gate_NE = straight_through(routing)
    assert torch.equal(gate_NE, dense_gate(routing))

    def mix(gate_NE: Tensor) -> Tensor:
        return (gate_NE.unsqueeze(-1) * outputs_NED).sum(1)

    to_logits, to_outputs = torch.autograd.grad(mix(gate_NE), (logits_NE, outputs_NED), direction_ND)
    (soft,) = torch.autograd.grad(mix(logits_NE.softmax(-1)), logits_NE, direction_ND)
    (sparse,) = torch.autograd.grad(mix(dense_gate(routing).detach()), outputs_NED, direction_ND)
    torch.testing.assert_close(to_logits, soft, rtol=1e-12, atol=1e-14)
    assert torch.equal(to_outputs, sparse)
    assert not to_outputs[gate_NE == 0].any()


@pytest.mark.parametrize(("gate", "top_k"), GATE_AND_K)
def test_a_balance_bias_moves_the_choice_and_not_the_weights(gate: str, top_k: int) -> None:
    """Expert 0, the least likely, is pushed in front: it gets the weight that its own logit deserves."""
    logits_NE = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    balance_E = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    routing = route(logits_NE, FFNExperts(4, top_k, gate), balance_E=balance_E)
    chosen = [[0], [0, 3], None, [0, 1, 2, 3]][top_k - 1]
    assert routing.experts_NK.tolist() == [chosen]
    p = softmax([0.0, 1.0, 2.0, 3.0])
    total = sum(p[e] for e in chosen)
    plain = gate == "softmax_topk" or top_k == 4
    expected = [1.0] if gate == "sample_top1" and top_k == 1 else [p[e] / (1 if plain else total) for e in chosen]
    close(routing.weights_NK, [expected])
    close(routing.probs_NE, [p])
    assert torch.equal(routing.logits_NE, logits_NE)


def test_a_balance_bias_that_changes_no_choice_changes_no_gradient() -> None:
    logits_NE = LOGITS_NE.clone().requires_grad_()
    experts, balance_E = FFNExperts(4, 2), torch.full((4,), 0.25, dtype=torch.float64)
    grads = []
    for routing in (route(logits_NE, experts), route(logits_NE, experts, balance_E=balance_E)):
        close(routing.weights_NK, [[0.5, 0.25]] * 2)
        grads.append(torch.autograd.grad(routing.weights_NK.square().sum(), logits_NE)[0])
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0.01


def test_a_router_bias_is_part_of_the_logits() -> None:
    bias_E = torch.tensor([-30.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    biased = route(LOGITS_NE, AttentionExperts(4, 2), bias_E=bias_E)
    plain = route(LOGITS_NE + bias_E, AttentionExperts(4, 2))
    for name in ("weights_NK", "experts_NK", "probs_NE", "logits_NE"):
        assert torch.equal(getattr(biased, name), getattr(plain, name)), name
    assert (biased.probs_NE[:, 0] < 1e-12).all()


def test_sampling_is_a_softmax_of_noisy_logits_over_the_temperature() -> None:
    logits_NE, noise_NE = randn(20, 4).requires_grad_(), 2 * randn(20, 4, seed=1)
    routing = route(logits_NE, FFNExperts(4, 1, "sample_top1"), noise_NE=noise_NE, temperature=0.7)
    noisy = (logits_NE.detach() + noise_NE).tolist()
    y = [softmax([value / 0.7 for value in token]) for token in noisy]
    close(routing.weights_NK, [[max(token)] for token in y])
    assert routing.experts_NK.flatten().tolist() == [token.index(max(token)) for token in y]
    assert routing.experts_NK.flatten().tolist() != logits_NE.argmax(-1).tolist()
    close(routing.probs_NE, [softmax(token) for token in logits_NE.tolist()])  # of the logits alone, for the losses
    (grad_NE,) = torch.autograd.grad(routing.weights_NK.sum(), logits_NE)
    chosen_NE = torch.zeros(20, 4, dtype=torch.float64).scatter(1, routing.experts_NK, 1.0)
    y_NE = torch.tensor(y, dtype=torch.float64)
    expected_NE = y_NE.amax(-1, keepdim=True) * (chosen_NE - y_NE) / 0.7
    torch.testing.assert_close(grad_NE, expected_NE, rtol=1e-12, atol=1e-14)


def test_a_low_temperature_sharpens_the_weight_and_keeps_the_draw() -> None:
    logits_NE, noise_NE = randn(50, 4), randn(50, 4, seed=1)
    warm, cold = (sampled_top1(logits_NE, noise_NE, temperature) for temperature in (1.0, 0.5))
    assert torch.equal(warm.experts_NK, cold.experts_NK)
    assert (cold.weights_NK > warm.weights_NK).all()


def draw(noise: Noise, layer: int = 0, n_time: int = 6) -> Tensor:
    return noise.gumbel(layer, n_time, 4, torch.device("cpu"))


def test_noise_of_a_row_depends_on_its_seed_and_the_layer_alone() -> None:
    whole = Noise((5, 6, 7), temperature=0.5)
    assert torch.equal(draw(whole), draw(whole))
    assert torch.equal(draw(whole.rows(1, 3)), draw(whole)[1:3])
    assert torch.equal(torch.cat([draw(Noise((seed,), 0.5)) for seed in (7, 5, 6)]), draw(whole)[[2, 0, 1]])
    assert whole.rows(0, 2).temperature == 0.5
    for other in (draw(whole, layer=1), draw(Noise((8, 9, 10), 0.5))):
        assert not (other == draw(whole)).any()


def test_noise_is_standard_gumbel() -> None:
    """Mean 0.5772 (Euler) and variance pi^2/6, within 5 standard errors; and it makes draws follow probabilities."""
    n = 40_000
    noise_NE = draw(Noise((1,), 1.0), n_time=n)[0]
    assert noise_NE.dtype == torch.float32
    assert noise_NE.mean().item() == pytest.approx(0.5772, abs=5 * (pi**2 / 6 / (4 * n)) ** 0.5)
    assert noise_NE.var().item() == pytest.approx(pi**2 / 6, rel=0.03)  # the variance's own spread is 0.5%
    routing: Routing = sampled_top1(LOGITS_NE[:1].expand(n, 4), noise_NE, 0.5)
    drawn_E = expert_counts(routing).double() / n
    torch.testing.assert_close(drawn_E, PROBS_E, rtol=0, atol=5 * 0.5 / n**0.5)


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
    x_ND, router_ED = randn(5, 16).to(x), randn(4, 16, seed=1).to(router)
    actual = router_logits(x_ND, router_ED)
    assert actual.dtype == logits
    torch.testing.assert_close(actual.double(), x_ND.double() @ router_ED.double().T, rtol=1e-5, atol=1e-5)
