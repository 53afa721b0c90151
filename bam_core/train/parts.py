"""The parts of a mixture that may train at their own pace: routers, attention experts, FFN experts, all that is shared.

A part that is frozen for a while has a learning rate of 0; its moments follow the gradients meanwhile, so that it
starts with a known scale. Gradients are computed all the same: freezing saves no time.
"""

from __future__ import annotations

from torch import nn

from bam_core.config import TrainConfig


def part_of(name: str, param: nn.Parameter) -> str:
    """`router`, `attention` or `ffn` (an expert's, of which there are several in one tensor), or `shared`."""
    *_, branch, tensor = ("", *name.split("."))
    if tensor == "router":
        return "router"
    n_dims_of_one = 1 if tensor.endswith("norm") or tensor.startswith("b_") else 2
    is_stacked = branch in ("attn", "ffn") and param.ndim > n_dims_of_one
    return {"attn": "attention", "ffn": "ffn"}[branch] if is_stacked else "shared"


def lr_factor(part: str, step: int, config: TrainConfig) -> float:
    """What the learning rate of step `step` (from 0) is multiplied by: 0 while the part is frozen."""
    frozen_frac = {"router": config.router_freeze_frac, "shared": config.shared_freeze_frac}
    if step < round(frozen_frac.get(part, config.expert_freeze_frac) * config.n_steps):
        return 0.0
    factor: float = getattr(config, f"{part}_lr_factor")
    return factor
