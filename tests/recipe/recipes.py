"""A small good recipe as plain data, for tests to spoil."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

GOOD: dict[str, Any] = {
    "name": "small",
    "domains": {
        "general": {"source": {"kind": "python-docs"}},
        "code": {"source": {"kind": "text", "path": "code.txt"}},
        "math": {"source": {"kind": "generated-math", "documents": 10}},
    },
    "tokenizer": {"kind": "bpe", "vocab_size": 300},
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "max_seq_len": 32},
    "phases": {
        "seed": {"tokens": 640, "batch_tokens": 64, "lr": 1e-3, "data": {"general": 0.8, "code": 0.2}},
        "expert": {"tokens": 640, "batch_tokens": 64, "lr": 1e-3, "data": {"own": 0.9, "general": 0.1}},
        "mixture": {"tokens": 640, "batch_tokens": 64, "lr": 1e-3, "data": "uniform"},
    },
    "variants": {
        "bam": {"attention": {"routing": "soft", "kv": "expert"}, "ffn": {"top_k": 1}},
        "btx": {"attention": "merged", "ffn": {"top_k": 1}},
    },
    "evaluate": {"tokens": 320},
}

MISSING = object()
"""As a value of `spoiled`: take the key away."""


def spoiled(changes: dict[str, Any]) -> dict[str, Any]:
    """GOOD with the values at dotted paths replaced, added or (MISSING) taken away."""
    recipe = deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = recipe
        for key in parents:
            part = part.setdefault(key, {})
        if value is MISSING:
            del part[last]
        else:
            part[last] = deepcopy(value)
    return recipe
