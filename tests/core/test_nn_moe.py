"""FFN experts and all their options against a loop over experts and against the dense FFN, in float64."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.layers import SwiGLU
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.routing import Noise, dense_gate, route, sampled_top1
from bam_core.nn.shapes import tensor_shapes

EXACT = {"rtol": 1e-11, "atol": 1e-12}
E, D = 3, 16
CONFIG = ModelConfig(
    vocab_size=31, d_model=D, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=16, experts=("a", "b", "c")
)
GATE_AND_K = [
    ("softmax_topk", 1),
    ("softmax_topk", 2),
    ("softmax_topk", E),
    ("topk_softmax", 2),
    ("softmax_topk_renorm", 2),
    ("softmax_topk_ste", 1),
    ("softmax_topk_ste", 2),
    ("sample_top1", 1),
]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(experts: FFNExperts, layer: int = 0, config: ModelConfig = CONFIG) -> MixtureOfExperts:
    """Each parameter by its name, so that modules which differ in an option share the rest. In training mode."""
    module = MixtureOfExperts(config, experts, layer).double()
    for name, parameter in module.named_parameters():
        seed = sum(map(ord, name))
        parameter.data.copy_((0.0 if name.endswith("_bias") else 0.4) * randn(*parameter.shape, seed=seed))
    return module


def hidden(batch: int = 2, n_time: int = 9) -> Tensor:
    return randn(batch, n_time, D, seed=0)


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return (F.silu(x @ w_gate.T) * (x @ w_up.T)) @ w_down


def loop(module: MixtureOfExperts, x_BTD: Tensor, gate_BTE: Tensor) -> Tensor:
    """sum_e gate_e FFN_e(x), one expert after another."""
    weights = zip(module.w_gate, module.w_up, module.w_down, strict=True)
    return sum(gate_BTE[..., e, None] * swiglu(x_BTD, *w) for e, w in enumerate(weights))


def gradients(module: MixtureOfExperts, x_BTD: Tensor, y_BTD: Tensor) -> dict[str, Tensor]:
    wanted = {"x": x_BTD} | {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(y_BTD, wanted.values(), randn(*y_BTD.shape, seed=77), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(wanted.items(), found, strict=True)}


@pytest.mark.parametrize(("gate", "top_k"), GATE_AND_K)
def test_output_and_gradients_are_those_of_a_loop_over_experts(gate: str, top_k: int) -> None:
    experts = FFNExperts(E, top_k, gate)
    module, x_BTD = build(experts), hidden().requires_grad_()
    y_BTD, routing = module(x_BTD)
    expected_BTD = loop(module, x_BTD, dense_gate(route(x_BTD @ module.router.T, experts)))
    torch.testing.assert_close(y_BTD, expected_BTD, **EXACT)
    ours, theirs = gradients(module, x_BTD, y_BTD), gradients(module, x_BTD, expected_BTD)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, **EXACT, msg=name)
        assert expected.any() or (name, gate) == ("router", "sample_top1"), name
    assert routing.experts_NK.unique().tolist() == list(range(E))  # else this says little


def test_a_shared_expert_adds_the_dense_ffn() -> None:
    x_BTD = hidden().requires_grad_()
    with_shared, without = build(FFNExperts(E, 2, shared_expert=True)), build(FFNExperts(E, 2))
    shared = with_shared.shared
    dense_BTD = swiglu(x_BTD, shared.w_gate, shared.w_up, shared.w_down)
    assert tuple(shared.w_gate.shape) == (24, D)
    torch.testing.assert_close(with_shared(x_BTD)[0], without(x_BTD)[0] + dense_BTD, **EXACT)
    ours, theirs = gradients(with_shared, x_BTD, with_shared(x_BTD)[0]), gradients(with_shared, x_BTD, dense_BTD)
    for name in ("shared.w_gate", "shared.w_up", "shared.w_down"):
        torch.testing.assert_close(ours[name], theirs[name], **EXACT)


def cut(dense: list[SwiGLU], split: int, gain: float) -> MixtureOfExperts:
    """A mixture of the column groups of some dense FFNs, an FFN's side by side; its router knows FFNs, not groups."""
    n = len(dense) * split
    experts = FFNExperts(n, split, "softmax_topk", split=split, gain=(gain, gain), slots=("a",) * len(dense))
    mixture = build(experts)
    for name in ("w_gate", "w_up", "w_down"):
        stacked = torch.stack([ffn.get_parameter(name).data for ffn in dense])
        mixture.get_parameter(name).data.copy_(stacked.view(n, -1, D))
    mixture.router.data.copy_(mixture.router.data[::split].repeat_interleave(split, 0))
    return mixture


