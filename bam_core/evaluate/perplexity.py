"""Perplexity and bits per byte of held-out rows, and, in the same pass, how a mixture routed them.

Perplexity = exp(mean negative log likelihood per predicted token). Bits per byte = nll / ln 2 / UTF-8 bytes of the
predicted tokens: comparable between tokenizers. Averages are means over domains, as in BAM, Table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bam_core.evaluate.routing import RoutingSums
from bam_core.nn.lm import LM

VALUES_PER_CHUNK = 2**20
"""Logits that are made wide at a time."""


class Rows(Protocol):
    """Packed rows: `rows[indices] -> [n, seq_len + 1]` token ids, `n_bytes[indices]` bytes of the predicted tokens."""

    @property
    def n_bytes(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class DomainScore:
    """nll: mean negative log likelihood per token, in nats. tokens: predicted tokens."""

    nll: float
    tokens: int
    n_bytes: int

    @property
    def perplexity(self) -> float:
        return exp(self.nll)

    @property
    def bits_per_byte(self) -> float:
        return self.nll * self.tokens / log(2) / self.n_bytes

    def to_json(self) -> dict[str, float]:
        return {
            "perplexity": self.perplexity,
            "nll": self.nll,
            "tokens": self.tokens,
            "bits_per_byte": self.bits_per_byte,
        }


def spread_indices(n_rows: int, n_wanted: int) -> NDArray[np.int64]:
    """`n_wanted` row numbers spread evenly over the whole set, or all: every model is scored on the same rows."""
    n_wanted = min(n_rows, n_wanted)
    return (np.arange(n_wanted) * n_rows) // max(1, n_wanted)


@dataclass(frozen=True)
class Scored:
    """One model on rows of one domain. nll_RT: of every predicted token, in nats and the precision of the pass."""

    nll_RT: Tensor
    n_bytes: int
    routing: RoutingSums | None = None

    @property
    def total(self) -> DomainScore:
        return DomainScore(float(self.nll_RT.double().mean()), self.nll_RT.numel(), self.n_bytes)


def score(model: LM, rows: Rows, max_tokens: int, batch_rows: int = 16) -> tuple[DomainScore, RoutingSums | None]:
    """Score `model` on up to `max_tokens` predicted tokens of `rows` (at least one row).

    Returns the routing statistics too where the model is a mixture.
    """
    scored = score_tokens(model, rows, max_tokens, batch_rows)
    return scored.total, scored.routing


@torch.no_grad()
def score_tokens(model: LM, rows: Rows, max_tokens: int, batch_rows: int = 16) -> Scored:
    """As `score`, with the figure of every token: a float for each of `max_tokens`."""
    assert len(rows) > 0, "a validation set needs at least one row"
    model.eval()
    device = next(model.parameters()).device
    seq_len = rows[np.arange(1)].shape[1] - 1
    chosen = spread_indices(len(rows), max(1, max_tokens // seq_len))
    sums = RoutingSums(model.config) if model.config.is_mixture else None
    nll = []
    for start in range(0, len(chosen), batch_rows):
        tokens = torch.from_numpy(rows[chosen[start : start + batch_rows]]).to(device)
        output = model(tokens[:, :-1])
        nll.append(token_nll(model.logits(output.hidden_BTD), tokens[:, 1:]).cpu())
        if sums is not None:
            sums.add(output.routing)
    return Scored(torch.cat(nll), int(rows.n_bytes[chosen].sum()), sums)


def token_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-ln p(target) of every token, in float32 or wider; probabilities are never all in memory."""
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    chunk = max(1, VALUES_PER_CHUNK // logits_BTV.shape[-1])
    logits_NV, targets_N = logits_BTV.flatten(0, -2), targets_BT.flatten()
    nll_N = [
        F.cross_entropy(logits_NV[i : i + chunk].to(wide), targets_N[i : i + chunk], reduction="none")
        for i in range(0, len(targets_N), chunk)
    ]
    return torch.cat(nll_N).view_as(targets_BT)


def average_perplexity(scores: Mapping[str, DomainScore]) -> float:
    """Mean of the domains' perplexities (BAM, Table 1's Average)."""
    return sum(score.perplexity for score in scores.values()) / len(scores)
