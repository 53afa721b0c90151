"""Rotary embedding, QK-norm, causal attention over a cache, and the short-row kernel for bf16 on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.config import AttentionExperts, KeysValues, ModelConfig
from bam_core.nn import attention
from bam_core.nn import short_attention as short
from bam_core.nn.attention import Cache, Scores, attend
from bam_core.nn.layers import apply_rotary, norm_channels, rotary_tables

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-10, "atol": 1e-12}
DENSE = ModelConfig(vocab_size=7, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=8, max_seq_len=16)


def heads(n_time: int, n_heads: int, seed: int, batch: int = 2, channels: int = 8) -> Tensor:
    shape = (batch, n_time, n_heads, channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(q_BTHC: Tensor, k_BSGC: Tensor, v_BSGX: Tensor, mask_BTS: Tensor | None = None) -> Tensor:
    """The definition: a square of scores, each query head beside a copy of its key/value head."""
    copies = q_BTHC.shape[2] // k_BSGC.shape[2]
    q, k, v = (
        x.transpose(1, 2) for x in (q_BTHC, k_BSGC.repeat_interleave(copies, 2), v_BSGX.repeat_interleave(copies, 2))
    )
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    visible = past if mask_BTS is None else mask_BTS[:, None]
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(~visible, -torch.inf)
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


@pytest.mark.parametrize(
    ("pairs", "first", "second"), [("half", (0, 1, 2), (3, 4, 5)), ("interleaved", (0, 2, 4), (1, 3, 5))]
)
@pytest.mark.parametrize("channels", [6, 10])
def test_rotary_of_either_pairing_leaves_the_channels_beyond_its_own(
    pairs: Literal["half", "interleaved"], first: tuple[int, ...], second: tuple[int, ...], channels: int
) -> None:
    x = heads(5, 3, seed=1, channels=channels)
    turned = apply_rotary(x, *rotary_tables(5, 6, 100.0, torch.float64, CPU), pairs)
    frequency = torch.tensor([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)], dtype=torch.float64)  # 100^(-2j/6)
    angle_TR = torch.arange(5, dtype=torch.float64)[:, None] * frequency
    expected = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angle_TR), angle_TR)[:, None]
    actual = torch.complex(turned[..., first], turned[..., second])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # angles are float32
    assert torch.equal(turned[..., 6:], x[..., 6:])


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_each_row_is_rotated_to_positions_of_its_own(pairs: Literal["half", "interleaved"]) -> None:
    x, (cos, sin) = heads(3, 2, seed=1), rotary_tables(9, 6, 100.0, torch.float64, CPU)
    position_BT = torch.tensor([[0, 0, 1], [4, 5, 6]])
    together = apply_rotary(x, cos[position_BT], sin[position_BT], pairs)
    for row, position_T in enumerate(position_BT):
        alone = apply_rotary(x[row : row + 1], cos[position_T], sin[position_T], pairs)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_qk_norm_is_over_the_channels_of_a_head_with_a_scale_for_each(kind: Literal["rms", "layer"]) -> None:
    x, scale_HC = heads(3, 2, seed=1), heads(1, 2, seed=2, batch=1)[0, 0]
    eps = 0.1
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    expected = scale_HC * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(norm_channels(x, scale_HC, eps, kind), expected, **EXACT)
    narrow = norm_channels(x.bfloat16(), scale_HC.bfloat16(), eps, kind)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), expected, rtol=2**-6, atol=2**-6)  # rounded in, and once out


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
@pytest.mark.parametrize("width", [8, 24])
def test_queries_are_the_last_of_the_keys(n_queries: int, n_groups: int, width: int) -> None:
    q, k, v = heads(n_queries, 4, 1), heads(7, n_groups, 2), heads(7, n_groups, 3, channels=width)
    torch.testing.assert_close(attend(q, k, v), reference(q, k, v), **EXACT)


@pytest.mark.parametrize("n_queries", [1, 3, 7])
def test_a_mask_takes_the_place_of_the_past(n_queries: int) -> None:
    q, k, v = heads(n_queries, 4, 1), heads(7, 2, 2), heads(7, 2, 3)
    mask_BTS = torch.rand(2, n_queries, 7, generator=torch.Generator().manual_seed(4)) < 0.5
    mask_BTS[..., 0] = True
    torch.testing.assert_close(attend(q, k, v, mask_BTS), reference(q, k, v, mask_BTS), **EXACT)


@pytest.mark.parametrize("products", [1, 7 * 8 * 3, 2**20], ids=["a head", "three heads", "all"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [8, 24])
def test_one_query_for_each_head(products: int, masked: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bf16 takes on a CPU, here in float64; then that it is taken, and as accurate as torch's kernel."""
    monkeypatch.setattr(attention, "PRODUCTS_AT_ONCE", products)
    q, k, v = heads(1, 4, 1), heads(7, 4, 2), heads(7, 4, 3, channels=width)
    mask_BTS = torch.rand(2, 1, 7, generator=torch.Generator().manual_seed(4)) < 0.5 if masked else None
    if mask_BTS is not None:
        mask_BTS[..., 0] = True
    expected = reference(q, k, v, mask_BTS)
    found = attention._attend_one(*(x.transpose(1, 2) for x in (q, k, v)), mask_BTS, None)
    torch.testing.assert_close(found.unsqueeze(1), expected, **EXACT)
    narrow = [x.bfloat16() for x in (q, k, v)]
    exact = reference(*(x.double() for x in narrow), mask_BTS)
    torchs = attend(*(x.requires_grad_() for x in narrow), mask_BTS).double()
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("torch's kernel"))
    with torch.no_grad():
        ours = attend(*narrow, mask_BTS).double()
        scaled = attend(*narrow, mask_BTS, Scores(scale=0.0)).double()
    assert (ours - exact).norm() < max(1.6 * (torchs - exact).norm(), 2**-8 * exact.norm())
    seen = mask_BTS.double() if mask_BTS is not None else torch.ones(2, 1, 7, dtype=torch.float64)
    even = (seen / seen.sum(-1, keepdim=True)) @ v.flatten(2)
    torch.testing.assert_close(scaled.flatten(2), even, rtol=0, atol=2**-6)


