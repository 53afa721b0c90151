"""What a mixture must equal when its experts or its router are special, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.attention import Attention
from bam_core.nn.layers import SwiGLU, rotary_tables
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts, grouped_kernel, grouped_linear

EXACT = {"rtol": 1e-11, "atol": 1e-12}
E = 3
CONFIG = ModelConfig(
    vocab_size=31,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=24,
    max_seq_len=16,
    experts=("a", "b", "c"),
)
ROTARY = rotary_tables(9, CONFIG.head_dim, CONFIG.rope_theta, torch.float64, torch.device("cpu"))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fill(module: nn.Module, seed: int) -> nn.Module:
    module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data.copy_(0.3 * randn(*parameter.shape, seed=100 * seed + i))
    return module


def hidden() -> Tensor:
    """Channel 0 is 1 for every token, so a router can be made to choose by it alone."""
    x_BTD = randn(2, 9, 16, seed=0)
    x_BTD[..., 0] = 1
    return x_BTD


def route_all_to(module: nn.Module, expert: int) -> None:
    module.router.data.zero_()
    module.router.data[:, 0] = -1e4
    module.router.data[expert, 0] = 1e4


def one_expert(mixture: nn.Module, dense: nn.Module, expert: int) -> nn.Module:
    """`dense` with the weights that `expert` has in `mixture`; what is shared is taken whole."""
    dense.double()
    for name, parameter in dense.named_parameters():
        stacked = mixture.get_parameter(name)
        parameter.data.copy_(stacked[expert] if stacked.ndim == 3 else stacked)
    return dense


@pytest.mark.parametrize("expert", range(E))
@pytest.mark.parametrize("kv", ["expert", "shared"])
@pytest.mark.parametrize("top_k", [1, E])
def test_an_attention_router_sure_of_one_expert_gives_that_dense_attention(expert: int, kv: str, top_k: int) -> None:
    mixture = fill(MixtureOfAttention(CONFIG, AttentionExperts(E, top_k, kv)), seed=1)
    route_all_to(mixture, expert)
    dense = one_expert(mixture, Attention(CONFIG), expert)
    torch.testing.assert_close(mixture(hidden(), ROTARY)[0], dense(hidden(), ROTARY)[0], **EXACT)


@pytest.mark.parametrize("expert", range(E))
@pytest.mark.parametrize("gate", ["softmax_topk", "topk_softmax", "softmax_topk_renorm"])
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_an_ffn_router_sure_of_one_expert_gives_that_dense_ffn(expert: int, gate: str, top_k: int) -> None:
    mixture = fill(MixtureOfExperts(CONFIG, FFNExperts(E, top_k, gate)), seed=2)
    route_all_to(mixture, expert)
    dense = one_expert(mixture, SwiGLU(16, 24), expert)
    torch.testing.assert_close(mixture(hidden())[0], dense(hidden())[0], **EXACT)


def make_identical(mixture: nn.Module) -> None:
    for name, parameter in mixture.named_parameters():
        if name != "router" and parameter.ndim == 3:
            parameter.data.copy_(parameter.data[:1].expand_as(parameter))


@pytest.mark.parametrize("kv", ["expert", "shared"])
@pytest.mark.parametrize(("gate", "top_k"), [("softmax_topk", E), ("topk_softmax", 2)])
def test_identical_attention_experts_are_one_whatever_the_router_says(kv: str, gate: str, top_k: int) -> None:
    mixture = fill(MixtureOfAttention(CONFIG, AttentionExperts(E, top_k, kv, gate)), seed=3)
    make_identical(mixture)
    dense = one_expert(mixture, Attention(CONFIG), 0)
    torch.testing.assert_close(mixture(hidden(), ROTARY)[0], dense(hidden(), ROTARY)[0], **EXACT)


@pytest.mark.parametrize("top_k", [1, 2])
def test_identical_ffn_experts_are_one_when_weights_sum_to_1(top_k: int) -> None:
    mixture = fill(MixtureOfExperts(CONFIG, FFNExperts(E, top_k, "topk_softmax")), seed=4)
    make_identical(mixture)
    dense = one_expert(mixture, SwiGLU(16, 24), 0)
    torch.testing.assert_close(mixture(hidden())[0], dense(hidden())[0], **EXACT)


def test_bams_own_ffn_gate_scales_identical_experts_by_the_largest_probability() -> None:
    mixture = fill(MixtureOfExperts(CONFIG, FFNExperts(E)), seed=5)
    make_identical(mixture)
    dense = one_expert(mixture, SwiGLU(16, 24), 0)
    largest = (hidden() @ mixture.router.T).softmax(-1).amax(-1, keepdim=True)
    assert largest.min() < 0.6  # else this says little
    torch.testing.assert_close(mixture(hidden())[0], largest * dense(hidden())[0], **EXACT)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_expert_kv_with_tied_keys_and_values_is_shared_kv(n_kv_heads: int) -> None:
    config = replace(CONFIG, n_kv_heads=n_kv_heads, ffn=FFNExperts(E))
    shared, own = (LM(replace(config, attention=AttentionExperts(E, E, kv))).double() for kv in ("shared", "expert"))
    init_weights(shared, seed=6)
    for name, parameter in own.named_parameters():
        source = shared.get_parameter(name).data
        parameter.data.copy_(source)  # w_k and w_v broadcast over experts
    tokens_BT = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(own(tokens_BT).hidden_BTD, shared(tokens_BT).hidden_BTD, **EXACT)


def test_a_token_of_a_dropless_ffn_ignores_the_rest_of_the_batch() -> None:
    mixture = fill(MixtureOfExperts(CONFIG, FFNExperts(E, 2)), seed=8)
    together, routing = mixture(hidden())
    alone, _ = mixture(hidden()[:1, :1])
    torch.testing.assert_close(together[:1, :1], alone, **EXACT)
    assert routing.experts_NK.shape == (2, 9, 2)


def test_an_expert_without_tokens_gets_a_zero_gradient_not_none() -> None:
    mixture = fill(MixtureOfExperts(CONFIG, FFNExperts(E)), seed=9)
    route_all_to(mixture, 1)
    mixture(hidden())[0].sum().backward()
    for name in ("w_gate", "w_up", "w_down"):
        per_expert = mixture.get_parameter(name).grad.abs().sum((1, 2))
        assert (per_expert > 0).tolist() == [False, True, False], name


def test_the_router_of_a_top_1_ffn_learns_from_the_task() -> None:
    mixture = fill(MixtureOfExperts(CONFIG, FFNExperts(E)), seed=10)
    mixture(hidden())[0].square().sum().backward()
    assert mixture.router.grad.norm() > 1


@pytest.mark.parametrize("counts", [[3, 0, 5], [8, 0, 0], [1, 6, 1]])
def test_the_grouped_kernel_and_the_slices_agree(counts: list[int]) -> None:
    """The kernel is what a GPU runs; its reference implementation runs here too, gradients included."""
    x, w = randn(8, 16, seed=11).bfloat16(), randn(3, 24, 16, seed=12).bfloat16()
    direction = randn(8, 24, seed=13).bfloat16()
    results = []
    for product in (grouped_linear, grouped_kernel):
        inputs = (x.clone().requires_grad_(), w.clone().requires_grad_())
        output = product(*inputs, torch.tensor(counts))
        results.append((output, *torch.autograd.grad(output, inputs, direction)))
    for slices, kernel in zip(*results, strict=True):
        torch.testing.assert_close(slices, kernel, rtol=2**-7, atol=2**-7)