def dense_ffn(seed: int) -> SwiGLU:
    dense = SwiGLU(D, 24).double()
    for i, parameter in enumerate(dense.parameters()):
        parameter.data.copy_(0.4 * randn(*parameter.shape, seed=10 * seed + i))
    return dense


@pytest.mark.parametrize("split", [2, 3, 4])
def test_the_column_groups_of_one_ffn_sum_to_it(split: int) -> None:
    """Equal router rows give each group 1/split, and the gain, split, undoes that."""
    dense = dense_ffn(1)
    mixture = cut([dense], split, gain=split)
    torch.testing.assert_close(mixture(hidden())[0], dense(hidden())[0], **EXACT)


def test_one_ffn_in_groups_among_others_is_still_that_ffn_times_its_probability() -> None:
    dense = [dense_ffn(seed) for seed in (1, 2, 3)]
    mixture, x_BTD = cut(dense, split=2, gain=1.0), hidden()
    probs_BTE = (x_BTD @ mixture.router[::2].T).softmax(-1)
    largest_BT, chosen_BT = probs_BTE.max(-1)
    outputs_BTED = torch.stack([ffn(x_BTD)[0] for ffn in dense], 2)
    expected_BTD = outputs_BTED.gather(2, chosen_BT[..., None, None].expand(-1, -1, 1, D)).squeeze(2)
    # Two groups of the same FFN share its probability, so each has half of it.
    torch.testing.assert_close(mixture(x_BTD)[0], 0.5 * largest_BT[..., None] * expected_BTD, **EXACT)


@pytest.mark.parametrize("dense_gradient", [False, True])
def test_gain_is_a_factor_of_this_layers_gates(dense_gradient: bool) -> None:
    experts = FFNExperts(E, 2, gain=(1.7, 0.3), shared_expert=True, dense_router_gradient=dense_gradient)
    x_BTD = hidden().requires_grad_()
    plain = build(replace(experts, gain=(), shared_expert=False))
    for layer, gain in enumerate(experts.gain):
        module = build(experts, layer)
        y_BTD, routing = module(x_BTD)
        routed_BTD = y_BTD - module.shared(x_BTD)[0]
        torch.testing.assert_close(routed_BTD, gain * plain(x_BTD)[0], **EXACT)
        torch.testing.assert_close(routing.weights_NK, gain * plain(x_BTD)[1].weights_NK, **EXACT)
        ours, theirs = gradients(module, x_BTD, routed_BTD), gradients(plain, x_BTD, plain(x_BTD)[0])
        for name in ("router", "w_down", "w_gate"):
            torch.testing.assert_close(ours[name], gain * theirs[name], **EXACT)


def send(module: MixtureOfExperts, choices: list[list[int]]) -> Tensor:
    """x_BTD whose tokens the router sends as written: channel e of a token is its wish for expert e."""
    module.router.data.zero_()
    module.router.data[:, :E] = torch.eye(E)
    x_BTD = hidden(len(choices), len(choices[0]))
    x_BTD[..., :E] = 3 * F.one_hot(torch.tensor(choices), E)
    return x_BTD


