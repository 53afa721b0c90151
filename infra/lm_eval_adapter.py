"""Our live model as lm-eval sees models: tasks, prompts and metrics are its own library's, only the model is ours.

Source: lm-evaluation-harness 0.4.13, `lm_eval.api.model.TemplateLM`.

Texts are cut into tokens by lm-eval's `_encode_pair`, with the end-of-text token in front, as a document begins in
training; likelihoods are those of `bam_core.evaluate.continuations`, which the native runner has too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from bam_core.data.tokenize import Tokenizer
from bam_core.errors import UsageError, nearest
from bam_core.evaluate.answers import until
from bam_core.evaluate.continuations import Pair, encode_pairs, score_pairs
from bam_core.nn.decode import Decoder
from bam_core.nn.generate import generate
from bam_core.nn.lm import LM

MAX_NEW_TOKENS = 256
"""Where a task does not say; lm-eval's own default."""
KNOWN_SETTINGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}


class LiveModel(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model and its tokenizer, in this process."""

    def __init__(self, model: LM, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._model, self._ours = model.eval(), tokenizer

    @cached_property
    def _decoder(self) -> Decoder:
        """For any number of prompts; likelihoods alone have no use for it."""
        return Decoder(self._model, rows=1, steps=self.max_length)

    @property
    def eot_token_id(self) -> int:
        return self._ours.eos_id

    @property
    def max_length(self) -> int:
        return self._model.config.max_seq_len

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = self._ours.encode_batch([string])[0]
        return ids if add_special_tokens is False else [self.eot_token_id, *ids]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [
            Pair(tuple(context), tuple(ids)) if ids else encode_pairs(self._ours, [texts])[0]
            for texts, context, ids in requests
        ]
        return [(found.logprob, found.is_greedy) for found in score_pairs(self._model, pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in utils.get_rolling_token_windows(ids, self.eot_token_id, self.max_length, context_len=1):
                context, continuation = utils.make_disjoint_window(window)
                pairs.append(Pair(tuple(context), tuple(continuation)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, score_pairs(self._model, pairs), strict=True):
            sums[owner] += found.logprob
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._generated(*request.args) for request in requests]

    def _generated(self, prompt: str, settings: Mapping[str, Any]) -> str:
        """A new text is at most half as long as what the model reads; the prompt is cut on the left to fit."""
        if unknown := settings.keys() - KNOWN_SETTINGS:
            raise UsageError(f"generation_kwargs {', '.join(sorted(unknown))}: this model knows {_KNOWN}")
        n_new = min(int(settings.get("max_gen_toks", MAX_NEW_TOKENS)), self.max_length // 2)
        tokens = torch.tensor(self.tok_encode(prompt)[-(self.max_length - n_new) :])
        samples = bool(settings.get("do_sample", settings.get("temperature", 0) > 0))
        how = {"temperature": settings.get("temperature", 1.0), "top_p": settings.get("top_p", 1.0)} if samples else {}
        new = generate(self._decoder, tokens, n_new, eos_id=self.eot_token_id, **how)
        stops = settings.get("until") or []
        return until(self._ours.decode(new), [stops] if isinstance(stops, str) else stops)


_KNOWN = ", ".join(sorted(KNOWN_SETTINGS))


def evaluate_tasks(
    model: LM,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    shipped: bool = True,
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` gives: `results` by task, `samples` with every item, `versions`, `config`.

    folder: of further tasks (YAML). shipped: know lm-eval's own tasks too; most fetch their data from the network.
    limit: first items of each task alone. Raises UsageError for a task that is not there.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--tasks-folder {folder}: is no folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(tasks, folder, shipped)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UsageError(f"no lm-eval task {task!r}: {_near(task, manager.all_tasks)}")
    found: dict[str, Any] = simple_evaluate(
        model=LiveModel(model, tokenizer), tasks=manager.match_tasks(list(tasks)), task_manager=manager, limit=limit
    )
    return found


def _manager(tasks: Sequence[str], folder: Path | None, shipped: bool) -> TaskManager:
    """lm-eval's own tasks are 14 000 files, which are read only where the folder alone is not enough."""
    path = str(folder) if folder is not None else None
    manager = TaskManager(include_path=path, include_defaults=False)
    is_enough = set(tasks) <= set(manager.all_subtasks)
    return manager if is_enough or not shipped else TaskManager(include_path=path)


def _near(task: str, known: Sequence[str]) -> str:
    words = nearest(task, known)
    return words if words.startswith("did you mean") or len(known) < 20 else "`lm_eval ls tasks` lists those it ships"
