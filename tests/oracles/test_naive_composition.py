"""The folded, grouped, fused model against `naive`: logits and every gradient, in float64."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.lm import LM, init_weights

EXACT = {"rtol": 1e-9, "atol": 1e-11}
"""float64 algebra: only the order of additions differs."""

DENSE = ModelConfig(vocab_size=31, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=16)
NAMES = ("general", "code", "law")


def mixture(attention: AttentionExperts | None, ffn: FFNExperts | None, **changes: object) -> ModelConfig:
    return replace(DENSE, attention=attention, ffn=ffn, experts=NAMES, **changes)


CONFIGS = {
    "dense": DENSE,
    "dense-mha": replace(DENSE, n_kv_heads=4),
    "dense-mqa-layer-norm": replace(DENSE, n_kv_heads=1, norm="layer"),
    "dense-sequential-untied": replace(DENSE, residual="sequential", tie_embeddings=False),
    "btx": mixture(None, FFNExperts(3)),
    "btx-top2-topk-softmax": mixture(None, FFNExperts(3, 2, "topk_softmax")),
    "btx-top2-renorm-sequential": mixture(None, FFNExperts(3, 2, "softmax_topk_renorm"), residual="sequential"),
    "ffn-soft": mixture(None, FFNExperts(3, 3)),
    "bam": mixture(AttentionExperts(3, 3), FFNExperts(3)),
    "bam-mha": mixture(AttentionExperts(3, 3), FFNExperts(3), n_kv_heads=4),
    "bam-shared": mixture(AttentionExperts(3, 3, kv="shared"), FFNExperts(3)),
    "bam-shared-mqa": mixture(AttentionExperts(3, 3, kv="shared"), FFNExperts(3), n_kv_heads=1),
    "bam-shared-sequential-layer-norm": mixture(
        AttentionExperts(3, 3, kv="shared"), FFNExperts(3), residual="sequential", norm="layer"
    ),
    "attention-only-top1": mixture(AttentionExperts(3, 1), None),
    "attention-top2-shared": mixture(AttentionExperts(3, 2, "shared", "topk_softmax"), FFNExperts(3, 2)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_every_gradient_are_those_of_the_plain_sum_over_experts(name: str) -> None:
    config = CONFIGS[name]
    model = LM(config)
    init_weights(model, seed=1)
    model.cast(torch.float64)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # norms away from 1, routers with clear choices
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    tokens_BT = torch.randint(config.vocab_size, (2, 9), generator=generator)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    actual = model.logits(model(tokens_BT).hidden_BTD)
    expected = naive.logits(config, weights, tokens_BT)
    torch.testing.assert_close(actual, expected, **EXACT)

    direction = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    for tensor, parameter in model.named_parameters():
        expected_grad = weights[tensor].grad
        if expected_grad is None:  # an expert that no token chose, or a router whose weights are constant
            expected_grad = torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.grad, expected_grad, **EXACT, msg=lambda m, t=tensor: f"{t}: {m}")
