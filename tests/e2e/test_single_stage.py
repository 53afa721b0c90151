"""`bam stage NAME RECIPE`: one stage on its own, from what is there, from what is given, or with all it needs."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.stages import tokenizer
from tests.e2e.kit import Place, executed, merged


def test_a_stage_runs_from_inputs_that_are_there(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    before = place.attempts()
    answer = place.bam("stage", "expert.law", str(place.recipe), "--json")
    assert answer.status == 0, answer.err
    assert executed(before, place.attempts()) == {"expert.law"}
    assert place.record("expert.law")["digest"] == finished.record("expert.law")["digest"]


def test_a_stage_without_its_inputs_is_refused_and_nothing_is_written(empty: Place) -> None:
    answer = empty.bam("stage", "expert.law", str(empty.recipe))
    assert answer.status == 2
    assert answer.out == ""
    assert "expert.law: needs seed" in answer.err
    assert "--with-deps" in answer.err
    assert "--input ROLE=REF" in answer.err
    assert "Traceback" not in answer.err
    assert not empty.store.exists()


def test_with_deps_makes_what_it_needs_and_nothing_else(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.general")
    before = place.attempts()
    answer = place.bam("stage", "expert.law", str(place.recipe), "--with-deps", "--json")
    assert answer.status == 0, answer.err
    assert executed(before, place.attempts()) == {"seed", "data.law", "expert.law"}
    assert place.record("expert.law")["digest"] == finished.record("expert.law")["digest"]


def test_an_input_that_is_given_is_read_recorded_and_keyed(up_to: Callable[..., Place], finished: Place) -> None:
    """The law expert branched from the code expert instead of from the seed."""
    place = up_to("tokenizer", "data.*", "seed", "expert.*")
    given = place.record("expert.code")
    answer = place.bam("stage", "expert.law", str(place.recipe), "--input", "seed=expert.code@latest", "--json")
    assert answer.status == 0, answer.err
    usual = finished.record("expert.law")
    [other] = [folder for folder in place.artifacts("expert.law") if folder.name != usual["key"][:12]]
    record = json.loads((other / "record.json").read_text())
    assert answer.stages()["expert.law"]["key"] == record["key"] != usual["key"]
    assert record["inputs"]["seed"] == {name: given[name] for name in ("stage", "key", "digest")}
    assert record["digest"] != usual["digest"]
    assert record["metrics"]["lineage_tokens"] == usual["metrics"]["lineage_tokens"] + 20 * 256

    again = place.bam("stage", "expert.law", str(place.recipe), "--input", "seed=expert.code", "--json")
    assert again.actions()["expert.law"] == "reuse"
    assert place.run("--only", "expert.law").actions() == {"expert.law": "reuse"}, "the recipe's own is still done"


def test_a_given_input_replaces_one_that_is_missing(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "expert.code")
    answer = place.bam("stage", "expert.law", str(place.recipe), "--input", "seed=expert.code", "--json")
    assert answer.status == 0, answer.err
    assert not place.is_done("seed")


def test_wrong_inputs_are_refused_and_nothing_is_written(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    before = set(place.store.rglob("*"))
    for words, expected in [
        (("expert.lwa", str(place.recipe)), "did you mean 'expert.law'?"),
        (("expert.law", str(place.recipe), "--input", "sed=seed"), "did you mean 'seed'?"),
        (("expert.law", str(place.recipe), "--input", "seed=sed"), "'sed' names no artifact"),
        (("expert.law", str(place.recipe), "--input", "seed"), "must read role=REF"),
        (("expert.law", str(place.recipe), "--input", "seed=seed@0000"), "names no artifact"),
    ]:
        answer = place.bam("stage", *words)
        assert answer.status == 2, words
        assert expected in answer.err
    assert set(place.store.rglob("*")) == before


def test_inputs_of_another_kind_or_tokenizer_are_refused_before_anything_runs(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed", "expert.*")
    other = Place(place.recipe.with_name("other.yaml"), place.store)
    other.set_recipe(merged(place.recipe_dict(), {"tokenizer": {"domains": ["general", "law"]}}))
    assert other.run("--until", "expert.code").status == 0
    before = place.attempts()
    for words, expected in [
        (("expert.law", "--input", "seed=data.general"), "is of kind 'data', must be 'model'"),
        (("expert.law", "--input", "data.law=seed"), "is of kind 'model', must be 'data'"),
        (("mix.bam", "--input", "expert.code=expert.code@latest"), "was made with another tokenizer than seed@"),
        (("train.bam", "--with-deps", "--input", "data.code=data.code"), "was made with another tokenizer than"),
    ]:
        answer = place.bam("stage", *words, str(place.recipe))
        assert answer.status == 2, words
        assert expected in answer.err
    assert place.attempts() == before


@pytest.mark.parametrize("change", [{"model": {"d_ff": 32}}, {"phases": {"seed": {"lr": 0.001}}}])
def test_an_expert_of_another_seed_is_refused(up_to: Callable[..., Place], change: dict[str, Any]) -> None:
    """Of another shape, or of equal shape, which nothing later would notice."""
    place = up_to("tokenizer", "data.*", "seed", "expert.*")
    other = Place(place.recipe.with_name("other.yaml"), place.store)
    other.set_recipe(merged(place.recipe_dict(), change))
    assert other.run("--until", "expert.code").status == 0
    answer = place.bam("stage", "mix.bam", str(place.recipe), "--input", "expert.code=expert.code@latest")
    assert answer.status == 2
    assert "was branched from another seed than seed@" in answer.err
    assert not place.is_done("mix.bam")


def test_an_expert_that_branched_from_an_expert_can_be_mixed(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed", "expert.code")
    assert place.bam("stage", "expert.law", str(place.recipe), "--input", "seed=expert.code").status == 0
    answer = place.bam("stage", "mix.bam", str(place.recipe), "--input", "expert.law=expert.law@latest")
    assert answer.status == 0, answer.err


def test_the_memory_to_mix_is_said_before_the_start(up_to: Callable[..., Place]) -> None:
    answer = up_to("tokenizer", "data.*", "seed", "expert.*").run("--only", "mix.bam")
    assert answer.status == 0, answer.err
    lines = answer.err.splitlines()
    [said] = [index for index, line in enumerate(lines) if re.match(r"memory to mix: up to \d+ MiB \(mix.bam\)", line)]
    assert any("mix.bam" in line and "starts" in line for line in lines[said + 1 :])


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_loaded_is_not_searched_for_garbage_while_a_stage_runs(
    empty: Place, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    frozen: list[int] = []
    runs = tokenizer.run

    def seen(context: Any) -> Any:
        frozen.append(gc.get_freeze_count())
        if fails:
            raise RuntimeError("on purpose")
        return runs(context)

    monkeypatch.setattr(tokenizer, "run", seen)
    assert empty.run("--only", "tokenizer").status == int(fails)
    assert frozen[0] > 10_000
    assert gc.get_freeze_count() == 0
