"""Errors to plant in our code, or in what an oracle compares: each a function that patches, undone after the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from types import ModuleType
from typing import Any

import pytest
import test_attention_modules
import test_router_losses
import test_training_invariance
import torch
from torch import Tensor

from bam_core.nn import attention, costs, layers, moa, moe, routing
from bam_core.nn.block import Block, LayerRouting
from bam_core.train import step

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]

# Rotary embedding, norms.


def other_pairs(patch: Patch) -> None:
    swapped = {"half": "interleaved", "interleaved": "half"}
    plain = attention.half_pairs

    def half_pairs(w: Tensor, config: Any) -> Tensor:
        return plain(w, replace(config, rotary_pairs=swapped[config.rotary_pairs]))

    patch.setattr(attention, "half_pairs", half_pairs)


def rows_of_pairs_not_reordered(patch: Patch) -> None:
    patch.setattr(attention, "half_pairs", lambda w, config: w)


def last_channels_rotate(patch: Patch) -> None:
    def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairs: Any = "half") -> Tensor:
        still = x.shape[-1] - cos.shape[-1]
        return torch.cat((x[..., :still], ROTATE(x[..., still:], cos, sin, pairs)), -1)

    patch.setattr(attention, "apply_rotary", rotate)


def no_qk_norm(patch: Patch) -> None:
    patch.setattr(attention, "norm_channels", lambda x, *_: x)


def one_scale_for_all_heads(patch: Patch) -> None:
    norm = attention.norm_channels
    patch.setattr(attention, "norm_channels", lambda x, scale, *rest: norm(x, scale[:1].expand_as(scale), *rest))


def norm_without_mean(patch: Patch) -> None:
    norm = layers.Norm.forward

    def forward(self: layers.Norm, x: Tensor, mix: Tensor | None = None) -> Tensor:
        patch.setattr(self, "kind", "rms")
        return norm(self, x, mix)

    patch.setattr(layers.Norm, "forward", forward)


def ffn_reads_the_stream_without_norm(patch: Patch) -> None:
    def forward(self: Block, x: Tensor, rotary: Any, cache: Any, noise: Any, mix: Any, text: Any) -> Any:
        attended, attention_routing = self.attn(self.norm(x, mix), rotary, cache)
        out, ffn_routing = self.ffn(x)
        return x + attended + out, LayerRouting(attention_routing, ffn_routing)

    patch.setattr(Block, "forward", forward)


ROTATE = layers.apply_rotary


# Attention.


def attend_with(patch: Patch, change: Callable[..., Tensor]) -> None:
    real = attention.attend
    patch.setattr(attention, "attend", lambda q, k, v, mask=None, *scores: change(real, q, k, v, mask))


def no_scale(patch: Patch) -> None:
    attend_with(patch, lambda real, q, k, v, mask: real(q * sqrt(q.shape[-1]), k, v, mask))


def keys_of_another_group(patch: Patch) -> None:
    attend_with(patch, lambda real, q, k, v, mask: real(q, k.roll(1, 2), v, mask))


def query_heads_interleaved_over_groups(patch: Patch) -> None:
    """Query head h reads group h % G, not h // (H/G)."""

    def change(real: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        order = torch.arange(q.shape[2]).view(-1, k.shape[2]).T.flatten()
        return real(q[:, :, order], k, v, mask)[:, :, order.argsort()]

    attend_with(patch, change)


def token_hidden_from_itself(patch: Patch) -> None:
    def change(real: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        past = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(-1)
        past[0, 0] = True
        return real(q, k, v, past.expand(q.shape[0], -1, -1))

    attend_with(patch, change)


def positions_off_by_one(patch: Patch) -> None:
    """After a cache: new positions start one too late."""
    positions = attention.Cache.positions

    def late(self: attention.Cache, n_new: int) -> Any:
        found = positions(self, n_new)
        if isinstance(found, slice):
            return slice(found.start + bool(found.start), found.stop + bool(found.start))
        return found + bool(self.length)

    patch.setattr(attention.Cache, "positions", late)


def pads_are_seen(patch: Patch) -> None:
    def mask(self: attention.LayerCache, start: int, end: int) -> Tensor | None:
        if self.pad_B is None:
            return None
        key = torch.arange(end)
        return (key <= key[start:, None]).expand(len(self.pad_B), -1, -1)

    patch.setattr(attention.LayerCache, "_mask", mask)


def positions_count_pads(patch: Patch) -> None:
    """A shift of all positions is nothing to rotary embedding, so the shift grows: pads stretch positions."""
    positions = attention.Cache.positions

    def stretched(self: attention.Cache, n_new: int) -> Any:
        found = positions(self, n_new)
        return found if isinstance(found, slice) else (found * 2).clamp(max=63)

    patch.setattr(attention.Cache, "positions", stretched)


def shared_queries_in_the_wrong_order(patch: Patch) -> None:
    """(expert, group, query) read as (group, expert, query)."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, cache: Any, n_experts: int, scores: Any) -> Tensor:
        return attention.attend_past(q, k, v, cache).unflatten(2, (n_experts, -1)).flatten(3)

    patch.setitem(moa.ATTEND, "shared", wrong)


def values_in_the_wrong_order(patch: Patch) -> None:
    """(expert, group) read as (group, expert)."""
    real = moa.ATTEND["value_only"]

    def wrong(q: Tensor, k: Tensor, v: Tensor, cache: Any, n_experts: int, scores: Any) -> Tensor:
        return real(q, k, v.unflatten(2, (-1, n_experts)).transpose(2, 3).flatten(2, 3), cache, n_experts, scores)

    patch.setitem(moa.ATTEND, "value_only", wrong)


# Gates and experts.


def attention_gates_on_the_wrong_experts(patch: Patch) -> None:
    gate = moa.dense_gate
    patch.setattr(moa, "dense_gate", lambda found: gate(found).roll(1, -1))


def gate(name: str, other: str) -> Plant:
    """Another gate under this name."""
    return lambda patch: patch.setitem(routing.GATES, name, routing.GATES[other])


def other_experts(patch: Patch) -> None:
    real = moe.route

    def route(*args: Any, **kwargs: Any) -> routing.Routing:
        found = real(*args, **kwargs)
        return replace(found, experts_NK=found.n_experts - 1 - found.experts_NK)

    patch.setattr(moe, "route", route)


def route_with(*modules: ModuleType, **changes: Any) -> Plant:
    def plant(patch: Patch) -> None:
        for module in modules:
            real = module.route
            patch.setattr(module, "route", lambda *args, real=real, **kwargs: real(*args, **kwargs | changes))

    return plant


def balance_in_the_weights(patch: Patch) -> None:
    real = moe.route

    def route(logits: Tensor, experts: Any, *, balance_E: Any = None, **rest: Any) -> routing.Routing:
        return real(logits + balance_E, experts, **rest)

    patch.setattr(moe, "route", route)


def while_computing(**changes: Any) -> Plant:
    """Attributes of every MixtureOfExperts, changed while its forward runs."""

    def plant(patch: Patch) -> None:
        real = moe.MixtureOfExperts.forward

        def forward(self: moe.MixtureOfExperts, *args: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                for name, value in changes.items():
                    inner.setattr(self, name, value)
                return real(self, *args)

        patch.setattr(moe.MixtureOfExperts, "forward", forward)

    return plant


def gate_and_up_swapped(patch: Patch) -> None:
    real = moe.MixtureOfExperts.forward

    def forward(self: moe.MixtureOfExperts, *args: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self, "_parameters", self._parameters | {"w_gate": self.w_up, "w_up": self.w_gate})
            return real(self, *args)

    patch.setattr(moe.MixtureOfExperts, "forward", forward)


def capacity_off_by_one(patch: Patch) -> None:
    patch.setattr(moe, "ceil", lambda x: int(x) + 2)


def sparse_router_gradient(patch: Patch) -> None:
    for module in (moe, moa):
        patch.setattr(module, "straight_through", routing.dense_gate)


# Losses, training, sizes.


def losses_with(name: str, change: Callable[..., Tensor]) -> Plant:
    """A loss as test_router_losses calls it, changed."""

    def plant(patch: Patch) -> None:
        real = getattr(test_router_losses, name)
        patch.setattr(test_router_losses, name, lambda found, **kwargs: change(real, found, **kwargs))

    return plant


def together(found: list[routing.Routing]) -> list[routing.Routing]:
    """All layers as one."""
    return [routing.Routing(*(torch.cat([getattr(layer, name) for layer in found]) for name in vars(found[0])))]


def squashed(found: list[routing.Routing]) -> list[routing.Routing]:
    return [replace(layer, probs_NE=layer.probs_NE.softmax(-1)) for layer in found]


TIMES_K = losses_with("load_balancing_loss", lambda real, r, **kw: real(r, **kw) * r[0].experts_NK.shape[-1])
POOLED = losses_with("load_balancing_loss", lambda real, r, **kw: real(together(r), **kw))
TWICE_SOFTMAX = losses_with("load_balancing_loss", lambda real, r, **kw: real(squashed(r), **kw))
SUMMED = losses_with("load_balancing_loss", lambda real, r, **kw: real(r, **kw) * len(r))
UNMASKED = losses_with("load_balancing_loss", lambda real, r, mask_N=None, **kw: real(r, **kw))
UNMASKED_Z = losses_with("router_z_loss", lambda real, r, mask_N=None: real(r))
SUMMED_Z = losses_with("router_z_loss", lambda real, r, **kw: real(r, **kw) * len(r))


def balance_not_by_share(patch: Patch) -> None:
    real, whole = step.load_balancing_loss, test_training_invariance.PHASE.batch_tokens
    patch.setattr(step, "load_balancing_loss", lambda r, *rest: real(r, *rest) * whole / r[0].probs_NE[..., 0].numel())


def no_z_loss(patch: Patch) -> None:
    real = step.router_z_loss
    patch.setattr(step, "router_z_loss", lambda *args: 0 * real(*args))


def balance_against_own_fractions(patch: Patch) -> None:
    patch.setattr(step, "_fractions", lambda *_: None)


def noise_of_the_part(patch: Patch) -> None:
    patch.setattr(routing.Noise, "rows", lambda self, a, b: routing.Noise(self.row_seeds[: b - a], self.temperature))


def short_attention_looks_ahead(patch: Patch) -> None:
    real = test_attention_modules.short_attention
    patch.setattr(test_attention_modules, "short_attention", lambda q, k, v: real(q, k.roll(-1, 1), v))


def counted(**changes: Callable[[Any], int]) -> Plant:
    def plant(patch: Patch) -> None:
        real = costs._copies
        patch.setattr(
            costs,
            "_copies",
            lambda config, layer: (n := real(config, layer))._replace(**{k: f(n) for k, f in changes.items()}),
        )

    return plant
