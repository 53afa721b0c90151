"""What a model makes of a task's items (`task_files.py`). Every figure is a mean over items with its standard error.

    mc     acc, acc_norm, acc_bytes   the likeliest choice is the right one: by log p as it is, per character, per byte
           margin, margin_per_byte    log p of the right choice minus that of the best wrong one, in nats; where models
                                      are too small for accuracy to leave chance, this still tells them apart
    gen    exact_match                of the greedy continuation (`answers.py` says what is equal)
           solution_bits_per_byte     of the worked text, where there is one
    code   pass_at_1                  the greedy continuation passes the item's test, run in the sandbox; on request
    all    bits_per_byte              of the reference answer (mc: the right choice), after the prompt

`acc` and `acc_norm` are lm-eval's of these names: of equal scores the first choice wins, and a length is in characters;
its `acc_bytes` is per byte. Standard errors are those of a mean; of bits per byte, a ratio of sums, to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log, sqrt
from typing import Any

import numpy as np
import torch

from bam_core.data.tokenize import Tokenizer
from bam_core.evaluate.answers import CODE_STOPS, is_right, stops_of, until
from bam_core.evaluate.continuations import Likelihood, Pair, encode_pairs, is_cut, score_pairs
from bam_core.evaluate.sandbox import run_program
from bam_core.evaluate.task_files import Item, Task
from bam_core.nn.decode import Decoder
from bam_core.nn.generate import generate
from bam_core.nn.lm import LM

NEW_TOKENS = 128
"""Of a generated answer at most; and never more than half of what the model reads."""
ROWS_PER_BATCH = 32


@dataclass(frozen=True)
class ItemScore:
    """One item. None: not measured for its kind.

    nll, n_bytes: of the reference answer after the prompt, in nats; UTF-8 bytes of its tokens. correct: by raw log p,
    exact match or test. is_cut: the prompt was cut on the left to fit. logprobs: of each choice, of `mc`.
    """

    id: str
    nll: float
    n_bytes: int
    correct: float | None = None
    correct_norm: float | None = None
    correct_bytes: float | None = None
    margin: float | None = None
    margin_per_byte: float | None = None
    solution_nll: float | None = None
    solution_bytes: int = 0
    is_cut: bool = False
    is_apart: bool = False
    logprobs: tuple[float, ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class TaskScore:
    task: Task
    items: tuple[ItemScore, ...]

    def to_json(self) -> dict[str, Any]:
        """domain, kind, items; chance: the accuracy of a guess; prompts_cut: to fit; figures: {value, stderr, items}.

        A stderr is None where one item says nothing of it.
        """
        chances = [1 / len(item.choices) for item in self.task.items if item.choices]
        return {
            "domain": self.task.domain,
            "kind": self.task.kind,
            "items": len(self.items),
            "chance": sum(chances) / len(chances) if chances else None,
            "prompts_cut": sum(item.is_cut for item in self.items),
            "encoded_apart": sum(item.is_apart for item in self.items),
            "figures": self._figures(),
        }

    def _figures(self) -> dict[str, dict[str, Any]]:
        right = {"mc": "acc", "gen": "exact_match", "code": "pass_at_1"}[self.task.kind]
        names = {right: "correct", "acc_norm": "correct_norm", "acc_bytes": "correct_bytes"}
        names |= {"margin": "margin", "margin_per_byte": "margin_per_byte"}
        found = {}
        for name, attribute in names.items():
            values = [value for item in self.items if (value := getattr(item, attribute)) is not None]
            if values:
                found[name] = mean_figure(values)
        found["bits_per_byte"] = bits_figure([(item.nll, item.n_bytes) for item in self.items])
        solved = [(i.solution_nll, i.solution_bytes) for i in self.items if i.solution_nll is not None]
        return found | ({"solution_bits_per_byte": bits_figure(solved)} if solved else {})


def mean_figure(values: Sequence[float]) -> dict[str, Any]:
    """Mean and its standard error, s / sqrt(n)."""
    n = len(values)
    stderr = float(np.std(values, ddof=1)) / sqrt(n) if n > 1 else None
    return {"value": float(np.mean(values)), "stderr": stderr, "items": n}


def bits_figure(pairs: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Bits per byte over all items, from nats and bytes of each; its standard error by linearisation of the ratio."""
    nats, n_bytes = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    ratio, n = nats.sum() / n_bytes.sum(), len(pairs)
    stderr = float(np.std(nats - ratio * n_bytes, ddof=1) / n_bytes.mean()) / sqrt(n) / log(2) if n > 1 else None
    return {"value": float(ratio / log(2)), "stderr": stderr, "items": n}


def score_task(
    model: LM, tokenizer: Tokenizer, task: Task, *, execute: bool = False, new_tokens: int = NEW_TOKENS
) -> TaskScore:
    """Score every item of a task. execute: run the code that the model writes. new_tokens: 0 generates nothing.

    Raises UsageError where code cannot be confined.
    """
    if task.kind == "mc":
        return TaskScore(task, tuple(_choose(model, tokenizer, task.items)))
    scores = _reference(model, tokenizer, task.items)
    if new_tokens and (task.kind == "gen" or execute):
        texts = _continued(model, tokenizer, task, new_tokens)
        scores = [_judged(task, item, score, text) for item, score, text in zip(task.items, scores, texts, strict=True)]
    return TaskScore(task, tuple(scores))


