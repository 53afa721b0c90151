"""How fast models decode, side by side: they take turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bam_core.nn.generate import generate
from bam_core.nn.lm import LM


def decode_rates(
    models: Mapping[str, LM],
    prompt_T: Tensor,
    new_tokens: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Name -> new tokens per second in each round, for one text; reading the prompt counts.

    Every other round goes through the models the other way round, and nothing of the first pass is timed.
    """
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        generate(model, prompt_T, 2)
    for turn in range(rounds):
        for name in list(models)[:: -1 if turn % 2 else 1]:
            start = clock()
            generate(models[name], prompt_T, new_tokens)
            if prompt_T.device.type == "cuda":
                torch.cuda.synchronize()
            rates[name].append(new_tokens / (clock() - start))
    return {name: tuple(found) for name, found in rates.items()}
