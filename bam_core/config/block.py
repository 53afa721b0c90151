"""What public families of models do otherwise than the plain block: scaled rotary embedding, and checks of the fields
of `ModelConfig` that say so. At their defaults a model is the plain one, and its JSON does not name them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bam_core.config.fields import booleans, choice, is_positive, positive_ints
from bam_core.errors import Problem

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS: tuple[str, ...] = ("silu", "gelu", "gelu_tanh", "relu")

Norms = Literal["before", "after", "around"]
NORMS: tuple[str, ...] = ("before", "after", "around")

BIASES = ("qkv_bias", "o_bias", "norm_bias", "ffn_bias", "head_bias")

OPTIONS = (
    "d_head",
    *BIASES,
    "activation",
    "gated",
    "norms",
    "parallel_norms",
    "qk_norm_over",
    "embed_scale",
    "logit_scale",
    "logit_softcap",
    "attention_softcap",
    "attention_scale",
    "window",
    "global_layers",
    "unrotated_layers",
    "rope_scaling",
)
"""Fields of `ModelConfig` that its JSON has only where they are not at their default."""


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies of a model that was stretched to a longer context.

    linear: every frequency divided by `factor`. llama3: those whose wavelength is above original_max_seq_len /
    low_freq_factor are, those below original_max_seq_len / high_freq_factor stay, and between it goes smoothly; the
    three further fields are for it alone. Source: the code of Llama 3.1.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_seq_len: int | None = None

    def problems(self) -> Iterator[Problem]:
        yield from choice("kind", self.kind, ("linear", "llama3"))
        if not is_positive(self.factor) or self.factor < 1:
            yield Problem("factor", self.factor, "must be a number of at least 1")
        bands = ("low_freq_factor", "high_freq_factor")
        for name in (*bands, "original_max_seq_len"):
            if self.kind == "linear" and getattr(self, name) is not None:
                yield Problem(name, getattr(self, name), "is for kind: llama3")
        if self.kind != "llama3":
            return
        wrong = [name for name in bands if not is_positive(getattr(self, name))]
        yield from (Problem(name, getattr(self, name), "must be a positive number") for name in wrong)
        if not wrong and self.low_freq_factor >= self.high_freq_factor:  # type: ignore[operator]
            reason = f"must be above low_freq_factor, {self.low_freq_factor}"
            yield Problem("high_freq_factor", self.high_freq_factor, reason)
        yield from positive_ints(self, ("original_max_seq_len",))


def option_problems(config: Any) -> Iterator[Problem]:
    """What is wrong with the OPTIONS of a `ModelConfig` whose sizes are right."""
    yield from booleans(config, (*BIASES, "gated"))
    yield from choice("activation", config.activation, ACTIVATIONS)
    yield from choice("norms", config.norms, NORMS)
    yield from choice("qk_norm_over", config.qk_norm_over, ("head", "all"))
    yield from _wiring_problems(config)
    for name in ("embed_scale", "logit_scale"):
        if not is_positive(getattr(config, name)):
            yield Problem(name, getattr(config, name), "must be a positive number", "1 changes nothing")
    for name in ("logit_softcap", "attention_softcap", "attention_scale"):
        value = getattr(config, name)
        if value is not None and not is_positive(value):
            yield Problem(name, value, "must be a positive number, or left out")
    yield from _layer_problems(config)
    if isinstance(config.rope_scaling, RopeScaling):
        yield from (problem.under("rope_scaling") for problem in config.rope_scaling.problems())
    elif config.rope_scaling is not None:
        yield Problem("rope_scaling", config.rope_scaling, "must have a kind and a factor, or be left out")


def _wiring_problems(config: Any) -> Iterator[Problem]:
    """Which options go together."""
    if config.residual == "parallel" and config.norms in ("after", "around"):
        yield Problem("norms", config.norms, "is for residual: sequential; a parallel block has them before")
    if isinstance(config.parallel_norms, bool) or config.parallel_norms not in (1, 2):
        yield Problem("parallel_norms", config.parallel_norms, "must be 1 or 2")
    elif config.parallel_norms == 2 and config.residual == "sequential":
        yield Problem("parallel_norms", 2, "is for residual: parallel; a sequential block has two as it is")
    if config.qk_norm_over == "all" and config.qk_norm is False:
        yield Problem("qk_norm_over", "all", "is for a model with qk_norm")
    if config.head_bias is True and config.tie_embeddings is True:
        remedy = "set tie_embeddings: false and give the head the embedding's values"
        yield Problem("head_bias", True, "needs an output head of its own", remedy)
    if config.ffn_bias is True and config.ffn is not None and config.ffn.split != 1:
        reason = "must be 1 with ffn_bias: the output's bias is part of no column group"
        yield Problem("ffn.split", config.ffn.split, reason)


def _layer_problems(config: Any) -> Iterator[Problem]:
    """Window and rotary embedding by layer."""
    if config.window is not None:
        yield from positive_ints(config, ("window",))
    elif config.global_layers:
        yield Problem("global_layers", config.global_layers, "are layers without the window, and there is none")
    for name in ("global_layers", "unrotated_layers"):
        layers = getattr(config, name)
        known = isinstance(layers, tuple) and all(type(layer) is int for layer in layers)
        if not known or list(layers) != sorted({layer for layer in layers if 0 <= layer < config.n_layers}):
            last = config.n_layers - 1
            yield Problem(name, layers, f"must be different layers from 0 to {last}, in ascending order")
