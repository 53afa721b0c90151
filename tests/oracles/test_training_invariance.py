"""One global batch, one gradient: whatever ranks and micro-batches, that of the plain objective on the whole batch.

The expected gradient is autograd's of `naive.loss`, which computes the batch at once. So this checks the objective
(NLL, load balancing against given f, z-loss, means over layers and tokens) and its split in one.
Mutations, each planted in `test_oracles_can_fail.py`: balance weighted by 1 rather than the part's share of the batch;
z-loss left out; f of this part for the given one; noise by the number of the row in the part.
"""

from __future__ import annotations

from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from agreement import Agreement

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.routing import Noise
from bam_core.train.optim import Optimizer
from bam_core.train.parallel import rows_of_rank
from bam_core.train.step import accumulate_gradient

DENSE = ModelConfig(vocab_size=31, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, max_seq_len=8)
NAMES = ("general", "code", "law")
# Large coefficients, so that a router loss that depends on the split would show.
PHASE = TrainConfig(
    tokens=320, batch_tokens=40, lr=1e-2, shares={"a": 1.0}, seq_len=8, dtype="fp64", load_balancing_coef=1.0,
    z_loss_coef=0.5,
)  # fmt: skip
FRAC = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
SPLITS = [(1, 5), (1, 1), (1, 2), (2, 5), (3, 1)]


def mixture(attention: AttentionExperts | None, ffn: FFNExperts, **changes: object) -> ModelConfig:
    return replace(DENSE, attention=attention, ffn=ffn, experts=NAMES, **changes)


MIXTURES = {
    "bam": mixture(AttentionExperts(3, 3), FFNExperts(3)),
    "btx-top2": mixture(None, FFNExperts(3, 2, "topk_softmax")),
    "shared-kv-ste": mixture(AttentionExperts(3, 3, "shared"), FFNExperts(3, 2, "softmax_topk_ste")),
    "value-only-dense-gradient": mixture(
        AttentionExperts(3, 3, "value_only"), FFNExperts(3, 1, dense_router_gradient=True)
    ),
    "capacity-balance-bias": mixture(None, FFNExperts(3, 1, capacity_factor=0.8, balance="bias")),
    "sample-top1": mixture(None, FFNExperts(3, 1, "sample_top1")),
    "one-layer": mixture(AttentionExperts(3, 2, layers=(0,)), FFNExperts(3, 1, layers=(1,))),
    "sequential-qk-norm": mixture(AttentionExperts(3, 3), FFNExperts(3), residual="sequential", qk_norm=True),
}


def noise_of(config: ModelConfig) -> Noise | None:
    sampled = config.ffn is not None and config.ffn.gate == "sample_top1"
    return Noise(tuple(range(100, 100 + PHASE.rows_per_batch)), 0.7) if sampled else None


def random_model(config: ModelConfig) -> LM:
    model = LM(config)
    init_weights(model, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.cast(torch.float64).parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.train()


def split_gradient(
    config: ModelConfig, rows: np.ndarray, world_size: int, micro: int, frac: list[list[float]]
) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    noise = noise_of(config)
    for rank in range(world_size):
        model = random_model(config)
        optimizer = Optimizer(model, PHASE)
        own = Noise(rows_of_rank(noise.row_seeds, rank, world_size), noise.temperature) if noise else None
        accumulate_gradient(model, optimizer, rows_of_rank(rows, rank, world_size), PHASE, micro, frac, own)
        for group in optimizer.groups:
            for name, grad in zip(group.names, group.grad_views, strict=True):
                total[name] = total.get(name, 0) + grad.clone()
    return total


@pytest.mark.oracle("T13 gradient of the global batch, however split", each=True)
@pytest.mark.parametrize("name", MIXTURES)
def test_any_split_has_the_gradient_of_the_plain_objective(name: str, agree: Agreement) -> None:
    config = MIXTURES[name]
    frac = FRAC if config.ffn_at(0) else FRAC[1:]
    rows = np.random.default_rng(2).integers(0, 31, (PHASE.rows_per_batch, 9))
    model = random_model(config)
    weights = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    noise, mode = noise_of(config), naive.Mode(training=True)
    if noise is not None:
        gumbel = {layer: noise.gumbel(layer, 8, 3, torch.device("cpu")).double() for layer in range(2)}
        mode = naive.Mode(True, gumbel, noise.temperature)
    naive.loss(config, weights, torch.from_numpy(rows), PHASE, frac, mode).backward()
    for world_size, micro in SPLITS:
        found = split_gradient(config, rows, world_size, micro, frac)
        assert found, "no gradient"
        for tensor, grad in found.items():
            expected = weights[tensor].grad
            expected = torch.zeros_like(grad) if expected is None else expected
            agree(grad, expected, what=f"{world_size} ranks, {micro} rows: d {tensor}")
