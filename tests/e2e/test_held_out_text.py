"""`domains.NAME.valid`: held-out text of its own; all of the source is trained on, and the tokenizer never sees it."""

from __future__ import annotations

from typing import Any

from bam_core.documents import read_json
from tests.e2e.kit import Place, lines_of, merged, write_jsonl


def with_valid(place: Place, **domain: Any) -> Place:
    path = place.recipe.parent / "held_out.jsonl"
    write_jsonl(path, lines_of("law", 40, salt=7))
    valid = {"valid": {"kind": "jsonl", "path": str(path)}, "valid_frac": None} | domain
    place.set_recipe(merged(place.recipe_dict(), {"domains": {"law": valid}}))
    return place


def test_it_is_what_models_are_scored_on_and_all_else_is_trained_on(done: Place) -> None:
    before = read_json(done.artifact("data.law") / "stats.json")
    loose = ("--set", "evaluate.max_overlap=1", "--set", "evaluate.max_contaminated=1")
    answer = with_valid(done).run("--until", "data.law", *loose)
    assert answer.status == 0, answer.err
    assert answer.actions()["tokenizer"] == "reuse"
    [folder] = [
        folder for folder in done.artifacts("data.law") if folder.name in answer.stages()["data.law"]["artifact"]
    ]
    after = read_json(folder / "stats.json")
    whole = before["train"]["bytes"] + before["valid"]["bytes"]
    assert after["train"]["bytes"] == whole
    assert after["valid"]["documents"] == 40


def test_a_changed_held_out_text_makes_the_data_again_and_not_the_tokenizer(done: Place) -> None:
    place = with_valid(done)
    first = {stage["stage"]: stage["key"] for stage in place.plan().json["stages"]}
    write_jsonl(place.recipe.parent / "held_out.jsonl", lines_of("law", 41, salt=7))
    second = {stage["stage"]: stage["key"] for stage in place.plan().json["stages"]}
    assert first["data.law"] != second["data.law"]
    assert first["tokenizer"] == second["tokenizer"]
    assert first["data.code"] == second["data.code"]


def test_what_is_wrong_with_it_is_named_by_its_key(done: Place) -> None:
    place = with_valid(done, valid_frac=0.2, valid={"kind": "jsonl", "path": "missing.jsonl"})
    answer = place.plan()
    assert answer.status == 2
    assert "domains.law.valid_frac" in answer.err
    place = with_valid(done, valid={"kind": "jsonl", "path": str(place.recipe.parent / "missing.jsonl")})
    answer = place.plan()
    assert answer.status == 2
    assert "domains.law.valid.path" in answer.err
    assert "missing.jsonl" in answer.err
