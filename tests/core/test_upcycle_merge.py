"""Merges: each against its own algebra, in exact arithmetic where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import acos, cos, sin, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from upcycle_models import dense_models, mix

import bam_core.upcycle.pieces as pieces_module
from bam_core.config import ModelConfig
from bam_core.seeds import child_seed
from bam_core.upcycle.merge import MERGES
from bam_core.upcycle.specs import MERGE_METHODS, MergeSpec
from bam_core.upcycle.variants import Variant

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
HALF_ULP = 2.0**-24
"""Of float32, relative: a float64 result that is rounded once is as near as this."""


def merged(
    method: str, tensors: Sequence[Tensor], *, weights: Sequence[float] = (), seed: int = 0, **spec: float
) -> Tensor:
    names = [f"m{index}" for index in range(len(tensors))]
    if method == "weighted" and not weights:
        weights = [1 / len(tensors)] * len(tensors)
    chosen = MergeSpec(method, dict(zip(names, weights, strict=False)), **spec)
    return MERGES[method](iter(zip(names, tensors, strict=True)), chosen, Generator().manual_seed(seed))


def bits(tensor: Tensor) -> list[int]:
    return tensor.view(torch.int32).tolist()


def random_tensors(count: int, shape: Sequence[int] = (5, 7), seed: int = 0) -> list[Tensor]:
    generator = Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


# --- all of them


def test_the_table_has_the_methods_that_a_variant_can_name() -> None:
    assert tuple(MERGES) == MERGE_METHODS


@settings(deadline=None)
@given(st.sampled_from(MERGE_METHODS), st.lists(FLOATS, min_size=1, max_size=6), st.integers(1, 9))
def test_equal_tensors_give_that_tensor_to_the_bit(method: str, values: list[float], count: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert bits(merged(method, [tensor] * count)) == bits(tensor)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_special_values_and_narrow_sources(method: str) -> None:
    values = torch.tensor([-0.0, 0.0, 1e-45, -1e-38, 3.4e38, 1.0, -3.0])
    assert bits(merged(method, [values] * 3)) == bits(values)
    narrow = values.bfloat16().nan_to_num(posinf=1, neginf=1)
    found = merged(method, [narrow] * 3)
    assert found.dtype == torch.float32
    assert bits(found) == bits(narrow.float())


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_sources_are_left_alone_and_the_result_is_its_own(method: str) -> None:
    tensors = [*random_tensors(2), random_tensors(1, seed=1)[0].double()]
    before = [tensor.clone() for tensor in tensors]
    merged(method, tensors).fill_(7)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@pytest.mark.parametrize("method", [method for method in MERGE_METHODS if method != "dare"])
def test_the_size_of_pieces_and_the_layout_do_not_matter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(4)
    whole = merged(method, tensors)
    assert torch.equal(merged(method, [tensor.t().contiguous().t() for tensor in tensors]), whole)
    monkeypatch.setattr(pieces_module, "PIECE", 3)
    assert (merged(method, tensors) - whole).abs().max() <= HALF_ULP * 8  # slerp sums its norms in another order


# --- means


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_the_default_precision_does_not_matter(method: str) -> None:
    tensors = random_tensors(3, (40, 50))
    expected = merged(method, tensors)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(merged(method, tensors), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_mean_of_bf16_is_computed_wider() -> None:
    """1 + 2^-7 is the bf16 above 1: bf16 arithmetic could not hold this sum, nor its quarter."""
    tensors = [torch.tensor([value]).bfloat16() for value in (1.0, 1.0, 1.0, 1 + 2**-7)]
    assert merged("mean", tensors).tolist() == [1 + 2**-9]
    assert merged("weighted", tensors, weights=[0.25] * 4).tolist() == [1 + 2**-9]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=9))
def test_mean_is_the_exact_mean_rounded_once(numerators: list[int]) -> None:
    exact = Fraction(sum(numerators), 1024 * len(numerators))
    found = merged("mean", [torch.tensor([value / 1024]) for value in numerators])
    assert torch.equal(found, torch.tensor([float(exact)]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**20), 2**20), st.integers(1, 64)), min_size=1, max_size=9))
def test_weighted_is_the_exact_weighted_mean(parts: list[tuple[int, int]]) -> None:
    total = sum(weight for _, weight in parts)
    exact = sum(Fraction(value * weight, 1024 * total) for value, weight in parts)
    tensors = [torch.tensor([value / 1024]) for value, _ in parts]
    found = merged("weighted", tensors, weights=[weight / total for _, weight in parts])
    assert abs(Fraction(found.item()) - exact) <= abs(exact) * Fraction(HALF_ULP) + Fraction(1e-12)


def test_weights_are_parts_of_their_sum() -> None:
    """Six digits of a third do not sum to 1; equal tensors must still give that tensor."""
    values = torch.tensor([3.4e38, 1.0, 1e-30])
    found = merged("weighted", [values] * 3, weights=[0.333333] * 3)
    assert bits(found) == bits(values)


def test_seed_reads_nothing_else() -> None:
    def parts() -> object:
        yield "seed", torch.tensor([1.5])
        raise AssertionError("another model was read")

    assert MERGES["seed"](parts(), MergeSpec("seed"), Generator()).tolist() == [1.5]


# --- SLERP


def test_slerp_of_two_is_shoemakes_formula_at_one_half() -> None:
    x, y = (tensor.double() for tensor in random_tensors(2))
    angle = acos((x * y).sum() / (x.norm() * y.norm()))
    expected = (sin(angle / 2) * x + sin(angle / 2) * y) / sin(angle)
    assert torch.allclose(merged("slerp", [x, y]).double(), expected, rtol=HALF_ULP, atol=0)


def test_slerp_keeps_the_norm_that_the_mean_loses() -> None:
    x, y = (tensor.double() / tensor.double().norm() * 3 for tensor in random_tensors(2))
    assert merged("slerp", [x, y]).double().norm().item() == pytest.approx(3, rel=1e-7)
    assert merged("mean", [x, y]).norm() < 2.5
    three = [x, y, random_tensors(1, seed=5)[0].double()]
    three[2] *= 3 / three[2].norm()
    assert merged("slerp", three).double().norm().item() == pytest.approx(3, rel=1e-7)


def test_slerp_of_more_goes_one_after_another_with_weight_1_over_k() -> None:
    """Right angles: after two, (1, 1, 0) / sqrt(2); then a third of the way to (0, 0, 1)."""
    found = merged("slerp", list(torch.eye(3, dtype=torch.float64)))
    sixth = torch.pi / 6
    expected = [sin(2 * sixth) / sqrt(2)] * 2 + [sin(sixth)]
    assert found.tolist() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([[1.0, 0.0], [3.0, 0.0]], [2.0, 0.0]),
        ([[1.0, 2.0], [-1.0, -2.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [3.0, 4.0]], [1.5, 2.0]),
    ],
    ids=["one way", "opposite", "zero"],
)
def test_slerp_without_one_arc_is_the_straight_line(tensors: list[list[float]], expected: list[float]) -> None:
    assert merged("slerp", [torch.tensor(tensor) for tensor in tensors]).tolist() == expected


def test_slerp_of_opposites_is_the_straight_line_at_any_weight() -> None:
    x = torch.tensor([3.0, 4.0])
    assert torch.allclose(merged("slerp", [x, x, -x]), x / 3, rtol=1e-6)


@pytest.mark.parametrize("angle", [2.2, 3.0, 3.1415])
def test_slerp_takes_the_arc_up_to_opposites(angle: float) -> None:
    x, y = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 0.0], [cos(angle), sin(angle)]))
    expected = [cos(angle / 2), sin(angle / 2)]
    assert merged("slerp", [x, y]).tolist() == pytest.approx(expected, abs=1e-6)


def test_slerp_of_nearly_equal_tensors_is_their_mean() -> None:
    """Angles of 1e-9, of which acos in float64 knows nothing."""
    x = random_tensors(1)[0].double()
    y = x + 1e-9 * random_tensors(1, seed=1)[0]
    assert (merged("slerp", [x, y]).double() - (x + y) / 2).abs().max() <= HALF_ULP * 4


# --- TIES

TIES_SEED = torch.full((5,), 10.0)
TIES_DIFFERENCES = [[4.0, -3.0, 1.0, 0.5, 2.0], [-1.0, -5.0, 3.0, 0.1, 2.0], [-6.0, 4.0, 0.2, 0.3, 1.0]]
"""At density 0.6 three of five are kept: [4 -3 . . 2], [. -5 3 . 2], [-6 4 . . 1]; their sums are -2 -4 3 0 5."""


def test_ties_by_hand() -> None:
    tensors = [TIES_SEED, *(TIES_SEED + torch.tensor(difference) for difference in TIES_DIFFERENCES)]
    expected = torch.tensor([10 - 6, 10 - 4, 10 + 3, 10, 10 + 5 / 3])
    assert torch.equal(merged("ties", tensors, density=0.6), expected)


def test_ties_leaves_a_draw_at_the_seed_and_keeps_all_that_tie_for_the_last_place() -> None:
    seed = torch.zeros(4)
    plus, minus = torch.tensor([1.0, 1, 1, 1]), torch.tensor([-1.0, 1, 1, 1])
    assert merged("ties", [seed, plus, minus], density=0.25).tolist() == [0, 1, 1, 1]


def test_ties_with_one_expert_at_density_1_is_the_expert() -> None:
    seed, expert = random_tensors(2)
    assert torch.equal(merged("ties", [seed, expert], density=1), expert)
    assert torch.equal(merged("ties", [seed]), seed)


def test_ties_keeps_the_density_that_it_is_given() -> None:
    seed, expert = random_tensors(2, (50, 40))
    found = merged("ties", [seed, expert], density=0.2)
    kept = found != seed
    assert kept.sum() == 400
    assert (expert - seed).abs()[kept].min() > (expert - seed).abs()[~kept].max()
    assert torch.equal(found[kept], expert[kept])


@pytest.mark.parametrize("seed", range(8))
def test_ties_keeps_the_last_one_whatever_its_rounding(seed: int) -> None:
    """A difference of two float32 has more digits than the threshold, which is rounded to one."""
    start, expert = random_tensors(2, (30,), seed)
    assert (merged("ties", [start, expert], density=0.5) != start).sum() == 15


def test_ties_keeps_one_entry_at_least() -> None:
    start, expert = random_tensors(2)
    moved = merged("ties", [start, expert], density=1e-6) != start
    assert moved.sum() == 1
    assert (expert - start).abs()[moved] == (expert - start).abs().max()


# --- DARE


def test_dare_adds_up_wider() -> None:
    tensors = [torch.tensor([value]) for value in (0.0, 1.0, 2.0**-30, -1.0)]
    assert merged("dare", tensors, drop=0).tolist() == [2.0**-32]


def test_dare_keeps_an_entry_whose_draw_is_what_is_dropped() -> None:
    drawn = torch.rand(8, generator=Generator().manual_seed(3), dtype=torch.float32)
    found = merged("dare", [torch.zeros(8), torch.ones(8)], drop=drawn[5].item(), seed=3)
    assert torch.equal(found != 0, drawn >= drawn[5])


def test_dare_without_dropping_is_the_mean() -> None:
    tensors = [torch.tensor([float(value), value / 8]) for value in (3, -5, 8, 1)]
    assert torch.equal(merged("dare", tensors, drop=0), merged("mean", tensors))


def test_dare_leaves_out_or_rescales_each_entry() -> None:
    seed, expert = torch.full((4096,), 2.0), torch.full((4096,), 3.0)
    found = merged("dare", [seed, expert], drop=0.75)
    assert set(found.tolist()) == {2.0, 2.0 + 1 / 0.25 / 2}
    assert (found == 2).double().mean().item() == pytest.approx(0.75, abs=4 * sqrt(0.75 * 0.25 / 4096))


def test_dare_is_the_mean_in_expectation() -> None:
    n = 1 << 16
    values, drop = (0.0, 1.0, 5.0, -2.0), 0.5
    found = merged("dare", [torch.full((n,), value) for value in values], drop=drop)
    std = sqrt(sum(value**2 for value in values) * drop / (1 - drop)) / len(values)
    assert found.double().mean().item() == pytest.approx(sum(values) / 4, abs=4 * std / sqrt(n))
    assert found.double().std().item() == pytest.approx(std, rel=0.02)


def test_dare_draws_by_seed_and_tensor_name_alone() -> None:
    tensors = random_tensors(3)
    assert torch.equal(merged("dare", tensors), merged("dare", tensors))
    assert not torch.equal(merged("dare", tensors), merged("dare", tensors, seed=1))

    variant = Variant("v", "merged", "merged", merge=MergeSpec("dare", drop=0.3))
    config = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
    sources = dense_models(config)
    mixture = mix(variant, sources, config, seed=5)
    for name in ("embed.weight", "blocks.1.ffn.w_up"):
        alone = [source.tensors[name] for source in sources.values()]
        assert torch.equal(mixture[name], merged("dare", alone, seed=child_seed(5, name), drop=0.3)), name
