"""One global batch to one gradient: `L = L_NLL + alpha L_LB + beta L_z` (BAM, Eq. 2).

The negative log likelihood is a sum divided by the global number of tokens, so any split into micro-batches and ranks
gives the same gradient. The router losses are means over a micro-batch, weighted by its share of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bam_core.config import TrainConfig
from bam_core.nn.lm import LM, LayerRouting
from bam_core.nn.losses import load_balancing_loss, next_token_loss, router_z_loss
from bam_core.train.optim import Optimizer

LOSS_NAMES = ("loss", "load_balancing_loss", "z_loss")


def accumulate_gradient(
    model: LM,
    optimizer: Optimizer,
    rows: NDArray[np.int64],
    config: TrainConfig,
    micro_batch_rows: int,
) -> Tensor:
    """Add the gradient of this rank's rows to the optimizer's master gradient.

    rows: [n, seq_len + 1] token ids. Returns the rank's part of `LOSS_NAMES` as a float64 vector; parts add up to the
    global batch's values.
    """
    device = next(model.parameters()).device
    totals = torch.zeros(len(LOSS_NAMES), dtype=torch.float64, device=device)
    for start in range(0, len(rows), micro_batch_rows):
        tokens = torch.from_numpy(rows[start : start + micro_batch_rows]).to(device)
        batch_frac = len(tokens) / config.rows_per_batch
        output = model(tokens[:, :-1])
        nll = next_token_loss(model.logits(output.hidden_BTD), tokens[:, 1:]) / (config.rows_per_batch * config.seq_len)
        balance, z_loss = router_losses(output.routing, nll)
        loss = nll + batch_frac * (config.load_balancing_coef * balance + config.z_loss_coef * z_loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.accumulate()
        totals += torch.stack([nll.detach(), batch_frac * balance.detach(), batch_frac * z_loss.detach()])
    return totals


def router_losses(routing: tuple[LayerRouting, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """(load balancing, z) of the FFN routers. Zero without FFN experts.

    Soft attention routing sends every token everywhere, so it needs no balancing (BAM, section 4.1).
    """
    ffn = [layer.ffn for layer in routing if layer.ffn is not None]
    if not ffn:
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return zero, zero
    return load_balancing_loss(ffn), router_z_loss(ffn)