def _choose(model: LM, tokenizer: Tokenizer, items: Sequence[Item]) -> list[ItemScore]:
    pairs = encode_pairs(tokenizer, [(item.prompt, choice) for item in items for choice in item.choices])
    found = score_pairs(model, pairs)
    scores, start = [], 0
    for item in items:
        part = slice(start, start + len(item.choices))
        scores.append(_chosen(model, tokenizer, item, pairs[part], found[part]))
        start = part.stop
    return scores


def _chosen(
    model: LM, tokenizer: Tokenizer, item: Item, pairs: Sequence[Pair], found: Sequence[Likelihood]
) -> ItemScore:
    logprobs = np.array([likelihood.logprob for likelihood in found])
    n_chars = np.array([float(len(choice)) for choice in item.choices])
    n_bytes = np.array([float(len(choice.encode())) for choice in item.choices])
    return ItemScore(
        item.id,
        nll=-found[item.right].logprob,
        n_bytes=_bytes_of(tokenizer, pairs[item.right]),
        correct=float(np.argmax(logprobs) == item.right),
        correct_norm=float(np.argmax(logprobs / n_chars) == item.right),
        correct_bytes=float(np.argmax(logprobs / n_bytes) == item.right),
        margin=_margin(logprobs, item.right),
        margin_per_byte=_margin(logprobs / n_bytes, item.right),
        is_cut=any(is_cut(pair, model.config.max_seq_len) for pair in pairs),
        is_apart=any(pair.is_apart for pair in pairs),
        logprobs=tuple(logprobs.tolist()),
    )


def _margin(scores: np.ndarray[Any, np.dtype[np.float64]], right: int) -> float:
    return float(scores[right] - np.delete(scores, right).max())


def _reference(model: LM, tokenizer: Tokenizer, items: Sequence[Item]) -> list[ItemScore]:
    """How likely the reference answers are, and the worked texts where there are any."""
    pairs = encode_pairs(tokenizer, [(item.prompt, _joined(item.prompt, item.answer)) for item in items])
    scores = [
        ItemScore(
            item.id,
            nll=-likelihood.logprob,
            n_bytes=_bytes_of(tokenizer, pair),
            is_cut=is_cut(pair, model.config.max_seq_len),
            is_apart=pair.is_apart,
        )
        for item, pair, likelihood in zip(items, pairs, score_pairs(model, pairs), strict=True)
    ]
    solved = [number for number, item in enumerate(items) if item.solution.strip()]
    texts = [(items[number].prompt, _joined(items[number].prompt, items[number].solution)) for number in solved]
    worked = encode_pairs(tokenizer, texts)
    for number, pair, likelihood in zip(solved, worked, score_pairs(model, worked), strict=True):
        n_bytes = _bytes_of(tokenizer, pair)
        scores[number] = replace(scores[number], solution_nll=-likelihood.logprob, solution_bytes=n_bytes)
    return scores


def _joined(prompt: str, answer: str) -> str:
    """The answer as it follows the prompt: after a space, unless white space is there already."""
    return answer if not prompt or prompt[-1].isspace() or answer[0].isspace() else f" {answer}"


def _bytes_of(tokenizer: Tokenizer, pair: Pair) -> int:
    return int(tokenizer.token_bytes[list(pair.continuation)].sum())


def _continued(model: LM, tokenizer: Tokenizer, task: Task, new_tokens: int) -> list[str]:
    """The greedy continuation of every prompt, to its stop. A prompt that leaves no room is cut on the left."""
    new_tokens = min(new_tokens, model.config.max_seq_len // 2)
    room = model.config.max_seq_len - new_tokens
    encoded = tokenizer.encode_batch([item.prompt for item in task.items])
    prompts = [torch.tensor([tokenizer.eos_id, *ids][-room:]) for ids in encoded]
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), number))
    texts = [""] * len(prompts)
    decoder = Decoder(model, rows=ROWS_PER_BATCH, steps=new_tokens * ceil(len(order) / ROWS_PER_BATCH))
    for start in range(0, len(order), ROWS_PER_BATCH):
        numbers = order[start : start + ROWS_PER_BATCH]
        ids = generate(decoder, [prompts[number] for number in numbers], new_tokens, eos_id=tokenizer.eos_id)
        for number, its_ids in zip(numbers, ids, strict=True):
            stops = CODE_STOPS if task.kind == "code" else stops_of(task.items[number].answer)
            texts[number] = until(tokenizer.decode(its_ids), stops)
    return texts


def _judged(task: Task, item: Item, score: ItemScore, text: str) -> ItemScore:
    if task.kind == "gen":
        return replace(score, correct=float(is_right(text, item.answer)), text=text)
    outcome = run_program(f"{item.prompt}{text}\n{item.test}")
    return replace(score, correct=float(outcome == "passed"), text=text)
