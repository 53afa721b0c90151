"""How likely a model finds a text after another: the sum of log p over the continuation's tokens, given the context.

Tokens are cut as lm-eval cuts them (`TemplateLM._encode_pair`), so that equal models get equal scores: white space at
the end of the context goes to the continuation, both are encoded together, and what comes after as many tokens as the
context has alone is the continuation. Every context begins with the end-of-text token, as a document does in training.
Where both together are longer than the model reads, the context is cut on the left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.data.tokenize import Tokenizer
from bam_core.nn.lm import LM

TOKENS_PER_BATCH = 4096
"""Of one forward pass, with padding; at least one row."""
LOGITS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Pair:
    """Token ids, at least one of each. is_apart: they were encoded apart, since together one token spans both."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    is_apart: bool = False


@dataclass(frozen=True)
class Likelihood:
    """logprob: of the whole continuation, in nats. is_greedy: whether each token is the likeliest at its place."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class _Piece:
    """The targets are what the last outputs of a row should be. owner: number of the pair that they belong to."""

    owner: int
    targets: tuple[int, ...]


def encode_pairs(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """(context, continuation) -> token ids, as lm-eval cuts them. A continuation must not be empty."""
    cut = []
    for context, continuation in texts:
        assert continuation, f"nothing to score after {context[-40:]!r}"
        kept = context.rstrip()
        cut.append((kept, context[len(kept) :] + continuation))
    contexts = tokenizer.encode_batch([context for context, _ in cut])
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in cut])
    alone = {
        number: tokenizer.encode_batch([cut[number][1]])[0]
        for number, (context, whole) in enumerate(zip(contexts, wholes, strict=True))
        if len(whole) <= len(context)  # nothing would be left; lm-eval stops here
    }
    return [
        Pair((tokenizer.eos_id, *context), tuple(alone.get(number) or whole[len(context) :]), number in alone)
        for number, (context, whole) in enumerate(zip(contexts, wholes, strict=True))
    ]


def is_cut(pair: Pair, max_tokens: int) -> bool:
    """Whether the pair is longer than a model that reads max_tokens can take at once."""
    return len(pair.context) + len(pair.continuation) > max_tokens + 1


@torch.no_grad()
def score_pairs(model: LM, pairs: Sequence[Pair], tokens_per_batch: int = TOKENS_PER_BATCH) -> list[Likelihood]:
    """In the order of `pairs`. What two pairs ask of the same tokens (choices of one token each) is run once.

    A continuation longer than the model reads is scored in pieces of half that length, each after as much as fits.
    """
    asked: dict[tuple[int, ...], list[_Piece]] = {}
    for number, pair in enumerate(pairs):
        for inputs, targets in _windows(pair, model.config.max_seq_len):
            asked.setdefault(inputs, []).append(_Piece(number, targets))
    model.eval()
    logprob = torch.zeros(len(pairs), dtype=torch.float64)
    n_missed = torch.zeros(len(pairs), dtype=torch.long)
    for batch in _batches(sorted(asked, key=lambda inputs: (-len(inputs), inputs)), tokens_per_batch):
        owners, logprob_N, is_greedy_N = _score_batch(model, [(inputs, asked[inputs]) for inputs in batch])
        logprob.index_add_(0, owners, logprob_N)
        n_missed.index_add_(0, owners, (~is_greedy_N).long())
    return [Likelihood(nats, missed == 0) for nats, missed in zip(logprob.tolist(), n_missed.tolist(), strict=True)]


def _windows(pair: Pair, max_tokens: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(inputs, targets) that cover the continuation: one, unless it alone is too long."""
    context, ids = pair.context, pair.continuation
    size = len(ids) if len(ids) <= max_tokens else max(1, max_tokens // 2)
    for start in range(0, len(ids), size):
        targets = ids[start : start + size]
        yield (context + ids[: start + len(targets)])[-(max_tokens + 1) :][:-1], targets


def _batches(rows: Sequence[tuple[int, ...]], n_tokens: int) -> Iterator[Sequence[tuple[int, ...]]]:
    """rows: the longest first, so that a batch pads little."""
    place = 0
    while place < len(rows):
        n_rows = max(1, n_tokens // len(rows[place]))
        yield rows[place : place + n_rows]
        place += n_rows


def _score_batch(model: LM, batch: Sequence[tuple[tuple[int, ...], Sequence[_Piece]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Of all targets of a batch: their owner, log p in float64, and whether each is the likeliest token.

    Rows are padded on the right, where a causal model does not look.
    """
    longest = max(len(inputs) for inputs, _ in batch)
    rows_BT = torch.tensor([[*inputs, *[0] * (longest - len(inputs))] for inputs, _ in batch])
    places = [
        (row, len(inputs) - len(piece.targets) + nth, target, piece.owner)
        for row, (inputs, pieces) in enumerate(batch)
        for piece in pieces
        for nth, target in enumerate(piece.targets)
    ]
    row_N, place_N, target_N, owner_N = torch.tensor(places).unbind(-1)
    device = model.embed.weight.device
    output = model(rows_BT.to(device))
    where = row_N.to(device), place_N.to(device)
    hidden_1ND = output.hidden_BTD[where][None]
    mix_1NE = output.mix_BTE[where][None] if output.mix_BTE is not None else None
    logprob_N, is_greedy_N = [], []
    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    for start in range(0, len(target_N), size):
        part = slice(start, start + size)
        targets = target_N[part].to(device)
        logits_NV = model.logits(hidden_1ND[:, part], mix_1NE[:, part] if mix_1NE is not None else None)[0]
        wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        logprob_N.append(-F.cross_entropy(wide_NV, targets, reduction="none").double().cpu())
        is_greedy_N.append((wide_NV.argmax(-1) == targets).cpu())
    return owner_N, torch.cat(logprob_N), torch.cat(is_greedy_N)
