"""How people name artifacts."""

from __future__ import annotations

import re

import pytest

from bam_core.errors import UsageError
from bam_core.graph.record import Record
from bam_core.graph.refs import resolve


def record(stage: str, key: str, ended: float, model_id: str | None = None) -> Record:
    mlflow = {"model_id": model_id} if model_id else {}
    return Record(stage, key * 32, {}, {}, (), "", {}, {}, 0.0, ended, 1, mlflow)


RECORDS = [
    record("expert.law", "ab", ended=3.0, model_id="m-123"),
    record("expert.law", "ac", ended=1.0),
    record("seed", "ab", ended=2.0),
]


@pytest.mark.parametrize(
    ("ref", "index"),
    [
        ("expert.law", 0),
        ("expert.law@latest", 0),
        ("expert.law@ac", 1),
        ("expert.law@AC", 1),
        ("expert.law@" + "ab" * 32, 0),
        ("seed", 2),
        ("m-123", 0),
    ],
)
def test_resolved(ref: str, index: int) -> None:
    assert resolve(ref, RECORDS) is RECORDS[index]


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("expert.lwa", "'expert.lwa' names no artifact: did you mean 'expert.law'?"),
        ("expert.lwa@ab", "'expert.lwa@ab' names no artifact: did you mean 'expert.law'?"),
        ("expert.law@a", "names several artifacts: expert.law@acacacacacac, expert.law@abababababab"),
        ("expert.law@ff", "names no artifact: expert.law@acacacacacac, expert.law@abababababab"),
        ("expert.law@", "names no artifact"),
        ("@ab", "names no artifact"),
        ("", "names no artifact: known: expert.law, seed"),
    ],
)
def test_refused(ref: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        resolve(ref, RECORDS)


def test_an_empty_store_says_so() -> None:
    with pytest.raises(UsageError, match="the store holds no artifact yet"):
        resolve("seed", [])
