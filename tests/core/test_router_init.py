"""Routers at the start: what needs no data, and what is fitted to it, against least squares and by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import pytest
import torch
from torch import Generator, Tensor

from bam_core.upcycle.router_init import FITS, INITS, LADDER, RIDGE, centroid, condition, ridge, temperature
from bam_core.upcycle.rules import FITTED_INITS, ROUTER_INITS

EXACT = 1e-12
"""float64 arithmetic on numbers of size 1."""

SINGLE = 1e-5
"""The routers themselves are float32, from a solution of float64."""


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def clouds(n: int = 40, d: int = 12, spread: float = 1.0, n_domains: int = 3) -> list[Tensor]:
    """Vectors of each domain around a mean of its own, all far from the origin."""
    draws = generator()
    common = torch.randn(d, generator=draws)
    means = [common + torch.randn(d, generator=draws) for _ in range(n_domains)]
    return [mean + spread * torch.randn(n, d, generator=draws) for mean in means]


def test_names_are_those_that_a_plan_knows() -> None:
    assert (*INITS, *FITS) == ROUTER_INITS
    assert set(FITS) == set(FITTED_INITS)


def test_random_has_the_std_asked_for_and_is_a_function_of_the_generator() -> None:
    router = INITS["random"]((8, 4096), generator(), 0.05)
    assert router.dtype == torch.float32
    assert router.std().item() == pytest.approx(0.05, rel=0.02)
    assert router.mean().item() == pytest.approx(0, abs=1e-3)
    assert torch.equal(router, INITS["random"]((8, 4096), generator(), 0.05))
    assert not torch.equal(router, INITS["random"]((8, 4096), generator(1), 0.05))


def test_zero_is_zero() -> None:
    assert INITS["zero"]((3, 5), generator(), 0.02).count_nonzero() == 0


@pytest.mark.parametrize(("n_experts", "d"), [(4, 32), (1, 8), (6, 4)])
def test_orthogonal_rows_are_as_long_as_random_ones(n_experts: int, d: int) -> None:
    router = INITS["orthogonal"]((n_experts, d), generator(), 0.02).double()
    gram = router @ router.mT if n_experts <= d else router.mT @ router * (d / n_experts)
    assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64) * 0.02**2 * d, atol=1e-8)
    assert router.square().mean().sqrt().item() == pytest.approx(0.02)
    assert torch.equal(router.float(), INITS["orthogonal"]((n_experts, d), generator(), 0.02))
    assert not torch.equal(router.float(), INITS["orthogonal"]((n_experts, d), generator(1), 0.02))


@pytest.mark.parametrize("name", INITS)
def test_a_router_is_the_same_whatever_dtype_torch_starts_from(name: str) -> None:
    router = INITS[name]((3, 5), generator(), 0.02)
    torch.set_default_dtype(torch.float64)
    try:
        again = INITS[name]((3, 5), generator(), 0.02)
    finally:
        torch.set_default_dtype(torch.float32)
    assert router.dtype == again.dtype == torch.float32
    assert torch.equal(router, again)


@pytest.mark.parametrize("n", [3, 40])
def test_ridge_is_the_least_squares_solution(n: int) -> None:
    """Both systems, N x N for few vectors and D x D for many, against lstsq with rows sqrt(penalty) I added."""
    inputs = clouds(n)
    h = torch.cat(inputs).double() / sqrt(3 * n)
    penalty = RIDGE * h.square().sum() / 12
    wanted = torch.block_diag(*(torch.ones(n, 1, dtype=torch.float64) for _ in inputs)) / sqrt(3 * n)
    rows = torch.cat([h, penalty.sqrt() * torch.eye(12, dtype=torch.float64)])
    solution = torch.linalg.lstsq(rows, torch.cat([wanted, wanted.new_zeros(12, 3)])).solution.mT
    factor = temperature(solution, inputs)
    assert factor in LADDER
    assert torch.allclose(ridge(inputs).double(), solution * factor, rtol=SINGLE, atol=SINGLE)


def test_ridge_weighs_domains_equally() -> None:
    first, *others = clouds()
    assert torch.allclose(ridge([first, *others]), ridge([first.repeat(5, 1), *others]), rtol=1e-4, atol=SINGLE)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_fitted_routers_route_new_vectors_of_separable_domains(fit: Callable[..., Tensor]) -> None:
    inputs = clouds(spread=0.1)
    router = fit([h[:20] for h in inputs])
    for domain, h in enumerate(inputs):
        assert ((h[20:] @ router.mT).argmax(-1) == domain).all()
        assert (h[20:] @ router.mT).softmax(-1)[:, domain].min() > 0.8, "the factor makes a sure router of a sure fit"


def test_a_router_that_cannot_tell_domains_apart_starts_soft() -> None:
    same = torch.randn(200, 12, generator=generator())
    other = torch.randn(200, 12, generator=generator(1))
    probs = (same @ ridge([same, other]).mT).softmax(-1)
    assert probs.max() < 0.8


def test_centroid_is_the_unit_difference_from_the_mean_of_all() -> None:
    inputs = [torch.tensor([[0.5, 0, 1], [1.5, 0, 1]]), torch.tensor([[-1.0, 0, 1]])]
    router = centroid(inputs)
    factor = router[0, 0].item()
    assert factor in [float(torch.tensor(step)) for step in LADDER]
    assert torch.equal(router, torch.tensor([[factor, 0, 0], [-factor, 0, 0]]))
    longer = centroid([torch.tensor([[3.0, 0, 1]]), torch.tensor([[-1.0, 0, 1]])])  # away (2, 0, 0), common (1, 0, 1)
    assert torch.allclose(longer[0] / longer[0].norm(), torch.tensor([1.0, 0, -1.0]) / sqrt(2))
    assert centroid([inputs[0], inputs[0]]).count_nonzero() == 0


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_centroids_are_equally_long_and_at_right_angles_to_the_mean_of_all(scale: float) -> None:
    inputs = [h * scale for h in clouds(n_domains=4)]
    router = centroid(inputs).double()
    common = torch.stack([h.double().mean(0) for h in inputs]).mean(0)
    lengths = router.norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(4), rtol=SINGLE, atol=0)
    assert (router @ common).abs().max() < SINGLE * lengths[0] * common.norm()


def test_temperature_is_the_best_of_the_ladder() -> None:
    inputs = clouds()
    router = centroid(inputs).double()
    router /= router.norm(dim=-1, keepdim=True)

    def loss(factor: float) -> float:
        return -sum(float((h.double() @ router.mT * factor).log_softmax(-1)[:, e].mean()) for e, h in enumerate(inputs))

    assert loss(temperature(router, inputs)) == pytest.approx(min(map(loss, LADDER)), abs=EXACT)
    assert 1 / 16 < temperature(router, inputs) < 256, "the optimum is inside, so the ladder is long enough"


def test_condition_is_of_the_differences_between_experts() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0, 0.1, 0, 0], [0, -0.1, 0, 0]])
    # the centred rows have singular values sqrt(2) and sqrt(2) / 10, and 0 where three differences would be
    assert condition(rows[:2]) == pytest.approx(1)
    three = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 0.3, 0]], dtype=torch.float64)
    assert condition(three) == pytest.approx(sqrt(2) / sqrt(0.06), rel=1e-9)
    assert condition(rows) > 1e9
    moved = three + torch.tensor([0.0, 0, 1000])
    assert condition(moved) == pytest.approx(condition(three), rel=1e-9), "softmax sees no common row"


def test_condition_counts_copies_once_and_ties_as_infinite() -> None:
    two = torch.tensor([[1.0, 0], [0, 1.0]])
    assert condition(two.repeat_interleave(2, 0)) == condition(two) == pytest.approx(1)
    assert condition(torch.zeros(3, 4)) == condition(torch.zeros(2, 4)) == inf
    assert condition(torch.ones(1, 4)) == 1
