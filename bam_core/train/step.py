"""One global batch to one gradient: `L = L_NLL + alpha L_LB + beta L_z` (BAM, Eq. 2).

Every term is a mean over the tokens of the global batch, so any split into micro-batches and ranks gives the same
gradient. Load balancing is one only for given assignment fractions f; those of the whole batch are not known before its
last part is done, so each step balances against the f of the step before it (uniform at first). The figure that is
published is the usual one, f and P of the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.layers import scaled
from bam_core.nn.lm import LM, LayerRouting, Output
from bam_core.nn.losses import (
    IGNORED,
    assignments,
    linear_next_token_loss,
    load_balancing_loss,
    next_token_loss,
    router_z_loss,
)
from bam_core.nn.routing import Noise, Routing, mean_entropy, normalised_entropy
from bam_core.train.optim import Optimizer


class ExtraLoss(Protocol):
    """What a training minimises beside the likelihood of the text and the router losses; without a state of its own.

    nll_share: what the next-token loss is multiplied by in its presence. names: of the sums that it publishes.
    """

    nll_share: float
    names: tuple[str, ...]

    def __call__(
        self, inputs_BT: Tensor, targets_BT: Tensor, output: Output, logits_BTV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over the tokens whose target is not `IGNORED`: the loss to add, and those of `names`, in float64."""
        ...


@dataclass
class BatchSums:
    """What the parts of a batch add up to, over micro-batches and ranks; float64.

    scalars: nll, z loss and the mean entropy of each of `routers`, all over the global batch.
    assigned_LE: (token, choice) pairs per expert. probs_LE: router probabilities, summed over tokens. L counts the
    layers that have FFN experts. attention_LE: of those with attention experts, the one if the router is sparse, the
    other if it is soft. routers: the branches that are a mixture, and `shared` where that is routed. extra: of an
    `ExtraLoss`, by `extra_names`; empty without one.
    """

    scalars: Tensor
    assigned_LE: Tensor
    probs_LE: Tensor
    attention_LE: Tensor
    extra: Tensor
    routers: tuple[str, ...] = ()
    extra_names: tuple[str, ...] = ()

    @classmethod
    def zero(cls, model: ModelConfig, device: torch.device, extra_names: tuple[str, ...] = ()) -> BatchSums:
        n_mixtures = sum(model.ffn_at(layer) is not None for layer in range(model.n_layers))
        n_attention = sum(model.attention_at(layer) is not None for layer in range(model.n_layers))
        shape = (n_mixtures, model.ffn.n_experts if model.ffn else 0)
        attention = (n_attention, model.attention.n_experts if model.attention else 0)
        make = partial(torch.zeros, dtype=torch.float64, device=device)
        routers = tuple(name for name in ("ffn", "attention", "shared") if getattr(model, name) is not None)
        extra = make(len(extra_names))
        return cls(make(2 + len(routers)), make(shape), make(shape), make(attention), extra, routers, extra_names)

    def add(self, output: Output, z_loss: Tensor | None, batch_frac: float) -> None:
        """What the routers of a micro-batch did. z_loss: its own, where there are FFN experts."""
        for place, name in enumerate(self.routers, 2):
            self.scalars[place] += batch_frac * _entropy(output, name)
        if z_loss is not None:
            ffn = _of(output.routing, "ffn")
            self.scalars[1] += batch_frac * z_loss.detach()
            self.assigned_LE += assignments(ffn)
            self.probs_LE += torch.stack([_probs(layer) for layer in ffn])
        if attention := _of(output.routing, "attention"):
            is_soft = attention[0].experts_NK.shape[-1] == attention[0].n_experts
            self.attention_LE += torch.stack([_probs(a) for a in attention]) if is_soft else assignments(attention)

    def tensors(self) -> list[Tensor]:
        return [self.scalars, self.assigned_LE, self.probs_LE, self.attention_LE, self.extra]

    def expert_frac(self) -> list[list[float]]:
        """f of the batch, per layer; empty without FFN experts."""
        if not self.assigned_LE.numel():
            return []
        frac_LE: list[list[float]] = (self.assigned_LE / self.assigned_LE.sum(-1, keepdim=True)).tolist()
        return frac_LE

    def figures(self) -> dict[str, float]:
        """The losses of the global batch, and what its routers did.

        ffn_max_load, ffn_min_load: the largest and smallest fraction of a layer's assignments that an expert of any
        layer got; 1/E each when balanced.
        """
        nll, z_loss, *entropies = self.scalars.tolist()
        found = {"loss": nll} | dict(zip(self.extra_names, self.extra.tolist(), strict=True))
        if self.assigned_LE.numel():
            n_tokens = self.probs_LE.sum(-1, keepdim=True)  # a token's probabilities sum to 1
            frac_LE = self.assigned_LE / self.assigned_LE.sum(-1, keepdim=True)
            balance_L = self.assigned_LE.shape[1] * (frac_LE * self.probs_LE / n_tokens).sum(-1)
            balance, most, least = torch.stack([balance_L.mean(), frac_LE.amax(), frac_LE.amin()]).tolist()
            found |= {"load_balancing_loss": balance, "z_loss": z_loss}
            found |= {"router/ffn_max_load": most, "router/ffn_min_load": least}
        return found | {f"router/{name}_entropy": e for name, e in zip(self.routers, entropies, strict=True)}


