"""Errors to plant in what public families have beside the plain block; as in `planted`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planted import Patch, Plant
from torch import Tensor

from bam_core.config import ModelConfig
from bam_core.nn import attention, layers, lm, moa, shared
from bam_core.nn.block import Block


def scored(**changes: Any) -> Plant:
    """Every layer compares queries and keys otherwise."""

    def plant(patch: Patch) -> None:
        real = attention.scores_of
        for module in (attention, moa):
            patch.setattr(module, "scores_of", lambda config, layer: real(config, layer)._replace(**changes))

    return plant


def config_with(module: Any, name: str, place: int, **changes: Any) -> Plant:
    """A function of a module is given another config."""

    def plant(patch: Patch) -> None:
        real = getattr(module, name)

        def call(*args: Any) -> Any:
            config: ModelConfig = args[place]
            return real(*args[:place], replace(config, **changes), *args[place + 1 :])

        patch.setattr(module, name, call)

    return plant


def every_layer_rotates(patch: Patch) -> None:
    for module in (attention, moa):
        patch.setattr(module, "rotary_at", lambda config, layer, rotary: rotary)


def output_biases_without_their_gates(patch: Patch) -> None:
    real = moa.MixtureOfAttention.forward

    def forward(self: moa.MixtureOfAttention, *args: Any) -> Any:
        y_BTD, routing = real(self, *args)
        assert self.b_o is not None
        return y_BTD - self.gates(routing) @ self.b_o + self.b_o.mean(0), routing

    patch.setattr(moa.MixtureOfAttention, "forward", forward)


def no_norm_of_what_was_made(patch: Patch) -> None:
    patch.setattr(Block, "made", lambda self, branch, y, mix: y)


def one_norm_for_both_branches(patch: Patch) -> None:
    real = Block.read
    patch.setattr(Block, "read", lambda self, branch, x, mix: real(self, "attn", x, mix))


def other_gelu(patch: Patch) -> None:
    plain, tanh = layers.ACTIVATIONS["gelu"], layers.ACTIVATIONS["gelu_tanh"]
    patch.setitem(layers.ACTIVATIONS, "gelu", tanh)
    patch.setitem(layers.ACTIVATIONS, "gelu_tanh", plain)


def embeddings_as_they_are(patch: Patch) -> None:
    patch.setattr(lm, "scaled_embeddings", lambda config, x: x)


def logits_capped_before_their_scale(patch: Patch) -> None:
    def finished(config: ModelConfig, logits: Tensor) -> Tensor:
        assert config.logit_softcap is not None
        return (logits / config.logit_softcap).tanh() * config.logit_softcap * config.logit_scale

    patch.setattr(shared, "finished_logits", finished)


norms_per_head = config_with(attention, "qk_normed", 2, qk_norm_over="head")
frequencies_as_they_were = config_with(lm, "rotary_of", 0, rope_scaling=None)
