"""A recipe that shards its training over two workers on Ray gives the models of one process, up to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.e2e.kit import Place, merged

pytestmark = [pytest.mark.ray, pytest.mark.long]

SMALLER = {"domains": {"law": None}, "variants": {"btx": None}, "dense": False}
SHARDED = ("--set", "runtime.train.workers=2", "--set", "runtime.train.strategy=fsdp")
BF16_ROUNDING = 0.02
"""Micro-batches of other rows round otherwise in bf16."""


def test_a_mixture_trains_sharded_over_two_workers(ray_cluster: None, up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.general", "data.code", "seed")
    place.set_recipe(merged(place.recipe_dict(), SMALLER))
    assert place.run("--until", "mix.bam").status == 0
    local = Place(place.recipe, place.recipe.parent / "local")
    assert local.run("--until", "train.bam").status == 0

    answer = place.run("--until", "train.bam", *SHARDED, executor="ray")
    assert answer.status == 0, answer.err
    record, expected = place.record("train.bam"), local.record("train.bam")
    assert record["key"] == expected["key"], "where it runs is no part of what it is"
    assert [worker["rank"] for worker in record["provenance"]["ran_on"]] == [0, 1]
    assert {output["path"] for output in record["outputs"]} == {output["path"] for output in expected["outputs"]}
    assert record["metrics"]["loss"] == pytest.approx(expected["metrics"]["loss"], rel=BF16_ROUNDING)
    histories = [
        json.loads((found.artifact("train.bam") / "training.json").read_text())["history"] for found in (place, local)
    ]
    assert [entry["step"] for entry in histories[0]] == [entry["step"] for entry in histories[1]]
    assert not list((place.store / "training").glob("*"))
    assert place.run("--until", "report").status == 0, "later stages read what was written from shards"
