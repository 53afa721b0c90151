"""A stage that fails: the other branches are done, the message says how to continue, and that command does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

from tests.e2e.kit import SPECIALISTS, Place, executed

WRECK = ("--set", "domains.law.expert.lr=1e6")
"""A learning rate that no model survives."""


def continue_with(place: Place, err: str) -> list[str]:
    """The words of the command that a failure's message ends with, without `bam`."""
    words = shlex.split(err.splitlines()[-1])
    assert words[0] == "bam"
    assert words[-6:] == list(place.words())
    return words[1:]


def test_an_expert_that_diverges_fails_alone(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    answer = place.run(*WRECK)
    assert answer.status == 1
    assert "Traceback" not in answer.err
    states = {stage["stage"]: stage["status"] for stage in answer.json["stages"]}
    assert answer.json["status"] == "failed"
    assert states["expert.law"] == "failed"
    assert states["expert.code"] == states["dense"] == "done"
    assert {states[name] for name in ("mix.bam", "train.bam", "mix.btx", "train.btx", "evaluate", "report")} == {
        "skipped"
    }
    assert place.record("expert.code")["outputs"] == finished.record("expert.code")["outputs"]

    [folder] = place.artifacts("expert.law")
    error = json.loads((folder / "attempts" / "0001" / "error.json").read_text())
    assert error["type"] == "TrainingDiverged"
    assert "step " in error["message"]
    assert "Traceback" in error["traceback"]
    assert error["message"] in answer.err
    assert error["message"] in answer.stages()["expert.law"]["error"]
    assert not (folder / "record.json").exists()
    assert [row["state"] for row in place.bam("ls", "expert.law", "--json").json] == ["failed"]
    assert continue_with(place, answer.err) == ["run", str(place.recipe), *WRECK, *place.words()]


def test_repaired_it_continues_from_what_is_done(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    assert place.run(*WRECK, "--until", "evaluate").status == 1
    before = place.attempts()
    answer = place.run("--set", "domains.law.expert.lr=3e-3")
    assert answer.status == 0, answer.err
    assert executed(before, place.attempts()).isdisjoint({"expert.code", "seed"})
    assert place.perplexity() == finished.perplexity()


def test_the_same_command_tries_the_failed_stage_again(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed", "expert.code", "dense")
    assert place.run(*WRECK).status == 1
    before = place.attempts()
    again = place.bam(*continue_with(place, place.run(*WRECK).err), "--json", tracking=())
    assert again.status == 1
    assert executed(before, place.attempts()) == {"expert.law"}
    assert place.attempts()["expert.law"] == 3


def test_keep_going_shows_every_failure(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    answer = place.run(*WRECK, "--set", "phases.mixture.lr=1e6", "--set", "domains.code.expert.lr=1e6")
    failed = {stage["stage"] for stage in answer.json["stages"] if stage["status"] == "failed"}
    assert failed == {"expert.code", "expert.law", "dense"}
    assert all(f"bam: {name}: step " in answer.err for name in failed)


def test_fail_fast_starts_nothing_more(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    answer = place.run("--set", "domains.code.expert.lr=1e6", "--fail-fast")
    assert answer.status == 1
    states = {stage["stage"]: stage["status"] for stage in answer.json["stages"]}
    assert states["expert.code"] == "failed"
    assert {states[f"expert.{domain}"] for domain in SPECIALISTS if domain != "code"} == {"skipped"}
    assert states["dense"] == "skipped"
    assert place.artifacts("dense") == []


def test_text_that_changes_after_the_plan_is_never_taken_for_the_planned_one(up_to: Callable[..., Place]) -> None:
    """Texts are read again by the stage; what they were at plan time is in the key."""
    from pipelines.stages import data

    place = up_to("tokenizer")
    law = place.recipe.parent / "texts" / "law.jsonl"
    split = data.split

    def split_and_edit(documents: object, *options: object) -> object:
        parts = split(documents, *options)
        law.write_text(law.read_text() + '{"text": "one line more"}\n')
        return parts

    data.split = split_and_edit
    try:
        answer = place.run("--only", "data.law")
    finally:
        data.split = split
    assert answer.status == 1
    assert "changed since the plan; run again" in answer.err
    assert not place.is_done("data.law")
