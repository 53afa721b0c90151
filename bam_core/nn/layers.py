"""The parts that dense models and mixtures share: norm, rotary embedding, SwiGLU, vocabulary.

No biases anywhere. Parameters come uninitialised: `lm.init_weights` or a checkpoint fills them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def empty(*shape: int) -> nn.Parameter:
    """An uninitialised parameter."""
    return nn.Parameter(torch.empty(shape))


class Norm(nn.Module):
    """RMS or mean-centred layer norm with a scale and no bias, computed in float32 or wider.

    rms: w * x / sqrt(mean(x^2) + eps);  layer: the same after subtracting the mean.
    """

    def __init__(self, d: int, eps: float, kind: Literal["rms", "layer"]) -> None:
        super().__init__()
        self.weight = empty(d)
        self.eps = eps
        self.kind = kind

    def forward(self, x_BTD: Tensor) -> Tensor:
        shape = self.weight.shape
        if self.kind == "layer":  # the fused kernel accumulates bf16 in float32 itself
            return F.layer_norm(x_BTD, shape, self.weight, None, self.eps)
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        return F.rms_norm(x_BTD.to(wide), shape, self.weight.to(wide), self.eps).to(x_BTD.dtype)


@lru_cache(maxsize=16)
def rotary_tables(
    seq_len: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos_TC and sin_TC of pos * theta^(-2j/C), for pairs (j, j + C/2); the first half of sin_TC is negated.

    Angles are computed in float32, as the code behind every public checkpoint does, then cast to `dtype`.
    The result is shared between calls: never write to it.
    Source: RoFormer (Su et al. 2021), Eq. 15, in the "half" pairing of GPT-NeoX and Llama.
    """
    # A table first made for inference must serve training too.
    with torch.inference_mode(False), torch.no_grad():
        channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        inverse_frequency = 1.0 / (theta ** (channel / head_dim))
        angle = torch.outer(torch.arange(seq_len, dtype=torch.float32, device=device), inverse_frequency)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def apply_rotary(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Rotate each pair (x_j, x_{j+C/2}) of every head by its position's angle, with `rotary_tables`."""
    half = x_BTHC.shape[-1] // 2
    return torch.addcmul(x_BTHC * cos_TC[:, None], x_BTHC.roll(half, -1), sin_TC[:, None])


class SwiGLU(nn.Module):
    """FFN(x) = (silu(x W_gate^T) * (x W_up^T)) W_down, hidden width F."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w_gate = empty(d_ff, d_model)
        self.w_up = empty(d_ff, d_model)
        self.w_down = empty(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        """The output, and None: a dense FFN routes nothing."""
        h_BTF = F.silu(F.linear(x_BTD, self.w_gate)) * F.linear(x_BTD, self.w_up)
        return h_BTF @ self.w_down, None


class Vocabulary(nn.Module):
    """A matrix with one row per token: looked up at the input, compared with at the output."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = empty(vocab_size, d_model)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        return F.linear(hidden_BTD, self.weight)
