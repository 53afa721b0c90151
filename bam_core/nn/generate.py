"""Sampling from a model, one token at a time, with the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from bam_core.errors import UsageError
from bam_core.nn.attention import Cache
from bam_core.nn.lm import LM


@torch.no_grad()
def generate(
    model: LM,
    tokens_T: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    eos_id: int | None = None,
) -> list[int]:
    """The new token ids that follow the prompt, without the `eos_id` that ended them.

    temperature 0 takes the likeliest token; otherwise logits are divided by it and sampled with `seed`.
    Raises UsageError for an empty prompt or one that leaves no room for max_new_tokens.
    """
    capacity = len(tokens_T) + max_new_tokens
    if len(tokens_T) == 0:
        raise UsageError("the prompt is empty; a model needs at least one token to continue")
    if capacity > model.config.max_seq_len:
        raise UsageError(
            f"{len(tokens_T)} prompt tokens and {max_new_tokens} new ones are {capacity};"
            f" this model reads {model.config.max_seq_len}"
        )
    weight = model.embed.weight
    cache = Cache(model.config, 1, capacity, weight.dtype, weight.device)
    generator = torch.Generator().manual_seed(seed)
    step_BT = tokens_T[None].to(weight.device)
    new: list[int] = []
    while len(new) < max_new_tokens:
        hidden_BTD = model(step_BT, cache).hidden_BTD
        token = _pick(model.logits(hidden_BTD[0, -1]), temperature, generator)
        if token == eos_id:
            break
        new.append(token)
        step_BT = torch.tensor([[token]], device=weight.device)
    return new


def _pick(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probs_V = (logits_V.float().cpu() / temperature).softmax(-1)
    return int(torch.multinomial(probs_V, 1, generator=generator))
