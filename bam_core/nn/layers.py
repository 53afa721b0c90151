"""The parts that dense models and mixtures share: norm, rotary embedding, FFN, vocabulary.

Biases are there where a config asks for them. Parameters come uninitialised: `lm.init_weights` or a checkpoint fills
them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import pi
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import ModelConfig, RopeScaling
from bam_core.nn.rms import rms_norm

NormKind = Literal["rms", "layer"]
RotaryPairs = Literal["half", "interleaved"]


def empty(*shape: int) -> nn.Parameter:
    """An uninitialised parameter."""
    return nn.Parameter(torch.empty(shape))


def scaled(x: Tensor, factor: float) -> Tensor:
    """x times the factor; x itself where that is 1."""
    return x if factor == 1 else x * factor


class Norm(nn.Module):
    """RMS or mean-centred layer norm with a scale, computed in float32 or wider.

    rms: w * x / sqrt(mean(x^2) + eps);  layer: the same after subtracting the mean. bias: is added to either.
    n_models: that many scales, w_ED, and biases, of which each position has its own mix; 0 for one scale.
    """

    def __init__(self, d: int, eps: float, kind: NormKind, n_models: int = 0, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = empty(n_models, d) if n_models else empty(d)
        self.bias = empty(*self.weight.shape) if bias else None
        self.eps = eps
        self.kind = kind

    def forward(self, x_BTD: Tensor, mix_BTE: Tensor | None = None) -> Tensor:
        """mix_BTE: the part of each scale, where there are several."""
        if self.weight.ndim == 2:
            assert mix_BTE is not None, f"{len(self.weight)} scales and nothing to mix them by"
            return self._mixed(x_BTD, mix_BTE)
        shape = self.weight.shape
        if self.kind == "layer":  # the fused kernel accumulates bf16 in float32 itself
            return F.layer_norm(x_BTD, shape, self.weight, self.bias, self.eps)
        if self.bias is not None:
            wide = torch.promote_types(x_BTD.dtype, torch.float32)
            normed = F.rms_norm(x_BTD.to(wide), shape, self.weight.to(wide), self.eps)
            return (normed + self.bias.to(wide)).to(x_BTD.dtype)
        if x_BTD.device.type == "cpu" and not torch.compiler.is_compiling():
            return rms_norm(x_BTD, self.weight, self.eps)
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        return F.rms_norm(x_BTD.to(wide), shape, self.weight.to(wide), self.eps).to(x_BTD.dtype)

    def _mixed(self, x_BTD: Tensor, mix_BTE: Tensor) -> Tensor:
        wide, shape = torch.promote_types(x_BTD.dtype, torch.float32), x_BTD.shape[-1:]
        x = x_BTD.to(wide)
        normed = F.layer_norm(x, shape, eps=self.eps) if self.kind == "layer" else F.rms_norm(x, shape, eps=self.eps)
        normed = normed * (mix_BTE.to(wide) @ self.weight.to(wide))
        if self.bias is not None:
            normed = normed + mix_BTE.to(wide) @ self.bias.to(wide)
        return normed.to(x_BTD.dtype)


def norm_channels(x_BTHC: Tensor, scale_HC: Tensor, eps: float, kind: NormKind) -> Tensor:
    """`Norm` over the channels of every head, each head with a scale of its own, in float32 or wider."""
    wide, channels = torch.promote_types(x_BTHC.dtype, torch.float32), x_BTHC.shape[-1:]
    x = x_BTHC.to(wide)
    normed = F.layer_norm(x, channels, eps=eps) if kind == "layer" else F.rms_norm(x, channels, eps=eps)
    return (normed * scale_HC.to(wide)).to(x_BTHC.dtype)


@lru_cache(maxsize=16)
def rotary_tables(
    seq_len: int,
    rotary_dim: int,
    theta: float,
    dtype: torch.dtype,
    device: torch.device,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """cos_TR and sin_TR of pos * theta^(-2j/R), for pairs (j, j + R/2); the first half of sin_TR is negated.

    Angles are computed in float32, as the code behind every public checkpoint does, then cast to `dtype`.
    The result is shared between calls: never write to it.
    Source: RoFormer (Su et al. 2021), Eq. 15, in the "half" pairing of GPT-NeoX and Llama.
    """
    # A table first made for inference must serve training too.
    with torch.inference_mode(False), torch.no_grad():
        channel = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device)
        inverse_frequency = 1.0 / (theta ** (channel / rotary_dim))
        if scaling is not None:
            inverse_frequency = SCALINGS[scaling.kind](inverse_frequency, scaling)
        angle = torch.outer(torch.arange(seq_len, dtype=torch.float32, device=device), inverse_frequency)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def _scale_all(frequency_J: Tensor, scaling: RopeScaling) -> Tensor:
    return frequency_J / scaling.factor


def _scale_llama3(frequency_J: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves as `_scale_all`, short ones not, and between them in parts that go with the number of turns.

    Source: Llama 3.1's code; the turns are those that a pair makes over the original context.
    """
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_seq_len
    assert low is not None, f"checked by RopeScaling.problems: {scaling}"
    assert high is not None, f"checked by RopeScaling.problems: {scaling}"
    assert context is not None, f"checked by RopeScaling.problems: {scaling}"
    wavelength_J = 2 * pi / frequency_J
    kept_J = (context / wavelength_J - low) / (high - low)
    smooth_J = (1 - kept_J) * frequency_J / scaling.factor + kept_J * frequency_J
    scaled_J = torch.where(wavelength_J > context / low, frequency_J / scaling.factor, smooth_J)
    return torch.where(wavelength_J < context / high, frequency_J, scaled_J)