@pytest.mark.parametrize("n_time", [1, 5, 128, 300])
@pytest.mark.parametrize("n_groups", [1, 2, 4])
@pytest.mark.parametrize("width", [8, 24])
def test_short_rows_values_and_gradients_in_float64(
    n_time: int, n_groups: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short, "SCORES", 2 * 128 * 300)  # several blocks of rows as well as of queries
    generator = torch.Generator().manual_seed(4)
    inputs = [heads(n_time, 4, 0), heads(n_time, n_groups, 1), heads(n_time, n_groups, 2, channels=width)]
    inputs = [x.requires_grad_() for x in inputs]
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
    attend(q.bfloat16(), q.bfloat16(), q.repeat(1, 1, 1, 3).bfloat16())  # the values of three experts
    assert len(called) == 2
    attend(q.bfloat16(), q.bfloat16(), q.bfloat16(), torch.ones(2, 4, 4, dtype=torch.bool))
    attend(q[:, -1:].bfloat16(), q.bfloat16(), q.bfloat16())
    with torch.no_grad():  # nothing to keep for a gradient
        attend(q.bfloat16(), q.bfloat16(), q.bfloat16())
    assert len(called) == 2
    monkeypatch.setattr("bam_core.nn.attention.MAX_ROW", 3)
    attend(q.bfloat16(), q.bfloat16(), q.bfloat16())
    assert len(called) == 2


def test_a_padded_cache_hides_pads_and_counts_positions_after_them() -> None:
    cache = Cache(DENSE, batch=3, capacity=6, pad_B=torch.tensor([0, 2, 4]))
    assert cache.positions(4).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, 0]]
    k, v = heads(4, 2, 1, batch=3).float(), heads(4, 2, 2, batch=3).float()
    keys, values, mask = cache.layers[0].append(k, v)
    assert torch.equal(keys, k)
    assert torch.equal(values, v)
    pad = [[True, False, False, False], [False, True, False, False]]  # sees itself
    assert mask[1].tolist() == [*pad, [False, False, True, False], [False, False, True, True]]
    assert torch.equal(mask[0], torch.ones(4, 4, dtype=torch.bool).tril())
    assert cache.positions(2).tolist() == [[4, 5], [2, 3], [0, 1]]
    _, values, mask = cache.layers[0].append(k[:, :1] + 1, v[:, :1] + 1)
    assert torch.equal(values, torch.cat((v, v[:, :1] + 1), 1))
    assert mask[:, 0].tolist() == [[True] * 5, [False] * 2 + [True] * 3, [False] * 4 + [True]]


def test_a_cache_is_as_wide_as_what_experts_have_of_their_own() -> None:
    def shapes(kv: KeysValues) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        config = replace(DENSE, attention=AttentionExperts(3, 3, kv, layers=(1,)), experts=("a", "b", "c"))
        layers = Cache(config, batch=5, capacity=6).layers
        return [(tuple(layer.keys_BGSC.shape), tuple(layer.values_BGSX.shape)) for layer in layers]

    dense = ((5, 2, 6, 8), (5, 2, 6, 8))
    assert shapes("shared") == [dense, dense]
    assert shapes("expert") == [dense, ((5, 6, 6, 8), (5, 6, 6, 8))]
    assert shapes("value_only") == [dense, ((5, 2, 6, 8), (5, 2, 6, 24))]
