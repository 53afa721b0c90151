"""Held-out text that was trained on: found before anything is trained; refused, or allowed where a recipe says so."""

from __future__ import annotations

import json

from tests.e2e.kit import Place, lines_of, write_jsonl


def plant(place: Place) -> None:
    """Half the documents of law are documents of code too, in capitals; each is in the held-out part of one at most."""
    texts = place.recipe.parent / "texts"
    copies = lines_of("math", n_lines=120)
    write_jsonl(texts / "code.jsonl", [*lines_of("code", n_lines=120), *copies])
    write_jsonl(texts / "law.jsonl", [*lines_of("law", n_lines=120), *(line.upper() for line in copies)])


def test_copies_between_domains_stop_the_run_before_it_trains(empty: Place) -> None:
    plant(empty)
    answer = empty.run()
    assert answer.status == 1
    states = {stage["stage"]: stage["status"] for stage in answer.json["stages"]}
    assert states["overlap"] == "failed"
    assert {states[f"data.{domain}"] for domain in ("general", "code", "law")} == {"done"}
    assert {states[name] for name in ("seed", "expert.law", "dense", "evaluate", "report")} == {"skipped"}
    assert empty.artifacts("seed") == []
    assert "domains.law" in answer.err
    assert "held-out documents" in answer.err
    assert "evaluate.allow_overlap: true" in answer.err
    assert "Traceback" not in answer.err


def test_a_recipe_may_allow_it_and_the_figures_say_it(empty: Place) -> None:
    plant(empty)
    answer = empty.run("--set", "evaluate.allow_overlap=true", "--until", "overlap")
    assert answer.status == 0, answer.err
    told = json.loads((empty.artifact("overlap") / "overlap.json").read_text())
    assert told["allowed"] is True
    law = told["domains"]["law"]
    assert law["contaminated"] == law["duplicates"] > 0.2 * law["documents"]
    assert law["examples"][0]["duplicate_of"] == "code"
    assert law["examples"][0]["start"].isupper()
    assert told["domains"]["general"]["duplicates"] == 0
    assert empty.record("overlap")["metrics"]["duplicates.law"] == law["duplicates"]


def test_a_training_alone_does_not_ask_for_the_check(empty: Place) -> None:
    plant(empty)
    planned = empty.plan("--until", "seed").actions()
    assert "overlap" not in planned
    assert planned["seed"] == "run"