CHOICES = [[0, 0, 1, 0, 0, 2], [1, 0, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("factor", "kept"),
    [
        (0.5, [[1, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0]]),  # 1 token each
        (1.0, [[1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1]]),  # ceil(6/3) = 2
        (1.1, [[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1]]),  # ceil(2.2) = 3
        (3.0, [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
    ],
)
def test_capacity_keeps_the_earliest_tokens_of_each_row(factor: float, kept: list[list[int]]) -> None:
    module = build(FFNExperts(E, capacity_factor=factor))
    dropless = build(FFNExperts(E))
    x_BTD = send(dropless, CHOICES)
    send(module, CHOICES)
    y_BTD, routing = module(x_BTD)
    kept_BT1 = torch.tensor(kept, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(y_BTD, kept_BT1 * dropless(x_BTD)[0], **EXACT)
    assert routing.experts_NK.squeeze(-1).tolist() == CHOICES  # load is what the router asked for
    assert torch.equal(module.eval()(x_BTD)[0], dropless(x_BTD)[0])


def test_capacity_counts_every_choice_of_a_token_and_drops_only_the_full_expert() -> None:
    experts = FFNExperts(E, 2, "topk_softmax", capacity_factor=0.75)
    module, x_BTD = build(experts), hidden(3, 8)
    capacity = ceil(0.75 * 8 * 2 / E)
    gate_BTE = dense_gate(route(x_BTD @ module.router.T, experts)).detach()
    n_dropped = 0
    for row in gate_BTE:
        load = [0] * E
        for token in row:
            for e in token.nonzero().flatten().tolist():
                load[e] += 1
                if load[e] > capacity:
                    token[e] = 0.0
                    n_dropped += 1
    assert n_dropped > 3  # else this says little
    y_BTD, routing = module(x_BTD)
    torch.testing.assert_close(dense_gate(routing), gate_BTE, **EXACT)
    torch.testing.assert_close(y_BTD, loop(module, x_BTD, gate_BTE), **EXACT)


def test_a_row_under_capacity_ignores_the_other_rows_and_a_token_those_after_it() -> None:
    module, x_BTD = build(FFNExperts(E, 2, capacity_factor=0.6)), hidden(4, 8)
    together = module(x_BTD)[0]
    torch.testing.assert_close(torch.cat([module(row[None])[0] for row in x_BTD]), together, **EXACT)
    changed = x_BTD.clone()
    changed[:, 5:] = randn(4, 3, D, seed=5)
    torch.testing.assert_close(module(changed)[0][:, :5], together[:, :5], **EXACT)


@pytest.mark.parametrize(("gate", "top_k"), GATE_AND_K)
def test_a_dense_router_gradient_is_that_of_the_soft_mixture_and_nothing_else_changes(gate: str, top_k: int) -> None:
    experts = FFNExperts(E, top_k, gate)
    sparse, module = build(experts), build(replace(experts, dense_router_gradient=True))
    x_BTD = hidden().requires_grad_()
    y_BTD, routing = module(x_BTD)
    torch.testing.assert_close(y_BTD, sparse(x_BTD)[0], **EXACT)
    torch.testing.assert_close(module.eval()(x_BTD)[0], sparse(x_BTD)[0], rtol=0, atol=0)

    ours, others = gradients(module, x_BTD, y_BTD), gradients(sparse, x_BTD, sparse(x_BTD)[0])
    soft_BTD = loop(module, x_BTD, (x_BTD @ module.router.T).softmax(-1))
    torch.testing.assert_close(ours["router"], gradients(module, x_BTD, soft_BTD)["router"], **EXACT)
    for name in ("w_gate", "w_up", "w_down"):
        torch.testing.assert_close(ours[name], others[name], **EXACT)
    if top_k < E:
        assert not torch.allclose(ours["router"], others["router"])
    assert routing.experts_NK.shape == (2, 9, top_k)


def test_an_expert_that_nobody_chose_gets_no_gradient_from_a_dense_router_gradient() -> None:
    module = build(FFNExperts(E, dense_router_gradient=True))
    x_BTD = send(module, [[0, 2, 0, 2, 2]])
    module(x_BTD)[0].square().sum().backward()
    for name in ("w_gate", "w_up", "w_down"):
        assert [bool(expert.any()) for expert in module.get_parameter(name).grad] == [True, False, True], name
    assert module.router.grad[1].abs().max() > 0.01  # but its router row learns


def test_sampling_in_training_and_the_likeliest_expert_after_it() -> None:
    experts = FFNExperts(E, gate="sample_top1")
    x_BTD, noise = hidden().requires_grad_(), Noise((3, 4), temperature=0.8)
    outputs = []
    for layer in (0, 1):
        module = build(experts, layer)
        gumbel_BTE = noise.gumbel(layer, 9, E, torch.device("cpu"))
        gate_BTE = dense_gate(sampled_top1(x_BTD @ module.router.T, gumbel_BTE, 0.8))
        y_BTD, _ = module(x_BTD, noise)
        expected_BTD = loop(module, x_BTD, gate_BTE)
        torch.testing.assert_close(y_BTD, expected_BTD, **EXACT)
        ours, theirs = gradients(module, x_BTD, y_BTD), gradients(module, x_BTD, expected_BTD)
        torch.testing.assert_close(ours["router"], theirs["router"], **EXACT)
        assert ours["router"].norm() > 0.1
        outputs.append(y_BTD)
    assert not torch.allclose(*outputs)
    module.eval()
    likeliest_BT = (x_BTD @ module.router.T).argmax(-1)
    torch.testing.assert_close(module(x_BTD)[0], loop(module, x_BTD, F.one_hot(likeliest_BT, E)), **EXACT)


def test_biases_of_the_router_and_of_the_choice_act_and_are_not_trained() -> None:
    experts = FFNExperts(E, router_bias=True, balance="bias")
    module, x_BTD = build(experts), hidden()
    torch.testing.assert_close(module(x_BTD)[0], build(FFNExperts(E))(x_BTD)[0], rtol=0, atol=0)  # both are 0
    assert not module.router_bias.requires_grad
    assert not module.balance_bias.requires_grad
    logits_BTE = x_BTD @ module.router.T
    for bias, gate_of in (
        ("balance_bias", lambda: logits_BTE.softmax(-1)[..., 1:2]),
        ("router_bias", lambda: (logits_BTE + module.router_bias).softmax(-1)[..., 1:2]),
    ):
        module.get_parameter(bias).data[1] = 15.0  # everybody to expert 1
        y_BTD, routing = module(x_BTD)
        assert routing.experts_NK.unique().tolist() == [1]
        torch.testing.assert_close(routing.weights_NK, gate_of(), **EXACT)
        torch.testing.assert_close(y_BTD, gate_of() * swiglu(x_BTD, *(w[1] for w in first_three(module))), **EXACT)
        module.get_parameter(bias).data.zero_()


def first_three(module: MixtureOfExperts) -> tuple[Tensor, Tensor, Tensor]:
    return module.w_gate, module.w_up, module.w_down


EVERYTHING = replace(
    CONFIG,
    n_layers=3,
    attention=AttentionExperts(E, E, layers=(0, 2), router_bias=True),
    ffn=FFNExperts(
        2 * E, 2, layers=(1, 2), soft_layers=(1,), split=2, shared_expert=True, balance="bias", router_bias=True
    ),
)


def test_a_model_with_every_option_has_the_tensors_that_its_config_says() -> None:
    model = LM(EVERYTHING)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == tensor_shapes(EVERYTHING)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        f"blocks.{name}" for name in ("0.attn.router_bias", "2.attn.router_bias")
    } | {f"blocks.{layer}.ffn.{name}_bias" for layer in (1, 2) for name in ("router", "balance")}


def test_experts_and_gains_are_where_the_config_puts_them_and_a_soft_layer_uses_all() -> None:
    model = LM(replace(EVERYTHING, ffn=replace(EVERYTHING.ffn, gain=(2.0, 3.0, 5.0)))).double()
    init_weights(model, seed=1)
    routing = model(torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))).routing
    assert [layer.attention is not None for layer in routing] == [True, False, True]
    dense, soft, sparse = (layer.ffn for layer in routing)
    assert dense is None
    torch.testing.assert_close(soft.weights_NK, 3 * soft.probs_NE, **EXACT)
    torch.testing.assert_close(sparse.weights_NK, 5 * sparse.probs_NE.topk(2, -1).values, **EXACT)


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize(("gate", "samples"), [("sample_top1", True), ("softmax_topk", False)])
def test_noise_reaches_every_layer_and_only_the_gate_that_asks_for_it(residual: str, gate: str, samples: bool) -> None:
    model = LM(replace(CONFIG, residual=residual, ffn=FFNExperts(E, gate=gate))).double()
    init_weights(model, seed=1)
    tokens_BT = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    quiet, noisy = (model(tokens_BT, noise=noise).routing for noise in (None, Noise((3, 4), temperature=1.0)))
    differs = [not torch.equal(a.ffn.experts_NK, b.ffn.experts_NK) for a, b in zip(quiet, noisy, strict=True)]
    assert differs == [samples, samples]
