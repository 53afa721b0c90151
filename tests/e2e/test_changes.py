"""A change runs what depends on it and nothing else; options choose what runs, and each decision says why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.e2e.kit import STAGES, Place, executed, lines_of, merged, write_jsonl

MIXTURES = {"mix.bam", "train.bam", "mix.btx", "train.btx", "routing"}
JUDGED = {"evaluate", "report"}

TEXTS = {"tokenizer", "data.general", "data.code", "data.law", "overlap"}


def to_run(place: Place, *options: str) -> set[str]:
    """What a plan says would run."""
    return {name for name, action in place.plan(*options).actions().items() if action == "run"}


def really_run(place: Place, *options: str) -> set[str]:
    """What a run began to make, by the attempts in the store; the run must end well and say the same."""
    planned, before = to_run(place, *options), place.attempts()
    answer = place.run(*options)
    assert answer.status == 0, answer.err
    begun = executed(before, place.attempts())
    assert begun == {name for name, action in answer.actions().items() if action == "run"} == planned
    return begun


def seen(place: Place, stages: Iterable[str]) -> dict[Path, int]:
    """When each file of these stages was written."""
    files = (file for stage in stages for file in (place.store / "artifacts" / stage).rglob("*") if file.is_file())
    return {file: file.stat().st_mtime_ns for file in files}


def test_other_text_of_one_domain_runs_that_domain_and_what_is_built_from_it(done: Place) -> None:
    others = {"tokenizer", "data.general", "data.code", "seed", "expert.code"}
    untouched, old = seen(done, others), done.perplexity()
    write_jsonl(done.recipe.parent / "texts" / "law.jsonl", lines_of("law", salt=1))
    reasons = {name: (stage["cause"], stage["reason"]) for name, stage in done.plan().stages().items()}
    assert reasons["data.law"][0] == "data"
    assert reasons["expert.law"] == ("input", "data.law runs")
    assert reasons["dense"] == ("input", "data.law runs")
    assert reasons["mix.bam"] == ("input", "expert.law and 1 more run"), "and its text, on which routers are measured"

    assert really_run(done) == {"data.law", "overlap", "expert.law", "dense", *MIXTURES, *JUDGED}
    assert seen(done, others) == untouched
    new = [folder / "perplexity.json" for folder in done.artifacts("evaluate")]
    assert sorted(path.read_bytes() == old for path in new) == [False, True], "the old result stays beside the new one"


def test_another_learning_rate_of_one_expert_runs_it_and_what_is_built_from_it(done: Place) -> None:
    done.set_recipe(merged(done.recipe_dict(), {"domains": {"law": {"expert": {"lr": 1e-3}}}}))
    expert = done.plan().stages()["expert.law"]
    assert (expert["cause"], expert["reason"]) == ("config", "phase.lr 0.003 -> 0.001")
    assert really_run(done) == {"expert.law", *MIXTURES, *JUDGED}
    done.set_recipe(merged(done.recipe_dict(), {"domains": {"law": {"expert": {"lr": 3e-3}}}}))
    assert to_run(done) == set(), "what was made before is still there"


def test_set_on_the_command_line_is_the_same_as_in_the_recipe(done: Place) -> None:
    assert to_run(done, "--set", "domains.law.expert.lr=1e-3") == {"expert.law", *MIXTURES, *JUDGED}


def test_a_new_domain_leaves_the_other_experts_alone(done: Place) -> None:
    texts = done.recipe.parent / "texts"
    write_jsonl(texts / "math.jsonl", lines_of("math"))
    source = {"kind": "jsonl", "path": str(texts / "math.jsonl")}
    done.set_recipe(merged(done.recipe_dict(), {"domains": {"math": {"source": source}}}))
    assert to_run(done) == {"data.math", "overlap", "expert.math", "dense", *MIXTURES, *JUDGED}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"variants": {"btx": {"ffn": {"top_k": 2}}}}, {"mix.btx", "train.btx", "routing", *JUDGED}),
        ({"phases": {"mixture": {"lr": 1e-3}}}, {"train.bam", "train.btx", "dense", "routing", *JUDGED}),
        ({"evaluate": {"tokens": 1000}}, JUDGED),
        ({"phases": {"seed": {"lr": 1e-3}}}, {*STAGES} - TEXTS),
        ({"tokenizer": {"vocab_size": 310}}, {*STAGES}),
        ({"seed": 1}, {*STAGES} - TEXTS),
    ],
    ids=["variant", "mixture phase", "evaluate", "seed phase", "tokenizer", "random seed"],
)
def test_a_change_of_the_recipe_runs_what_it_defines(
    finished: Place, tmp_path: Path, change: dict[str, object], expected: set[str]
) -> None:
    changed = Place(tmp_path / "tiny.yaml", finished.store)
    changed.set_recipe(merged(finished.recipe_dict(), change))
    assert to_run(changed) == expected


def test_where_it_runs_and_where_texts_lie_change_nothing(done: Place) -> None:
    texts = done.recipe.parent / "texts"
    texts.rename(texts.with_name("elsewhere"))
    moved = {
        name: {"source": {"path": domain["source"]["path"].replace("/texts/", "/elsewhere/")}}
        for name, domain in done.recipe_dict()["domains"].items()
    }
    runtime = {"expert": {"cpus": 2}, "checkpoint_steps": 3, "max_parallel": 2}
    done.set_recipe(merged(done.recipe_dict(), {"domains": moved, "runtime": runtime}))
    assert set(done.run().actions().values()) == {"reuse"}


def test_force_really_makes_it_again_and_ends_in_the_same_bytes(done: Place) -> None:
    old, kept = done.perplexity(), seen(done, ["seed", "expert.code", "data.law", "dense"])
    plan = done.plan("--force", "expert.law").stages()
    assert (plan["expert.law"]["cause"], plan["expert.law"]["reason"]) == ("forced", "forced by --force")
    assert plan["mix.bam"]["reason"] == "expert.law runs"
    assert plan["seed"]["reason"] == "done"
    assert really_run(done, "--force", "expert.law") == {"expert.law", *MIXTURES, *JUDGED}
    assert done.perplexity() == old
    assert seen(done, ["seed", "expert.code", "data.law", "dense"]) == kept
    assert done.record("expert.law")["attempt"] == 2
    assert set(done.run().actions().values()) == {"reuse"}


def test_force_with_only_leaves_what_is_built_from_it(done: Place) -> None:
    assert really_run(done, "--force", "expert.law", "--only", "expert.law") == {"expert.law"}
    assert set(done.run().actions().values()) == {"reuse"}, "the same bytes came out, so all the rest still holds"


def test_until_makes_a_stage_and_what_it_needs(empty: Place) -> None:
    needed = {"tokenizer", "data.general", "seed"}
    assert really_run(empty, "--until", "seed") == needed
    assert {stage for stage in STAGES if empty.is_done(stage)} == needed


def test_from_and_until_choose_from_the_recipe(finished: Place) -> None:
    force = ("--force", "*")
    assert to_run(finished, *force) == set(STAGES)
    assert to_run(finished, *force, "--from", "train.*") == {"train.bam", "train.btx", "routing", *JUDGED}
    assert to_run(finished, *force, "--from", "mix.bam", "--until", "evaluate") == {"mix.bam", "train.bam", "evaluate"}
    assert to_run(finished, *force, "--only", "expert.*") == {"expert.code", "expert.law"}


def test_only_is_blocked_by_what_is_missing_and_says_how_to_make_it(empty: Place) -> None:
    stages = empty.plan("--only", "expert.law").stages()
    expert = stages["expert.law"]
    assert (expert["action"], expert["cause"]) == ("blocked", "input")
    assert "bam run tiny --until" in expert["reason"]
    answer = empty.run("--only", "expert.law")
    assert answer.status == 1
    assert not empty.store.exists(), "a run that can do nothing writes nothing"


def test_dry_run_writes_nothing(empty: Place) -> None:
    answer = empty.run("--dry-run")
    assert answer.status == 0
    assert set(answer.actions().values()) == {"run"}
    assert not empty.store.exists()
