"""Router losses against the code of `transformers` and the formulas of Megatron, OLMo-core, megablocks and Switch.

Their units differ: HF pools over layers and counts k assignments per token (balanced: k); the others balance at 1; we
take f as a share of assignments (balanced: 1, whatever k), per layer, then the mean over layers.
Mutations, each planted in `test_oracles_can_fail.py`: f not divided by k; probabilities of probabilities (softmax
twice); f and P pooled over layers; masked tokens that count; a sum over layers for their mean.
"""

from __future__ import annotations

from math import exp, log

import hf
import pytest
import torch
from agreement import Agreement
from torch import Tensor, nn
from transformers.models.mixtral import modeling_mixtral

from bam_core.config import FFNExperts
from bam_core.nn.losses import load_balancing_loss, router_z_loss
from bam_core.nn.routing import Routing, route

N_EXPERTS, N_TOKENS = 4, 50


def random_logits(n_layers: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (n_layers, N_TOKENS, N_EXPERTS)
    skewed = torch.randn(shape, generator=generator, dtype=torch.float64) + torch.tensor([0.8, 0.3, 0.0, -0.4])
    return list((scale * skewed).unbind())


def routed(logits: list[Tensor], top_k: int) -> list[Routing]:
    return [route(layer, FFNExperts(N_EXPERTS, top_k)) for layer in logits]


def hugging_face(logits: list[Tensor], top_k: int, mask: Tensor | None = None) -> Tensor:
    class Here(nn.Module):
        """Names Mixtral's file, so that its casts to float32 are left out."""

    Here.__module__ = modeling_mixtral.__name__
    with hf.float64_inside(Here()):
        found: Tensor = modeling_mixtral.load_balancing_loss_func(tuple(logits), N_EXPERTS, top_k, mask)
    return found


def counts(logits: Tensor, top_k: int) -> Tensor:
    """n_i, one token after another."""
    n = torch.zeros(N_EXPERTS, dtype=torch.float64)
    for token in logits.tolist():
        for e in sorted(range(N_EXPERTS), key=lambda i: -token[i])[:top_k]:
            n[e] += 1
    return n


@pytest.mark.oracle("T12 load balancing is HF's / k, in one layer")
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_one_layer_is_that_of_hugging_face_over_k(top_k: int, agree: Agreement) -> None:
    logits = random_logits(1)
    agree(load_balancing_loss(routed(logits, top_k)), hugging_face(logits, top_k) / top_k)


@pytest.mark.oracle("T12 load balancing is the mean of HF's over layers, not HF's pool")
@pytest.mark.parametrize("top_k", [1, 2])
def test_layers_are_averaged_and_not_pooled(top_k: int, agree: Agreement) -> None:
    logits = random_logits(3)
    each = torch.stack([hugging_face([layer], top_k) for layer in logits]) / top_k
    ours = load_balancing_loss(routed(logits, top_k))
    agree(ours, each.mean())
    pooled = hugging_face(logits, top_k) / top_k
    assert abs(float(ours - pooled)) > 1e-3
    # And HF's own figure, from what our routing holds: counts and probabilities over all layers together.
    as_one = [torch.cat(logits)]
    agree(load_balancing_loss(routed(as_one, top_k)), pooled, what="pooled")


@pytest.mark.oracle("T12 masked tokens count for nothing, as in HF")
@pytest.mark.parametrize("top_k", [1, 2])
def test_masked_tokens_count_for_nothing(top_k: int, agree: Agreement) -> None:
    logits = random_logits(1)
    mask = torch.arange(N_TOKENS) % 3 > 0
    expected = hugging_face(logits, top_k, mask.long()) / top_k
    agree(load_balancing_loss(routed(logits, top_k), mask_N=mask), expected)
    agree(load_balancing_loss(routed([logits[0][mask]], top_k)), expected, what="without them")
    agree(router_z_loss(routed(logits, top_k), mask_N=mask), st_moe(logits[0][mask]), what="z loss")


def st_moe(logits: Tensor) -> Tensor:
    """(1/B) sum_t (ln sum_j exp(x_tj))^2 (ST-MoE, Eq. 5; BAM, Eq. 2), one token after another."""
    squares = [log(sum(exp(logit) for logit in token)) ** 2 for token in logits.tolist()]
    return torch.tensor(sum(squares) / len(squares), dtype=torch.float64)


def megatron(logits: Tensor, top_k: int) -> Tensor:
    """E / (k T^2) * sum_i n_i * sum_t p_ti."""
    p = logits.softmax(-1)
    return N_EXPERTS / (top_k * N_TOKENS**2) * (counts(logits, top_k) * p.sum(0)).sum()


def olmo_core(logits: Tensor, top_k: int) -> Tensor:
    """(E / k) * sum_i n_i P_i / T; megablocks writes the same, as a mean over layers."""
    return N_EXPERTS / top_k * (counts(logits, top_k) * logits.softmax(-1).mean(0)).sum() / N_TOKENS


def switch(logits: Tensor, top_k: int) -> Tensor:
    """N * sum_i f_i P_i, f: fraction of tokens, P: mean gate value (Switch, Eq. 4; BAM, Eq. 2); for top-1."""
    assert top_k == 1
    return N_EXPERTS * (counts(logits, 1) / N_TOKENS * logits.softmax(-1).mean(0)).sum()


@pytest.mark.oracle("T12 load balancing by other codebases' formulas")
@pytest.mark.parametrize(
    ("formula", "top_k"), [(megatron, 1), (megatron, 2), (olmo_core, 1), (olmo_core, 2), (switch, 1)]
)
def test_load_balancing_is_that_of_other_codebases(formula: object, top_k: int, agree: Agreement) -> None:
    logits = random_logits(3)
    expected = torch.stack([formula(layer, top_k) for layer in logits]).mean()  # type: ignore[operator]
    agree(load_balancing_loss(routed(logits, top_k)), expected)


@pytest.mark.oracle("T12 golden values, by hand")
def test_values_worked_out_by_hand(agree: Agreement) -> None:
    """Two experts, four tokens with p = (3/4, 1/4) three times and (1/4, 3/4) once: f = (3/4, 1/4), P = (5/8, 3/8).

    E sum f P = 2 (15/32 + 3/32) = 9/8. Every logsumexp is ln 4. Balanced, whatever k: 1. One expert for all: E.
    """
    logits = torch.tensor([[log(3.0), 0.0]] * 3 + [[0.0, log(3.0)]], dtype=torch.float64)
    routing = [route(logits, FFNExperts(2))]
    agree(load_balancing_loss(routing), torch.tensor(9 / 8))
    agree(router_z_loss(routing), torch.tensor(log(4.0) ** 2, dtype=torch.float64), what="z loss")
    for top_k in (1, 2, 3):
        balanced = 20 * torch.eye(4, dtype=torch.float64) + 10 * torch.eye(4, dtype=torch.float64).roll(1, 1)
        balanced += 5 * torch.eye(4, dtype=torch.float64).roll(2, 1)
        agree(load_balancing_loss([route(balanced, FFNExperts(4, top_k))]), torch.tensor(1.0), what="balanced")
    one = torch.zeros(5, 4, dtype=torch.float64)
    one[:, 2] = 100.0
    agree(load_balancing_loss([route(one, FFNExperts(4))]), torch.tensor(4.0), what="one expert for all")


@pytest.mark.oracle("T12 z-loss by ST-MoE's formula, and logits not squashed twice")
def test_z_loss_and_balance_see_logits(agree: Agreement) -> None:
    """Both losses, also of logits scaled by 10, which must move them."""
    for scale in (1.0, 10.0):
        logits = random_logits(2, scale)
        expected = torch.stack([st_moe(layer) for layer in logits]).mean()
        agree(router_z_loss(routed(logits, 2)), expected, what=f"z loss at {scale}")
        balance = torch.stack([megatron(layer, 2) for layer in logits]).mean()
        agree(load_balancing_loss(routed(logits, 2)), balance, what=f"balance at {scale}")
    small, large = (load_balancing_loss(routed(random_logits(2, scale), 2)) for scale in (1.0, 10.0))
    assert abs(float(small - large)) > 1e-2
