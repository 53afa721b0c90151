"""`only`, `from_` and `until` are set algebra; `force` never widens a selection."""

from __future__ import annotations

import re

import pytest

from bam_core.errors import UsageError
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline, Stage

EDGES = {
    "tokenizer": [],
    "data.law": ["tokenizer"],
    "data.code": ["tokenizer"],
    "seed": ["data.law", "data.code"],
    "expert.law": ["seed", "data.law"],
    "expert.code": ["seed", "data.code"],
    "mix.bam": ["seed", "expert.law", "expert.code"],
    "dense": ["seed", "data.law", "data.code"],
    "report": ["mix.bam", "dense"],
}
PIPELINE = Pipeline(
    "p",
    tuple(Stage(name, "f", 1, {}, {parent: parent for parent in parents}) for name, parents in EDGES.items()),
)


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(), " ".join(EDGES)),
        (Selection(only=("seed",)), "seed"),
        (Selection(only=("expert.*", "seed")), "seed expert.law expert.code"),
        (Selection(from_=("expert.law",)), "expert.law mix.bam report"),
        (Selection(from_=("dense", "mix.*")), "mix.bam dense report"),
        (Selection(until=("seed",)), "tokenizer data.law data.code seed"),
        (Selection(until=("expert.law",)), "tokenizer data.law data.code seed expert.law"),
        (Selection(from_=("seed",), until=("mix.bam",)), "seed expert.law expert.code mix.bam"),
        (Selection(from_=("data.law",), until=("expert.code",)), "data.law seed expert.code"),
        (Selection(only=("seed", "report"), from_=("mix.bam",)), "report"),
        (Selection(only=("seed", "dense", "report"), from_=("seed",), until=("dense",)), "seed dense"),
    ],
)
def test_selected(selection: Selection, names: str) -> None:
    assert selection.stages(PIPELINE) == set(names.split())


@pytest.mark.parametrize(
    ("selection", "forced"),
    [
        (Selection(force=("expert.*",)), {"expert.law", "expert.code"}),
        (Selection(force=("expert.*", "seed"), only=("expert.law",)), {"expert.law"}),
        (Selection(force=("seed",), from_=("mix.bam",)), set()),
    ],
)
def test_force_stays_within_the_selection(selection: Selection, forced: set[str]) -> None:
    assert selection.forced(PIPELINE) == forced


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (
            Selection(only=("expert.lwa",)),
            "--only expert.lwa: no stage of 'p' has this name; did you mean 'expert.law'?",
        ),
        (Selection(from_=("sed",)), "--from sed: no stage of 'p' has this name; did you mean 'seed'?"),
        (
            Selection(until=("seed", "train.*")),
            "--until train.*: no stage of 'p' has this name; known: data.code, ",
        ),
        (Selection(force=("Seed",)), "--force Seed: no stage of 'p' has this name; did you mean 'seed'?"),
        (Selection(from_=("dense",), until=("mix.bam",)), "intersect to nothing"),
    ],
)
def test_names_that_mean_nothing(selection: Selection, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        selection.forced(PIPELINE)
