"""Sampling from a model, one token at a time, with the cache; any number of prompts in one batch.

Invariant: what follows a prompt does not depend on the prompts beside it, but for rounding. Shorter prompts are
padded on the left, pads are never attended to (`attention.py`), and every row draws from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.errors import UsageError
from bam_core.nn.attention import Cache
from bam_core.nn.decode import Decoder
from bam_core.nn.lm import LM
from bam_core.seeds import child_seed


@overload
def generate(
    model: LM | Decoder,
    prompts: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    eos_id: int | None = ...,
) -> list[int]: ...
@overload
def generate(
    model: LM | Decoder,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    *,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    eos_id: int | None = ...,
) -> list[list[int]]: ...
def generate(
    model: LM | Decoder,
    prompts: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
) -> list[int] | list[list[int]]:
    """The new token ids that follow each prompt (tokens_T), without the `eos_id` that ended them.

    model: or a `Decoder` of it, kept from call to call: what it has laid out is laid out once.
    temperature 0 takes the likeliest token; otherwise logits are divided by it, and a token is drawn from the
    fewest likeliest ones whose probability reaches `top_p`. One prompt is drawn with `seed`, prompt i of several
    with `child_seed(seed, str(i))`.
    Raises UsageError for an empty prompt, one that leaves no room for max_new_tokens, and impossible settings.
    """
    check_sampling(temperature, top_p)
    if isinstance(prompts, Tensor):
        rows, seeds = [prompts], [seed]
    else:
        rows, seeds = list(prompts), [child_seed(seed, str(row)) for row in range(len(prompts))]
    lm = model.model if isinstance(model, Decoder) else model
    check_room(lm, rows, max_new_tokens)
    generators = [torch.Generator().manual_seed(row_seed) for row_seed in seeds]

    def pick(logits_BV: Tensor, going: list[int]) -> dict[int, int]:
        if temperature == 0:
            return dict(enumerate(logits_BV.argmax(-1).tolist()))
        return {row: pick_token(logits_BV[row], temperature, top_p, generators[row]) for row in going}

    decoder = model if isinstance(model, Decoder) else Decoder(lm, rows=len(rows), steps=max_new_tokens)
    texts = _continue_rows(decoder, rows, max_new_tokens, pick, eos_id) if rows else []
    return texts[0] if isinstance(prompts, Tensor) else texts


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises UsageError for settings from which no token can be drawn."""
    if not (isfinite(temperature) and temperature >= 0):
        raise UsageError(f"temperature {temperature}: must be a finite number of at least 0")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p {top_p}: must be above 0 and at most 1")


def check_room(model: LM, rows: Sequence[Tensor], max_new_tokens: int) -> None:
    """Raises UsageError for an empty prompt, and for one that leaves no room for max_new_tokens."""
    for tokens_T in rows:
        capacity = len(tokens_T) + max_new_tokens
        if len(tokens_T) == 0:
            raise UsageError("the prompt is empty; a model needs at least one token to continue")
        if capacity > model.config.max_seq_len:
            raise UsageError(
                f"{len(tokens_T)} prompt tokens and {max_new_tokens} new ones are {capacity};"
                f" this model reads {model.config.max_seq_len}"
            )


@torch.inference_mode()
def _continue_rows(
    decoder: Decoder,
    rows: Sequence[Tensor],
    max_new_tokens: int,
    pick: Callable[[Tensor, list[int]], dict[int, int]],
    eos_id: int | None,
) -> list[list[int]]:
    """Up to max_new_tokens after each row; `pick(logits_BV, going)` chooses for those that have not ended.

    A row that has ended idles along.
    """
    model = decoder.model
    weight = model.embed.weight
    longest = max(len(tokens_T) for tokens_T in rows)
    pads = [longest - len(tokens_T) for tokens_T in rows]
    pad_B = torch.tensor(pads) if any(pads) else None
    cache = Cache(model.config, len(rows), longest + max_new_tokens, weight.dtype, weight.device, pad_B)
    step_BT = torch.stack([F.pad(tokens_T, (pad, 0)) for tokens_T, pad in zip(rows, pads, strict=True)])
    texts: list[list[int]] = [[] for _ in rows]
    going = list(range(len(rows)))
    was_training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        picked = pick(decoder(step_BT.to(weight.device), cache), going)
        going = [row for row in going if picked[row] != eos_id]
        for row in going:
            texts[row].append(picked[row])
        if not going:
            break
        step_BT = torch.tensor([[picked.get(row, 0)] for row in range(len(rows))])
    model.train(was_training)
    return texts


def pick_token(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id, as `generate` says. Source of top_p: Holtzman et al. 2020, section 3.1 ("nucleus")."""
    if temperature == 0:
        return int(logits_V.argmax())
    probs_V = (logits_V.float().cpu() / temperature).softmax(-1)
    if top_p < 1:
        ordered_V, order_V = probs_V.sort(descending=True, stable=True)
        likelier_V = ordered_V.double().cumsum(0) - ordered_V
        probs_V[order_V[likelier_V >= top_p]] = 0
    return int(torch.multinomial(probs_V, 1, generator=generator))
