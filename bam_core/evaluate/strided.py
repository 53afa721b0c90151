"""A model's loss on whole documents, by a window that moves over each one with a stated stride.

A window has `context` = T tokens and moves by `stride` = S. The first one of a document predicts all its tokens, each
later one its last S only, with T - S tokens of the same document before them; so each token is predicted once, the
document's first from the `eos` before it. S = T: windows side by side, most tokens with less context and at the least
cost. S = 1: every token with all the context that the model takes, T times the cost. Text of another document is never
context.

Windows of like length run together, padded on the right, where a causal model does not look: a window's figures are
those that it has alone, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bam_core.evaluate.documents import Chosen
from bam_core.evaluate.perplexity import DomainScore, token_nll
from bam_core.evaluate.routing import RoutingSums
from bam_core.nn.lm import LM, LayerRouting
from bam_core.nn.routing import Routing

TOKENS_PER_BATCH = {"cpu": 2**12, "cuda": 2**16}
"""Of one forward pass by type of device, with padding; at least one window."""


@dataclass(frozen=True)
class Scored:
    """One model on D documents of one domain, numbers as in `Chosen`. nll: sum over a document's tokens, in nats."""

    numbers: NDArray[np.int64]
    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    routing: RoutingSums | None = None

    @property
    def total(self) -> DomainScore:
        tokens = int(self.tokens.sum())
        return DomainScore(float(self.nll.sum()) / tokens, tokens, int(self.n_bytes.sum()))


@dataclass(frozen=True)
class Windows:
    """W windows. document: place among the chosen. start: its first input token, counted from the `eos` before.

    length: input tokens. scored: how many of its last predictions count.
    """

    document: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    scored: NDArray[np.int64]

    @classmethod
    def of(cls, tokens: NDArray[np.int64], context: int, stride: int) -> Windows:
        """Over documents of so many predicted tokens, in their order."""
        assert 1 <= stride <= context, f"stride {stride} of {context}"
        n_later = -(-np.maximum(tokens - context, 0) // stride)
        document = np.repeat(np.arange(len(tokens)), 1 + n_later)
        nth = np.arange(len(document)) - np.repeat(np.cumsum(1 + n_later) - (1 + n_later), 1 + n_later)
        start = nth * stride
        length = np.minimum(context, tokens[document] - start)
        return cls(document, start, length, np.where(nth == 0, length, length - (context - stride)))

    def batches(self, n_tokens: int) -> Iterator[Windows]:
        """The longest first, as many at a time as make up to `n_tokens` with padding."""
        order, place = np.argsort(-self.length, kind="stable"), 0
        while place < len(order):
            n_windows = max(1, n_tokens // int(self.length[order[place]]))
            part = order[place : place + n_windows]
            yield Windows(self.document[part], self.start[part], self.length[part], self.scored[part])
            place += n_windows


@torch.no_grad()
def score_documents(model: LM, chosen: Chosen, stride: int, batch_tokens: int | None = None) -> Scored:
    """Score `model` on whole documents, with its full context; a mixture's routing at each predicted token too."""
    model.eval()
    device = next(model.parameters()).device
    batch_tokens = batch_tokens or TOKENS_PER_BATCH[device.type]
    sums = RoutingSums(model.config) if model.config.is_mixture else None
    nll = np.zeros(len(chosen.numbers))
    for batch in Windows.of(chosen.tokens, model.config.max_seq_len, stride).batches(batch_tokens):
        ids_BT, counts_BT = (array.to(device) for array in _batch(chosen, batch))
        output = model(ids_BT[:, :-1])
        mix_NE = output.mix_BTE[counts_BT] if output.mix_BTE is not None else None
        nll_N = token_nll(model, output.hidden_BTD[counts_BT], ids_BT[:, 1:][counts_BT], mix_NE).double().cpu().numpy()
        ends = np.cumsum(batch.scored)
        np.add.at(nll, batch.document, np.add.reduceat(nll_N, ends - batch.scored))
        if sums is not None:
            sums.add([_where(counts_BT, layer) for layer in output.routing])
    return Scored(chosen.numbers, nll, chosen.tokens, chosen.n_bytes, sums)


def _batch(chosen: Chosen, batch: Windows) -> tuple[Tensor, Tensor]:
    """ids [B, T + 1], padded on the right with some token, and which of the T predictions count."""
    ids_BT = np.zeros((len(batch.length), batch.length.max() + 1), dtype=np.int64)
    for row, (place, start, length) in enumerate(zip(batch.document, batch.start, batch.length, strict=True)):
        ids_BT[row, : length + 1] = chosen.documents.ids(chosen.numbers[place], start, start + length + 1)
    position_T, length_B1 = np.arange(ids_BT.shape[1] - 1), batch.length[:, None]
    counts_BT = (length_B1 - batch.scored[:, None] <= position_T) & (position_T < length_B1)
    return torch.from_numpy(ids_BT), torch.from_numpy(counts_BT)


def _where(counts_BT: Tensor, layer: LayerRouting) -> LayerRouting:
    """The routing of the tokens that count, so that each token is in the sums once and padding never."""

    def at(routing: Routing | None) -> Routing | None:
        if routing is None:
            return None
        parts: Sequence[Tensor] = (routing.weights_NK, routing.experts_NK, routing.probs_NE, routing.logits_NE)
        return Routing(*(part[counts_BT] for part in parts))

    return replace(layer, attention=at(layer.attention), ffn=at(layer.ffn))
