"""What holds of a mixture as written, where what experts share is routed: each dense model's part is in it, whole.

Given to one dense model alone, the embedding must be that model's, every norm must give what that model's gives, and so
must the head. This runs the mixture's real modules, so it catches parts that were lost, swapped or laid out wrongly.

Memory: CHUNK_ROWS rows of one tensor of each dense model in float64; those of the others are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.checkpoint import TensorSource
from bam_core.config import ModelConfig
from bam_core.nn.block import residual_norm
from bam_core.nn.shapes import tensor_shapes
from bam_core.nn.shared import embed_each, mix_embeddings, routed_logits

WIDE = torch.float64

CHUNK_ROWS = 4096
"""Rows of a vocabulary that are looked at together."""

Compared = tuple[str, Tensor, Tensor]
"""A tensor of the mixture, what its module gave, and what the dense model's gives."""


def shared_receipt(
    config: ModelConfig, mixture: TensorSource, dense: Mapping[str, TensorSource], tokens_BT: Tensor
) -> dict[str, dict[str, Any]]:
    """Dense model -> {max_abs_diff, max_abs_value, tensor}: the largest difference of what came out, the largest such
    output, and the tensor that it is of. dense: the mixture's models, in order. Exact: a difference is a fault."""
    found = {}
    for place, name in enumerate(config.experts):
        worst: dict[str, Any] = {"max_abs_diff": 0.0, "max_abs_value": 0.0, "tensor": None}
        for tensor, got, wanted in _compared(config, mixture, dense[name], place, tokens_BT):
            difference = (got - wanted).abs().max().item()
            if worst["tensor"] is None or difference > worst["max_abs_diff"] or isnan(difference):
                value = wanted.abs().max().item()
                worst = {"max_abs_diff": difference, "max_abs_value": value, "tensor": tensor}
        found[name] = worst
    return found


def _compared(
    config: ModelConfig, mixture: TensorSource, own: TensorSource, place: int, tokens_BT: Tensor
) -> Iterator[Compared]:
    one_E = F.one_hot(torch.tensor(place), len(config.experts)).to(WIDE)
    mix_BTE = one_E.expand(*tokens_BT.shape, -1)

    def alone(name: str, rows: slice = slice(None)) -> Tensor:
        """The dense model's slice in its place, wide, between zeros."""
        kept = mixture.get(name)[place][rows]
        stacked = torch.zeros(len(config.experts), *kept.shape, dtype=WIDE)
        stacked[place] = kept
        return stacked

    x_BTD = F.embedding(tokens_BT, own.get("embed.weight")).to(WIDE)
    table = "embed.weight" if config.tie_embeddings else "head.weight"
    for start in range(0, config.vocab_size, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        if config.is_routed("embed"):
            w_VD = own.get("embed.weight")[rows].to(WIDE)
            each_1VED = embed_each(torch.arange(len(w_VD))[None], alone("embed.weight", rows))
            yield "embed.weight", mix_embeddings(each_1VED, one_E.expand(1, len(w_VD), -1))[0], w_VD
        if config.is_routed("head"):
            assert config.shared is not None, "a head is routed with what is shared"
            name = "head.weight" if config.has_head else "embed.weight"
            bias_EV = alone("head.bias", rows) if config.head_bias else None
            own_V = own.get("head.bias")[rows].to(WIDE) if config.head_bias else None
            logits_BTV = routed_logits(x_BTD, mix_BTE, alone(name, rows), config.shared, bias_EV)
            yield name, logits_BTV, F.linear(x_BTD, own.get(table)[rows].to(WIDE), own_V)
    if config.is_routed("norms"):
        for name in (name for name in tensor_shapes(config) if name.endswith("norm.weight")):
            bias = name.removesuffix("weight") + "bias" if config.norm_bias else None
            got_BTD = _normed(config, alone(name), alone(bias) if bias else None, x_BTD, mix_BTE)
            own_bias = own.get(bias).to(WIDE) if bias else None
            yield name, got_BTD, _normed(config.dense(), own.get(name).to(WIDE), own_bias, x_BTD, None)


def _normed(config: ModelConfig, weight: Tensor, bias: Tensor | None, x_BTD: Tensor, mix_BTE: Tensor | None) -> Tensor:
    norm = residual_norm(config)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    norm.bias = nn.Parameter(bias, requires_grad=False) if bias is not None else None
    h_BTD: Tensor = norm(x_BTD, mix_BTE)
    return h_BTD
