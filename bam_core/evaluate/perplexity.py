"""Perplexity and bits per byte, and both of packed rows, for a quick look at a model.

Perplexity = exp(mean negative log likelihood per predicted token). Bits per byte = nll / ln 2 / UTF-8 bytes of the
predicted tokens: comparable between tokenizers. Averages are means over domains, as in BAM, Table 1; the token average
counts every token of every domain once. What is reported is scored on whole documents (`strided`): a row cuts them, and
has the end of another one before its first tokens.
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

VALUES_PER_CHUNK, LEAST_CHUNK = 2**20, 128
"""Logits that are made at a time: so many values, which a cache holds, but of no fewer tokens."""


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


@torch.no_grad()
def score(model: LM, rows: Rows, max_tokens: int, batch_rows: int = 16) -> tuple[DomainScore, RoutingSums | None]:
    """Score `model` on up to `max_tokens` predicted tokens of `rows` (at least one row).

    Returns the routing statistics too where the model is a mixture.
    """
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
        mix_NE = output.mix_BTE.flatten(0, 1) if output.mix_BTE is not None else None
        nll.append(token_nll(model, output.hidden_BTD.flatten(0, 1), tokens[:, 1:].flatten(), mix_NE).cpu())
        if sums is not None:
            sums.add(output.routing)
    nll_N = torch.cat(nll).double()
    return DomainScore(float(nll_N.mean()), len(nll_N), int(rows.n_bytes[chosen].sum())), sums


def token_nll(model: LM, hidden_ND: Tensor, targets_N: Tensor, mix_NE: Tensor | None = None) -> Tensor:
    """-ln p(target) of every token, in float32 or wider; the logits of all tokens are never all in memory.

    hidden_ND, mix_NE: `Output` of the model at these tokens.
    """
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    chunk = max(LEAST_CHUNK, VALUES_PER_CHUNK // model.config.vocab_size)
    nll = []
    for part in (slice(i, i + chunk) for i in range(0, len(targets_N), chunk)):
        logits_NV = model.logits(hidden_ND[part], mix_NE[part] if mix_NE is not None else None)
        nll.append(F.cross_entropy(logits_NV.to(wide), targets_N[part], reduction="none"))
    return torch.cat(nll)


def average_perplexity(scores: Mapping[str, DomainScore]) -> float:
    """Mean of the domains' perplexities (BAM, Table 1's Average)."""
    return sum(score.perplexity for score in scores.values()) / len(scores)


def token_average_nll(scores: Mapping[str, DomainScore]) -> float:
    """Mean negative log likelihood over the tokens of all domains together, in nats."""
    return sum(score.nll * score.tokens for score in scores.values()) / sum(score.tokens for score in scores.values())
