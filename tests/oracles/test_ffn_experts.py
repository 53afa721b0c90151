"""FFN experts and every gate against public sparse blocks: output, gradients of input and of each tensor, in float64.

FlexOlmo and OLMoE: softmax, then top-k, as it is or renormalised. Mixtral: the same renormalised. Granite and JetMoE:
top-k, then softmax. DeepSeek-V2: softmax, then top-k, times a factor (our gain), beside a shared expert. Ernie 4.5: a
bias for the choice alone (our balancing bias), renormalised. GPT-OSS: a bias in the router's logits.
What each must notice: the order of softmax and top-k, renormalisation, which expert is which, gate and up swapped.
Mutations, each planted in `test_oracles_can_fail.py`: another gate; experts in another order; gate and up swapped;
no shared expert; no gain; the balancing bias in the weights; the router's bias left out; column groups mixed up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import hf
import pytest
import torch
from agreement import Agreement
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    Ernie4_5_MoeConfig,
    FlexOlmoConfig,
    GptOssConfig,
    GraniteMoeConfig,
    JetMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeSparseMoeBlock
from transformers.models.flex_olmo.modeling_flex_olmo import FlexOlmoSparseMoeBlock
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeMoE
from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from bam_core.config import FFNExperts
from bam_core.nn.layers import SwiGLU
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.routing import dense_gate, route

N_EXPERTS = 4
TOP_K = (1, 2, N_EXPERTS)
NAMES = ("general", "code", "law", "math")
FFN = {name: value for name, value in hf.TINY.items() if name != "vocab_size"}


def eager(settings: PreTrainedConfig) -> Any:
    settings._experts_implementation_internal = "eager"
    return settings


def jetmoe_layout(module: nn.Module) -> hf.Tensors:
    gate, up = module.input_linear.weight.detach().chunk(2, dim=1)
    down = module.output_linear.weight.detach().mT
    return {"w_gate": gate, "w_up": up, "w_down": down, "router": module.router.layer.weight.detach()}


def ernie_layout(module: nn.Module) -> hf.Tensors:
    bias = module.gate.moe_statics.e_score_correction_bias.detach()[0]
    return hf.experts(module) | {"balance_bias": bias}


@dataclass(frozen=True)
class Block:
    """A public sparse block for k, and the gate and options that make ours the same."""

    build: Callable[[int], nn.Module]
    gate: str
    options: dict[str, Any]
    layout: Callable[[nn.Module], hf.Tensors] = hf.experts


def flex_olmo(top_k: int, renormalise: bool = False) -> nn.Module:
    return FlexOlmoSparseMoeBlock(
        eager(
            FlexOlmoConfig(**FFN, num_experts=4, num_experts_per_tok=top_k, norm_topk_prob=renormalise, pad_token_id=0)
        )
    )


def olmoe(top_k: int, renormalise: bool = False) -> nn.Module:
    return OlmoeSparseMoeBlock(
        eager(OlmoeConfig(**FFN, num_experts=4, num_experts_per_tok=top_k, norm_topk_prob=renormalise))
    )


def mixtral(top_k: int) -> nn.Module:
    return MixtralSparseMoeBlock(eager(MixtralConfig(**FFN, num_local_experts=4, num_experts_per_tok=top_k)))


def granite(top_k: int) -> nn.Module:
    return GraniteMoeMoE(eager(GraniteMoeConfig(**FFN, num_local_experts=4, num_experts_per_tok=top_k)))


def jetmoe(top_k: int) -> nn.Module:
    return JetMoeMoE(JetMoeConfig(**FFN, num_local_experts=4, num_experts_per_tok=top_k))


def deepseek(top_k: int) -> nn.Module:
    return DeepseekV2Moe(
        eager(
            DeepseekV2Config(
                **FFN,
                n_routed_experts=4,
                num_experts_per_tok=top_k,
                n_shared_experts=1,
                moe_intermediate_size=48,
                routed_scaling_factor=2.5,
            )
        )
    )


def ernie(top_k: int) -> nn.Module:
    return Ernie4_5_MoeSparseMoeBlock(
        eager(
            Ernie4_5_MoeConfig(
                **FFN, moe_num_experts=4, moe_k=top_k, moe_num_shared_experts=1, moe_intermediate_size=48
            )
        )
    )


BLOCKS = {
    "flex-olmo": Block(flex_olmo, "softmax_topk", {}),
    "flex-olmo-renorm": Block(lambda k: flex_olmo(k, True), "softmax_topk_renorm", {}),
    "olmoe": Block(olmoe, "softmax_topk", {}),
    "olmoe-renorm": Block(lambda k: olmoe(k, True), "softmax_topk_renorm", {}),
    "mixtral-as-renorm": Block(mixtral, "softmax_topk_renorm", {}),
    "mixtral-as-topk-softmax": Block(mixtral, "topk_softmax", {}),
    "granite": Block(granite, "topk_softmax", {}),
    "jetmoe": Block(jetmoe, "topk_softmax", {}, jetmoe_layout),
    "deepseek-v2": Block(deepseek, "softmax_topk", {"shared_expert": True, "gain": (2.5, 1.0)}),
    "ernie": Block(ernie, "softmax_topk_renorm", {"shared_expert": True, "balance": "bias"}, ernie_layout),
}


@pytest.mark.oracle("T4-T5 FFN experts")
@pytest.mark.parametrize("top_k", TOP_K)
@pytest.mark.parametrize("name", BLOCKS)
def test_ffn_experts_are_those_of(name: str, top_k: int, agree: Agreement) -> None:
    block = BLOCKS[name]
    theirs = block.build(top_k)
    hf.randomise(theirs, seed=1)
    if name == "ernie":
        theirs.gate.moe_statics.e_score_correction_bias.data.copy_(torch.tensor([[0.3, -0.2, 0.1, -0.2]]))
    ours = MixtureOfExperts(hf.OURS, FFNExperts(N_EXPERTS, top_k, block.gate, **block.options)).double()
    ours.load_state_dict(block.layout(theirs))
    x, y = hf.hidden().requires_grad_(), hf.hidden().requires_grad_()
    actual = ours(x)[0]
    with hf.float64_inside(theirs):
        expected = theirs(y)
    agree(actual, expected)

    direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    agree(x.grad, y.grad, what="d input")
    for parameter in theirs.parameters():
        parameter.data.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    for tensor, expected_grad in block.layout(theirs).items():
        grad = ours.get_parameter(tensor).grad
        agree(torch.zeros_like(expected_grad) if grad is None else grad, expected_grad, what=f"d {tensor}")


@pytest.mark.oracle("T5 router bias is GPT-OSS's")
@pytest.mark.parametrize("top_k", TOP_K)
def test_router_bias_is_part_of_the_logits(top_k: int, agree: Agreement) -> None:
    theirs = GptOssTopKRouter(
        GptOssConfig(hidden_size=32, num_local_experts=N_EXPERTS, num_experts_per_tok=top_k, num_hidden_layers=1)
    )
    hf.randomise(theirs, seed=2)
    theirs.bias.data.copy_(torch.tensor([1.0, -1.0, 0.5, 0.0]))
    x_ND = hf.hidden().flatten(0, 1)
    routing = route(
        x_ND @ theirs.weight.detach().T, FFNExperts(N_EXPERTS, top_k, "topk_softmax"), bias_E=theirs.bias.detach()
    )
    with hf.float64_inside(theirs):
        logits, weights, chosen = theirs(x_ND)
    agree(routing.logits_NE, logits)
    agree(dense_gate(routing), torch.zeros_like(logits).scatter(1, chosen, weights))


@pytest.mark.oracle("T16 top-1 routers learn")
@pytest.mark.parametrize(
    ("gate", "learns"),
    [
        ("softmax_topk", True),
        ("softmax_topk_ste", True),
        ("topk_softmax", False),
        ("softmax_topk_renorm", False),
    ],
)
def test_top1_router_has_the_gradient_of_its_probability(gate: str, learns: bool, agree: Agreement) -> None:
    """By the chain rule written out: d(w f)/d logit_j = f dw/d logit_j; for p_e it is p_e (delta_ej - p_j).

    A softmax over one logit, and p / p, are constants: such routers learn nothing from the task.
    """
    ours = MixtureOfExperts(hf.OURS, FFNExperts(N_EXPERTS, 1, gate))
    hf.randomise(ours, seed=3)
    x_ND = hf.hidden().flatten(0, 1)
    direction_ND = torch.randn(x_ND.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    output, routing = ours(x_ND[None])
    (output[0] * direction_ND).sum().backward()

    expected_ED = torch.zeros(N_EXPERTS, 32, dtype=torch.float64)
    for x_D, direction_D in zip(x_ND, direction_ND, strict=True):
        p = (ours.router.detach() @ x_D).softmax(-1)
        e = int(p.argmax())
        y_D = expert(ours, e, x_D)
        for j in range(N_EXPERTS):
            slope = p[e] * ((1.0 if j == e else 0.0) - p[j]) if learns else 0.0
            expected_ED[j] += slope * (y_D @ direction_D) * x_D
    agree(ours.router.grad, expected_ED, what="d router")
    assert bool(ours.router.grad.norm() > 1) is learns
    weight = routing.probs_NE.amax(-1, keepdim=True) if gate == "softmax_topk" else torch.ones_like(routing.weights_NK)
    agree(routing.weights_NK, weight, what="weights")


def expert(module: MixtureOfExperts, e: int, x_D: Tensor) -> Tensor:
    a_F = module.w_gate[e].detach() @ x_D
    h_F = a_F * torch.sigmoid(a_F) * (module.w_up[e].detach() @ x_D)
    return h_F @ module.w_down[e].detach()


@pytest.mark.oracle("T4 column groups add up to the dense FFN")
@pytest.mark.parametrize("split", [2, 3, 4])
def test_all_column_groups_of_a_model_add_up_to_its_ffn(split: int, agree: Agreement) -> None:
    """Routed to every group of one dense model, with equal gates made 1 by a gain: the dense SwiGLU itself."""
    dense = SwiGLU(32, 48)
    hf.randomise(dense, seed=4)
    other = SwiGLU(32, 48)
    hf.randomise(other, seed=5)
    n = 2 * split
    config = replace(hf.OURS, experts=("general", "code"))
    ours = MixtureOfExperts(config, FFNExperts(n, split, "softmax_topk_renorm", split=split, gain=(split, 1.0)))
    ours.double()
    for name in ("w_gate", "w_up", "w_down"):
        groups = [getattr(model, name).detach().chunk(split) for model in (dense, other)]
        getattr(ours, name).data.copy_(torch.stack([*groups[0], *groups[1]]))
    # The first channel is always 1 and only it is read: logits 1 for the groups of `dense`, -1 for the others.
    ours.router.data.zero_()
    ours.router.data[:split, 0], ours.router.data[split:, 0] = 1.0, -1.0
    x = hf.hidden()
    x[..., 0] = 1.0
    agree(ours(x)[0], dense(x)[0])


@pytest.mark.oracle("T4 column groups are narrower public experts")
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_split_experts_are_a_block_of_narrower_ones(top_k: int, agree: Agreement) -> None:
    """FlexOlmo with 8 experts of half the width, whose columns are the halves of 4 experts'."""
    settings = FFN | {"intermediate_size": 24}
    theirs = FlexOlmoSparseMoeBlock(
        eager(FlexOlmoConfig(**settings, num_experts=8, num_experts_per_tok=top_k, pad_token_id=0))
    )
    hf.randomise(theirs, seed=6)
    ours = MixtureOfExperts(hf.OURS, FFNExperts(8, top_k, split=2)).double()
    ours.load_state_dict(hf.experts(theirs))
    with hf.float64_inside(theirs):
        expected = theirs(hf.hidden())
    agree(ours(hf.hidden())[0], expected)


@pytest.mark.oracle("T16 dense router gradient is that of the soft mixture")
@pytest.mark.parametrize("top_k", [1, 2])
def test_dense_router_gradient(top_k: int, agree: Agreement) -> None:
    """The value of the sparse block; the router's gradient of the one that sends every token everywhere."""
    sparse = MixtureOfExperts(hf.OURS, FFNExperts(N_EXPERTS, top_k))
    hf.randomise(sparse, seed=7)
    mixed = MixtureOfExperts(hf.OURS, FFNExperts(N_EXPERTS, top_k, dense_router_gradient=True)).double().train()
    soft = MixtureOfExperts(hf.OURS, FFNExperts(N_EXPERTS, N_EXPERTS)).double()
    direction = torch.randn(2, hf.TIME, 32, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for module in (sparse, mixed, soft):
        module.load_state_dict(sparse.state_dict())
        (module(hf.hidden())[0] * direction).sum().backward()
    agree(mixed(hf.hidden())[0], sparse(hf.hidden())[0])
    agree(mixed.router.grad, soft.router.grad, what="d router")
    for name in ("w_gate", "w_up", "w_down"):
        agree(getattr(mixed, name).grad, getattr(sparse, name).grad, what=f"d {name}")
