"""What training does to routing beside the gradient: noise for sampling, a balancing bias, the end of a router bias,
attention that starts soft.

Each is a pure function of the step and of what the checkpoint holds, so a resumed run ends bit-identical, and of the
global batch, so ranks and micro-batches change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp

import torch
from torch import Tensor

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.lm import LM
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.routing import Noise
from bam_core.seeds import child_seed
from bam_core.train.parallel import rows_of_rank


def noise_of_step(
    model: ModelConfig, config: TrainConfig, step: int, rank: int = 0, world_size: int = 1
) -> Noise | None:
    """Seeds for this rank's rows, by (phase seed, step, number of the row in the global batch); None if none sample.

    The temperature falls as max(gumbel_min, exp(-gumbel_rate * step)). Source: BTX, section 3.3.
    """
    if model.ffn is None or model.ffn.gate != "sample_top1":
        return None
    rows = rows_of_rank(range(config.rows_per_batch), rank, world_size)
    seeds = tuple(child_seed(config.seed, f"noise/{step}/{row}") for row in rows)
    return Noise(seeds, max(config.gumbel_min, exp(-config.gumbel_rate * step)))


@torch.no_grad()
def move_balance(model: LM, assigned_LE: Tensor, rate: float) -> None:
    """Move each balancing bias by `rate` towards equal load: up below the mean, down above it; the mean stays 0.

    assigned_LE: the global batch's counts, for the layers that have FFN experts.
    Source: "Auxiliary-loss-free load balancing" (Wang et al. 2024), algorithm 1.
    """
    mixtures = [block.ffn for block in model.blocks if isinstance(block.ffn, MixtureOfExperts)]
    for mixture, assigned_E in zip(mixtures, assigned_LE, strict=True):
        if mixture.balance_bias is not None:
            missing_E = assigned_E.sum() - len(assigned_E) * assigned_E  # whole numbers: no rounding near balance
            moved_E = mixture.balance_bias.double() + rate * missing_E.sign()
            mixture.balance_bias.copy_(moved_E - moved_E.mean())


@torch.no_grad()
def fade_router_biases(model: LM, starts: Mapping[str, Tensor], config: TrainConfig, step: int) -> None:
    """Set each router bias to what step `step` (from 0) runs with: its start, taken to 0 on a straight line."""
    n_fading = config.router_bias_frac * config.n_steps
    left = max(0.0, 1 - step / n_fading) if n_fading else 0.0
    for name, start_E in starts.items():
        model.get_parameter(name).copy_(start_E * left)


def harden_attention(model: LM, config: TrainConfig, step: int) -> None:
    """Set how soft top-k attention is in step `step` (from 0): all at first, then less on a straight line, then not."""
    n_soft = config.attention_soft_frac * config.n_steps
    for block in model.blocks:
        if isinstance(block.attn, MixtureOfAttention):
            block.attn.softness = max(0.0, 1 - step / n_soft) if n_soft else 0.0