SCALINGS: dict[str, Callable[[Tensor, RopeScaling], Tensor]] = {"linear": _scale_all, "llama3": _scale_llama3}


def rotary_of(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """`rotary_tables` of all of a model's positions."""
    sizes = config.max_seq_len, config.rotary_dim, config.rope_theta
    return rotary_tables(*sizes, dtype, device, config.rope_scaling)


def apply_rotary(x_BTHC: Tensor, cos_TR: Tensor, sin_TR: Tensor, pairs: RotaryPairs = "half") -> Tensor:
    """Rotate each pair of the first R channels of every head by its position's angle, with `rotary_tables`.

    Pairs are (x_j, x_{j+R/2}), or (x_{2j}, x_{2j+1}) if interleaved. Tables with a leading B give each row
    positions of its own. Channels from R on stay as they are.
    """
    rotary_dim = cos_TR.shape[-1]
    if rotary_dim < x_BTHC.shape[-1]:
        turned = apply_rotary(x_BTHC[..., :rotary_dim], cos_TR, sin_TR, pairs)
        return torch.cat((turned, x_BTHC[..., rotary_dim:]), -1)
    if pairs == "interleaved":
        heads = x_BTHC.shape[:-1]
        apart_BTHR = x_BTHC.reshape(*heads, -1, 2).mT.flatten(-2)
        return apply_rotary(apart_BTHR, cos_TR, sin_TR).view(*heads, 2, -1).mT.flatten(-2)
    turned_BTHR: Tensor = _Rotate.apply(x_BTHC, cos_TR.unsqueeze(-2), sin_TR.unsqueeze(-2))  # type: ignore[no-untyped-call]
    return turned_BTHR


class _Rotate(torch.autograd.Function):
    """x cos + roll(x) sin. The gradient is turned back by the same two operations; autograd's own takes four."""

    @staticmethod
    def forward(ctx: Any, x_BTHR: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1R, sin_T1R)
        return (x_BTHR * cos_T1R).addcmul_(x_BTHR.roll(x_BTHR.shape[-1] // 2, -1), sin_T1R)

    @staticmethod
    def backward(ctx: Any, grad_BTHR: Tensor) -> tuple[Tensor, None, None]:
        cos_T1R, sin_T1R = ctx.saved_tensors
        # The sine's halves are each other's negative, so the rolled sine of the transpose is minus the sine.
        return (
            (grad_BTHR * cos_T1R).addcmul_(grad_BTHR.roll(grad_BTHR.shape[-1] // 2, -1), sin_T1R, value=-1),
            None,
            None,
        )


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


Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class FFN(nn.Module):
    """FFN(x) = (act(x W_gate^T + b_gate) * (x W_up^T + b_up)) W_down + b_down; without a gate, act(x W_up^T + b_up)
    takes the place of the product. `SwiGLU` is the plain case."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, width = config.d_model, config.d_ff
        self.activation = ACTIVATIONS[config.activation]
        self.w_gate = empty(width, D) if config.gated else None
        self.w_up = empty(width, D)
        self.w_down = empty(width, D)
        self.b_gate = empty(width) if config.ffn_bias and config.gated else None
        self.b_up = empty(width) if config.ffn_bias else None
        self.b_down = empty(D) if config.ffn_bias else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        """The output, and None: a dense FFN routes nothing."""
        gate_BTF = gate_linear(x_BTD, self.w_gate, self.b_gate)
        h_BTF = hidden(self.activation, gate_BTF, F.linear(x_BTD, self.w_up, self.b_up))
        return F.linear(h_BTF, self.w_down.mT, self.b_down), None


def gate_linear(x_BTD: Tensor, w_FD: Tensor | None, bias_F: Tensor | None) -> Tensor | None:
    """x w^T + b; None where an FFN has no gate."""
    return None if w_FD is None else F.linear(x_BTD, w_FD, bias_F)


def hidden(activation: Activation, gate_BTF: Tensor | None, up_BTF: Tensor) -> Tensor:
    """An FFN's hidden values."""
    return activation(up_BTF) if gate_BTF is None else activation(gate_BTF) * up_BTF


def dense_ffn(config: ModelConfig) -> SwiGLU | FFN:
    """One FFN of a model, of width d_ff."""
    return SwiGLU(config.d_model, config.d_ff) if config.is_swiglu else FFN(config)


class Vocabulary(nn.Module):
    """A matrix with one row per token: looked up at the input, compared with at the output.

    n_models: that many of them, w_EVD, which `nn.shared` looks up and compares with; 0 for one. bias: of the logits.
    """

    def __init__(self, vocab_size: int, d_model: int, n_models: int = 0, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = empty(n_models, vocab_size, d_model) if n_models else empty(vocab_size, d_model)
        self.bias = empty(*self.weight.shape[:-1]) if bias else None

    def embed(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)