def accumulate_gradient(
    model: LM,
    optimizer: Optimizer,
    rows: NDArray[np.int64],
    config: TrainConfig,
    micro_batch_rows: int,
    expert_frac: list[list[float]] | None = None,
    noise: Noise | None = None,
    n_micro_batches: int = 0,
    extra: ExtraLoss | None = None,
) -> BatchSums:
    """Add the gradient of this rank's rows to the optimizer's master gradient.

    rows: [n, seq_len + 1] token ids. expert_frac: f of the step before, per layer; None or empty for uniform.
    noise: for these rows, if a gate samples. n_micro_batches: run at least as many, the last ones on a row that counts
    for nothing, for ranks whose backward passes must meet. extra: a loss that comes on top.
    """
    device = next(model.parameters()).device
    sums = BatchSums.zero(model.config, device, extra.names if extra is not None else ())
    n_tokens = config.rows_per_batch * config.seq_len

    def add(rows: NDArray[np.int64], noise: Noise | None, counts: bool) -> None:
        tokens = torch.from_numpy(rows).to(device)
        batch_frac = len(tokens) / config.rows_per_batch if counts else 0.0
        targets = tokens[:, 1:] if counts else torch.full_like(tokens[:, 1:], IGNORED)
        output = model(tokens[:, :-1], noise=noise)
        nll, logits_BTV = _text_loss(model, output, targets, extra is not None)
        nll = nll / n_tokens
        loss = nll
        if extra is not None and logits_BTV is not None:
            added, told = extra(tokens[:, :-1], targets, output, logits_BTV)
            loss = extra.nll_share * nll + added / n_tokens
            sums.extra += told / n_tokens
        del logits_BTV  # the largest tensor: not alive while the gradient is made
        # Soft attention routing sends every token everywhere, so only FFN routers are balanced (BAM, section 4.1).
        ffn, z_loss = _of(output.routing, "ffn"), None
        if ffn:
            balance = load_balancing_loss(ffn, _fractions(ffn, expert_frac))
            z_loss = router_z_loss(ffn)
            loss = loss + batch_frac * (config.load_balancing_coef * balance + config.z_loss_coef * z_loss)
        if counts:
            sums.add(output, z_loss, batch_frac)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.accumulate()
        sums.scalars[0] += nll.detach()

    starts = range(0, len(rows), micro_batch_rows)
    for start in starts:
        part = rows[start : start + micro_batch_rows]
        add(part, noise.rows(start, start + len(part)) if noise is not None else None, True)
    for _ in range(len(starts), n_micro_batches):
        add(
            np.zeros((1, config.seq_len + 1), dtype=np.int64),
            replace(noise, row_seeds=(0,)) if noise is not None else None,
            False,
        )
    return sums


def _text_loss(model: LM, output: Output, targets_BT: Tensor, wants_logits: bool) -> tuple[Tensor, Tensor | None]:
    """Sum of -ln p(target), and the logits: on a GPU, which runs long rows, only if someone wants them."""
    hidden_BTD = output.hidden_BTD
    if hidden_BTD.is_cuda and not wants_logits and model.config.has_linear_logits:
        hidden_BTD = scaled(hidden_BTD, model.config.logit_scale)
        return linear_next_token_loss(hidden_BTD, (model.head or model.embed).weight, targets_BT), None
    logits_BTV = model.logits(hidden_BTD, output.mix_BTE)
    return next_token_loss(logits_BTV, targets_BT), logits_BTV


def _entropy(output: Output, router: str) -> Tensor:
    """Of one of `BatchSums.routers`."""
    if router != "shared":
        return mean_entropy(_of(output.routing, router))
    assert output.mix_BTE is not None, "the model has no shared router"
    return normalised_entropy(output.mix_BTE.detach()).mean()


def _probs(routing: Routing) -> Tensor:
    """Of each expert, summed over tokens; float64."""
    return routing.probs_NE.detach().flatten(0, -2).double().sum(0)


def _of(routing: Sequence[LayerRouting], branch: str) -> list[Routing]:
    """The routing of one branch, in the layers that have experts there."""
    return [found for layer in routing if (found := getattr(layer, branch)) is not None]


def _fractions(ffn: list[Routing], expert_frac: list[list[float]] | None) -> Tensor:
    like = ffn[0].probs_NE
    if not expert_frac:
        return like.new_full((len(ffn), ffn[0].n_experts), 1 / ffn[0].n_experts)
    return torch.tensor(expert_frac, dtype=like.dtype, device=like.device)
