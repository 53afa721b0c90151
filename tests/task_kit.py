"""Task files and a model of a few thousand parameters for the tests of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.data.tokenize import Tokenizer, train_bpe
from bam_core.nn.lm import LM, init_weights

WORDS = "the court held that a sum of 12 and 7 is 19 while def f(x): return x + 1 and\n    for i in range(10): pass\n\n"
TOKENIZER = train_bpe([WORDS * 3, "Question: how many are 5 and 8?\nAnswer: 13\n"], 320)
DENSE = ModelConfig(vocab_size=320, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, max_seq_len=64)
MIXTURE = replace(DENSE, attention=AttentionExperts(2, 2), ffn=FFNExperts(2, 1), experts=("general", "law"))
ROUTED = replace(MIXTURE, shared=SharedExperts())
CONFIGS = {"dense": DENSE, "mixture": MIXTURE, "routed": ROUTED}


def tokenizer() -> Tokenizer:
    return Tokenizer(TOKENIZER)


def tiny_model(config: ModelConfig = DENSE, seed: int = 0) -> LM:
    """In float64, its embeddings large enough that tokens differ in probability."""
    model = LM(config)
    init_weights(model, seed)
    model.embed.weight.data *= 30
    return model.cast(torch.float64).eval()


def choice(number: int, **changes: Any) -> dict[str, Any]:
    """An item of multiple choice: prompts and choices of varied length, some with white space or bytes beyond ASCII."""
    endings = ("", "\n", "  ", "\n\n")
    row = {
        "id": f"c{number}",
        "task": "cases",
        "domain": "law",
        "kind": "mc",
        "prompt": f"the court held that {number} and {3 * number % 17} é is" + endings[number % 4],
        "choices": [f" {number}", f" not {number} but {number + 1}", " a sum", " été" * (1 + number % 3)],
        "answer": number % 4,
    }
    return row | changes


def question(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"q{number}",
        "task": "sums",
        "domain": "math",
        "kind": "gen",
        "prompt": f"Question: how many are {number} and 8?\nAnswer:",
        "answer": str(number + 8),
        "solution": f"{number} + 8 = {number + 8}",
    }
    return row | changes


def program(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"p{number}",
        "task": "functions",
        "domain": "code",
        "kind": "code",
        "prompt": f"def f(x):\n    # adds {number}\n",
        "answer": f"    return x + {number}\n",
        "test": f"assert f(1) == {number + 1}\n",
    }
    return row | changes


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
