"""Rotary embedding, causal attention over a cache, and the short-row kernel for bf16 on a CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.nn import short_attention as short
from bam_core.nn.attention import attend
from bam_core.nn.layers import apply_rotary, rotary_tables

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def heads(n_time: int, n_heads: int, seed: int, batch: int = 2, channels: int = 8) -> Tensor:
    shape = (batch, n_time, n_heads, channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(q_BTHC: Tensor, k_BSGC: Tensor, v_BSGC: Tensor) -> Tensor:
    """The definition: a square of scores, each query head beside a copy of its key/value head."""
    copies = q_BTHC.shape[2] // k_BSGC.shape[2]
    q, k, v = (
        x.transpose(1, 2) for x in (q_BTHC, k_BSGC.repeat_interleave(copies, 2), v_BSGC.repeat_interleave(copies, 2))
    )
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(~past, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def test_rotary_turns_each_pair_by_its_angle() -> None:
    cos, sin = rotary_tables(3, 4, 100.0, torch.float64, CPU)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).expand(1, 3, 1, 4)
    turned = apply_rotary(x, cos, sin)
    for position in range(3):  # pairs (0, 2) and (1, 3) as complex numbers; frequencies 1 and 1/10
        angle = torch.tensor([position * 1.0, position * 0.1], dtype=torch.float64)
        expected = torch.polar(torch.ones_like(angle), angle) * torch.tensor([1 + 3j, 2 + 4j], dtype=torch.complex128)
        actual = torch.complex(turned[0, position, 0, :2], turned[0, position, 0, 2:])
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # angles are float32


def test_rotated_scores_depend_on_distance_only() -> None:
    tables = rotary_tables(8, 8, 10_000.0, torch.float64, CPU)
    q, k = (apply_rotary(heads(1, 1, seed, batch=1).expand(1, 8, 1, 8), *tables)[0, :, 0] for seed in (1, 2))
    scores = q @ k.T
    for distance in range(-7, 8):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


def test_tables_first_made_for_inference_serve_training() -> None:
    rotary_tables.cache_clear()
    with torch.inference_mode():
        cos, sin = rotary_tables(4, 8, 10_000.0, torch.float32, CPU)
    x = torch.ones(1, 4, 1, 8, requires_grad=True)
    apply_rotary(x, cos, sin).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("n_queries", [1, 3, 7])
@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_queries_are_the_last_of_the_keys(n_queries: int, n_groups: int) -> None:
    q, k, v = heads(n_queries, 4, 1), heads(7, n_groups, 2), heads(7, n_groups, 3)
    torch.testing.assert_close(attend(q, k, v), reference(q, k, v), **EXACT)


@pytest.mark.parametrize("n_time", [1, 5, 128, 300])
@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_short_rows_values_and_gradients_in_float64(
    n_time: int, n_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short, "SCORES", 2 * 128 * 300)  # several blocks of rows as well as of queries
    generator = torch.Generator().manual_seed(4)
    inputs = [heads(n_time, n, seed).requires_grad_() for seed, n in enumerate((4, n_groups, n_groups))]
    actual, expected = short.short_attention(*inputs), reference(*inputs)
    torch.testing.assert_close(actual, expected, **EXACT)
    direction = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(actual, inputs, direction)
    theirs = torch.autograd.grad(expected, inputs, direction)
    for our_grad, their_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_grad, their_grad, **EXACT)


def test_short_rows_in_bf16_are_as_accurate_as_torch() -> None:
    inputs = [heads(256, n, seed).bfloat16().requires_grad_() for seed, n in enumerate((4, 2, 2))]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    direction = heads(256, 4, 9).bfloat16()

    def errors(output: Tensor) -> list[float]:
        grads = torch.autograd.grad(output, inputs, direction)
        pairs = zip((output, *grads), (expected, *expected_grads), strict=True)
        return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]

    expected = reference(*exact)
    expected_grads = torch.autograd.grad(expected, exact, direction.double())
    torchs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), is_causal=True, enable_gqa=True)
    for ours, theirs in zip(errors(attend(*inputs)), errors(torchs.transpose(1, 2)), strict=True):
        assert ours < max(1.6 * theirs, 2**-8), (ours, theirs)  # bf16 rounds to 2^-9


def test_attend_takes_the_short_kernel_in_bf16_and_not_beyond_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    monkeypatch.setattr("bam_core.nn.attention.short_attention", lambda *args: called.append(args))
    q = heads(4, 1, 0)
    attend(q, q, q)
    assert not called
    attend(q.bfloat16(), q.bfloat16(), q.bfloat16())
    assert len(called) == 1
    monkeypatch.setattr("bam_core.nn.attention.MAX_ROW", 3)
    attend(q.bfloat16(), q.bfloat16(), q.bfloat16())
    assert len(called) == 1
