"""A mixture of attention against its definition, one expert, head and position at a time, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bam_core.config import AttentionExperts, KeysValues, ModelConfig
from bam_core.nn import attention
from bam_core.nn.attention import Attention
from bam_core.nn.layers import rotary_tables
from bam_core.nn.moa import MixtureOfAttention

EXACT = {"rtol": 1e-11, "atol": 1e-12}
E, TIME = 3, 4
CONFIG = ModelConfig(
    vocab_size=7, d_model=24, n_layers=1, n_heads=4, n_kv_heads=2, d_ff=8, max_seq_len=16, experts=("a", "b", "c")
)
CONFIGS = {
    "grouped": CONFIG,
    "multi-query": replace(CONFIG, n_kv_heads=1),
    "multi-head": replace(CONFIG, n_kv_heads=4),
    "qk-norm": replace(CONFIG, qk_norm=True),
    "qk-norm-centred": replace(CONFIG, qk_norm=True, norm="layer", norm_eps=0.1),
    "partial-rotary": replace(CONFIG, rotary_frac=0.67),
    "interleaved": replace(CONFIG, rotary_pairs="interleaved"),
    "all": replace(CONFIG, qk_norm=True, rotary_frac=0.67, rotary_pairs="interleaved"),
}
every_config = pytest.mark.parametrize("name", CONFIGS)
every_kv = pytest.mark.parametrize("kv", ["expert", "shared", "value_only"])


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden() -> Tensor:
    """Channel 0 is 1 for every token, so a router can be made to choose by it alone."""
    x_BTD = randn(2, TIME, 24, seed=0)
    x_BTD[..., 0] = 1
    return x_BTD


def build(config: ModelConfig, experts: AttentionExperts) -> MixtureOfAttention:
    mixture = MixtureOfAttention(replace(config, attention=experts).checked(), experts).double()
    for i, (name, parameter) in enumerate(mixture.named_parameters()):
        parameter.data.copy_(0.4 * randn(*parameter.shape, seed=100 + i) + ("norm" in name))
    return mixture


def run(mixture: MixtureOfAttention, x_BTD: Tensor) -> Tensor:
    config = mixture.config
    tables = rotary_tables(TIME, config.rotary_dim, config.rope_theta, torch.float64, x_BTD.device)
    return mixture(x_BTD, tables)[0]


def normed(x_C: Tensor, scale_C: Tensor, config: ModelConfig) -> Tensor:
    x_C = x_C - x_C.mean() if config.norm == "layer" else x_C
    return scale_C * x_C / (x_C.square().mean() + config.norm_eps).sqrt()


def turned(x_C: Tensor, position: int, config: ModelConfig) -> Tensor:
    """Channel by channel. Angles are float32, as in every public checkpoint."""
    n, out = config.rotary_dim, list(x_C.unbind())
    for j in range(n // 2):
        exponent = torch.tensor(2 * j, dtype=torch.float32) / n
        angle = position * (1 / config.rope_theta**exponent)
        cos, sin = angle.cos().double(), angle.sin().double()
        one, two = (j, j + n // 2) if config.rotary_pairs == "half" else (2 * j, 2 * j + 1)
        out[one], out[two] = x_C[one] * cos - x_C[two] * sin, x_C[two] * cos + x_C[one] * sin
    return torch.stack(out)


def of_expert(mixture: MixtureOfAttention, name: str, expert: int) -> Tensor | None:
    """What `expert` uses: its own if there are E, else the one for all."""
    tensor = getattr(mixture, name)
    own = tensor is not None and tensor.ndim > (1 if name.endswith("norm") else 2)
    return tensor[expert] if own else tensor


def one_attention(mixture: MixtureOfAttention, expert: int, x_TD: Tensor) -> Tensor:
    """MHA_e(x), y_TD: for every head and query, a softmax over the positions up to it."""
    config, C = mixture.config, mixture.config.head_dim
    names = ("w_q", "w_k", "w_v", "w_o", "q_norm", "k_norm")
    w_q, w_k, w_v, w_o, q_norm, k_norm = (of_expert(mixture, name, expert) for name in names)
    out = []
    for t in range(TIME):
        y_D = torch.zeros(config.d_model, dtype=torch.float64)
        for h in range(config.n_heads):
            g = h // (config.n_heads // config.n_kv_heads)
            own, group = slice(h * C, (h + 1) * C), slice(g * C, (g + 1) * C)
            q, keys = w_q[own] @ x_TD[t], [w_k[group] @ x_TD[s] for s in range(t + 1)]
            if q_norm is not None:
                q, keys = normed(q, q_norm[own], config), [normed(k, k_norm[group], config) for k in keys]
            q, keys = turned(q, t, config), [turned(k, s, config) for s, k in enumerate(keys)]
            probs = (torch.stack([q @ k for k in keys]) / C**0.5).softmax(0)
            o_C = sum(probs[s] * (w_v[group] @ x_TD[s]) for s in range(t + 1))
            y_D = y_D + o_C @ w_o[own]
        out.append(y_D)
    return torch.stack(out)


def definition(mixture: MixtureOfAttention, x_BTD: Tensor, gate_BTE: Tensor) -> Tensor:
    """sum_e g_e(x) MHA_e(x). Source: BAM, section 4.1."""
    rows = []
    for x_TD, gate_TE in zip(x_BTD, gate_BTE, strict=True):
        rows.append(sum(gate_TE[:, e, None] * one_attention(mixture, e, x_TD) for e in range(E)))
    return torch.stack(rows)


def probs(mixture: MixtureOfAttention, x_BTD: Tensor) -> Tensor:
    return (x_BTD @ mixture.router.T).softmax(-1)


def largest(probs_BTE: Tensor, top_k: int) -> Tensor:
    """1 for the top_k experts of each token, 0 for the others."""
    rank_BTE = probs_BTE.argsort(-1, descending=True).argsort(-1)
    return (rank_BTE < top_k).double()


@every_kv
@every_config
def test_it_is_the_gated_sum_of_attentions_in_value_and_gradient(name: str, kv: KeysValues) -> None:
    mixture, x = build(CONFIGS[name], AttentionExperts(E, E, kv)), hidden().requires_grad_()
    actual, expected = run(mixture, x), definition(mixture, x, probs(mixture, x))
    torch.testing.assert_close(actual, expected, **EXACT)
    inputs, direction = [x, *mixture.parameters()], randn(*actual.shape, seed=7)
    ours, theirs = (torch.autograd.grad(output, inputs, direction) for output in (actual, expected))
    for our_grad, their_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-10, atol=1e-10)


@every_kv
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("gate", ["softmax_topk", "topk_softmax", "softmax_topk_renorm"])
def test_a_sparse_gate_masks(kv: KeysValues, top_k: int, gate: str) -> None:
    mixture, x = build(CONFIG, AttentionExperts(E, top_k, kv, gate)), hidden()
    gate_BTE = probs(mixture, x)
    gate_BTE = gate_BTE * largest(gate_BTE, top_k)
    if gate != "softmax_topk":
        gate_BTE = gate_BTE / gate_BTE.sum(-1, keepdim=True)
    torch.testing.assert_close(run(mixture, x), definition(mixture, x, gate_BTE), **EXACT)


@every_kv
def test_a_dense_router_gradient_is_that_of_the_soft_gate_at_the_value_of_the_sparse_one(kv: KeysValues) -> None:
    mixture, x = build(CONFIG, AttentionExperts(E, 1, kv, dense_router_gradient=True)), hidden()
    names = [name for name, _ in mixture.named_parameters()]
    soft, direction = probs(mixture, x), randn(2, TIME, 24, seed=7)
    sparse = soft * largest(soft, 1)
    actual = run(mixture, x)
    sparse_output, soft_output = definition(mixture, x, sparse.detach()), definition(mixture, x, soft)
    torch.testing.assert_close(actual, sparse_output, **EXACT)
    ours = dict(zip(names, torch.autograd.grad(actual, list(mixture.parameters()), direction), strict=True))
    (router,) = torch.autograd.grad(soft_output, [mixture.router], direction)
    torch.testing.assert_close(ours.pop("router"), router, rtol=1e-10, atol=1e-10)
    rest = torch.autograd.grad(sparse_output, [mixture.get_parameter(name) for name in ours], direction)
    for our_grad, their_grad in zip(ours.values(), rest, strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-10, atol=1e-10)


@every_kv
def test_a_router_bias_is_added_to_the_logits_and_not_trained(kv: KeysValues) -> None:
    mixture, x = build(CONFIG, AttentionExperts(E, E, kv, router_bias=True)), hidden()
    gate_BTE = (x @ mixture.router.T + mixture.router_bias).softmax(-1)
    output = run(mixture, x)
    torch.testing.assert_close(output, definition(mixture, x, gate_BTE), **EXACT)
    output.sum().backward()
    assert mixture.router_bias.grad is None
    assert all(parameter.grad is not None for name, parameter in mixture.named_parameters() if name != "router_bias")


@every_config
@every_kv
@pytest.mark.parametrize("expert", range(E))
def test_a_router_sure_of_one_expert_gives_that_dense_attention(name: str, kv: KeysValues, expert: int) -> None:
    mixture = build(CONFIGS[name], AttentionExperts(E, E, kv))
    mixture.router.data.zero_()
    mixture.router.data[:, 0] = -1e4
    mixture.router.data[expert, 0] = 1e4
    dense = Attention(CONFIGS[name]).double()
    for tensor, parameter in dense.named_parameters():
        parameter.data.copy_(of_expert(mixture, tensor, expert))
    torch.testing.assert_close(run(mixture, hidden()), run(dense, hidden()), **EXACT)


@every_config
def test_experts_with_the_same_queries_and_keys_are_value_only(name: str) -> None:
    value_only = build(CONFIGS[name], AttentionExperts(E, E, "value_only"))
    own = build(CONFIGS[name], AttentionExperts(E, E, "expert"))
    for tensor, parameter in own.named_parameters():
        parameter.data.copy_(value_only.get_parameter(tensor).data)  # queries, keys and norms broadcast over experts
    torch.testing.assert_close(run(own, hidden()), run(value_only, hidden()), **EXACT)


def test_value_only_experts_share_one_set_of_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    plain = attention.attend

    def spy(*args: Tensor) -> Tensor:
        shapes.append([tuple(x.shape[2:]) for x in args[:3]])
        return plain(*args)

    monkeypatch.setattr(attention, "attend", spy)
    run(build(CONFIG, AttentionExperts(E, E, "value_only")), hidden())
    assert shapes == [[(4, 6), (2, 6), (2, 18)]]
