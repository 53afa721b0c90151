"""Sampling from a model, each token at hand as soon as it is drawn: what a person reads while it is written.

Invariant: the tokens are those that `generate` has for the same prompt, settings and seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from bam_core.nn.attention import Cache
from bam_core.nn.decode import Decoder
from bam_core.nn.generate import check_room, check_sampling, pick_token
from bam_core.nn.lm import LM


class Stream:
    """Continues one text at a time. The model is laid out for decoding once, so its weights stay as they are."""

    def __init__(self, model: LM) -> None:
        self.model = model.eval()
        self._decoder = Decoder(model, rows=1, steps=model.config.max_seq_len)

    def __call__(
        self,
        prompt_T: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Collection[int] = (),
    ) -> Iterator[int]:
        """The ids that follow the prompt, without the one of `stop_ids` that ends them. Settings as for `generate`.

        Raises UsageError, before the first token, as `generate` does.
        """
        check_sampling(temperature, top_p)
        check_room(self.model, [prompt_T], max_new_tokens)
        return self._ids(prompt_T, max_new_tokens, temperature, top_p, seed, stop_ids)

    def _ids(
        self, prompt_T: Tensor, n_new: int, temperature: float, top_p: float, seed: int, stop_ids: Collection[int]
    ) -> Iterator[int]:
        weight = self.model.embed.weight
        generator = torch.Generator().manual_seed(seed)
        cache = Cache(self.model.config, 1, len(prompt_T) + n_new, weight.dtype, weight.device)
        step_BT = prompt_T.unsqueeze(0)
        for _ in range(n_new):
            with torch.inference_mode():  # not around the loop: it would hold for whoever reads the tokens, too
                logits_V = self._decoder(step_BT.to(weight.device), cache)[0]
                token = pick_token(logits_V, temperature, top_p, generator)
            if token in stop_ids:
                return
            yield token
            step_BT = torch.tensor([[token]])
