"""Two runs on one page: what differs, whose models are better, and what is not fair to compare."""

from __future__ import annotations

import re
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from pipelines.report.formats import MINUS
from pipelines.report.pair import Chances, Pair, RunLeft, chances, pair_page
from pipelines.report.pair.build import training_curves
from pipelines.report.pair.tables import SAME, average_table, domains_table, recipe_table, runs_table, stages_table
from pipelines.report.pair.words import caveats, headline, tiles
from tests.report.fakes import DOMAINS, PERPLEXITY
from tests.report.pair_fakes import FACTOR, documents, run_a, run_b
from tests.report.test_report_build import HOSTILE, Page

BOTH = ["seed", "expert.code", "expert.law", "expert.math", "ensemble", "mix.bam", "mix.btx", "train.bam", "train.btx"]


def pair(b: dict[str, Any] | None = None, **a: Any) -> Pair:
    return Pair(run_a(**a), run_b(**(b or {})))


def rows(table: Any) -> dict[str, dict[str, Any]]:
    """By what stands in the first column."""
    return {row[table.columns[0].key]: row for row in table.rows}


def told(found: Pair) -> list[str]:
    return [line.striptags() for line in caveats(found, chances(found))]


def test_recipes_differ_in_a_key_and_in_a_group_that_one_has():
    assert rows(recipe_table(pair())) == {
        "phases.mixture.lr": {"key": "phases.mixture.lr", "a": "0.001", "b": "0.002"},
        "variants.bam_more": {"key": "variants.bam_more", "a": None, "b": "a group of 2 keys"},
    }


def test_averages_stand_side_by_side_with_their_difference():
    table = rows(average_table(pair(), Chances({})))
    assert list(table) == BOTH
    for model, row in table.items():
        average = sum(PERPLEXITY[model]) / 4
        assert row["a"] == pytest.approx(average)
        assert row["b"] == pytest.approx(average * FACTOR.get(model, 1.0))
        assert row["difference"] == pytest.approx(FACTOR.get(model, 1.0) - 1)
    assert {model for model, row in table.items() if row.get("word") == SAME} == {*BOTH} - {"train.bam", "train.btx"}


def test_every_model_and_domain_has_its_row():
    table = domains_table(pair())
    assert [(row["model"], row["domain"]) for row in table.rows] == [(m, d) for m in BOTH for d in DOMAINS]
    law = next(row for row in table.rows if (row["model"], row["domain"]) == ("train.bam", "law"))
    assert (law["a.perplexity"], law["b.perplexity"]) == (7.04, pytest.approx(7.04 * 0.9))
    assert [column.title for column in table.columns] == ["model", "domain", "A", "B", "change"]


def test_bits_per_byte_stand_beside_perplexities_of_other_tokens():
    found = pair({"tokenizer": "u" * 64})
    assert [column.title for column in domains_table(found).columns][5:7] == ["A, bits per byte", "B, bits per byte"]
    assert any("different tokenizers" in line for line in told(found))
    assert chances(found).found == {}


def test_a_difference_has_the_interval_of_the_same_documents():
    found = chances(pair())
    assert {model: one.word for model, one in found.found.items()} == {"train.bam": "better", "train.btx": "worse"}
    one = found.found["train.bam"]
    assert one.difference == pytest.approx(-0.1, abs=0.01)
    assert one.corrected_low < -0.1 < one.corrected_high < 0
    assert found.panel is not None
    assert f"train.bam {MINUS}10" in found.panel.label
    assert "2 of 2 differences of average perplexity are more than chance: train.bam and train.btx." in told(pair())


def other_documents(change: str) -> dict[str, Any]:
    scores = documents(FACTOR)
    if change == "numbers":
        return {"documents": replace(scores, documents=dict(scores.documents) | {"law": np.arange(1, 41)})}
    if change == "tokens":
        return {"documents": replace(scores, tokens=dict(scores.tokens) | {"law": np.full(40, 99)})}
    if change == "text":
        return {"held_out": dict.fromkeys(DOMAINS, "other")}
    if change == "seeds":
        return {"documents": documents(FACTOR, (0, 1))}
    return {"documents": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("numbers", "not evaluated on the same documents"),
        ("tokens", "not evaluated on the same documents"),
        ("text", "not evaluated on the same documents"),
        ("seeds", "A has the seeds 0 and B 0, 1"),
        ("none", "no losses of single documents"),
    ],
)
def test_without_the_same_documents_there_is_no_interval(change: str, words: str):
    found = chances(pair(other_documents(change)))
    assert (found.found, found.panel) == ({}, None)
    assert words in found.why_not
    assert any(words in line for line in told(pair(other_documents(change))))


def test_the_headline_counts_and_names_the_best():
    words = headline(pair()).striptags()
    assert "Of 9 models that both runs evaluated, 1 has a lower average perplexity in B and 1 has a higher one" in words
    assert "the best of A is train.bam (11.58) and the best of B is train.bam (10.42)" in words
    assert [tile.value for tile in tiles(pair())] == ["11.58", "10.42", f"{MINUS}10.0%"]


def test_models_of_one_run_are_named():
    assert "Only A has dense." in told(pair())
    assert "Only B has train.bam_more." in told(pair())


def test_domains_of_one_run_leave_the_average():
    b = run_b()
    models = {
        name: model | {"domains": {d: score for d, score in model["domains"].items() if d != "law"}}
        for name, model in b.evaluated.items()
    }
    found = pair({"perplexity": {"models": models}})
    assert found.domains == ["general", "code", "math"]
    expected = sum(score for domain, score in zip(DOMAINS, PERPLEXITY["seed"], strict=True) if domain != "law") / 3
    assert rows(average_table(found, Chances({})))["seed"]["a"] == pytest.approx(expected)
    assert "Only A was evaluated on law: averages are over the domains of both." in told(found)


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_went():
    made = {stage: found for stage, found in run_b().made.items() if stage != "evaluate"}
    found = pair({"made": made, "perplexity": None, "documents": None, "status": "interrupted"})
    assert "B is not finished (interrupted): 1 of its 14 stages are not made. What is there is compared." in told(found)
    assert "B has no evaluation, so perplexities cannot be compared." in told(found)
    assert headline(found).startswith("No model was evaluated in both runs: trainings, recipes and times can still be")
    page = pair_page(found, chances(found))
    assert "No model was evaluated in both runs." in page
    assert page.count("<svg") == 2


def test_a_run_of_a_killed_process_says_so():
    found = pair({"status": "running", "seconds": None})
    assert rows(runs_table(found))["status"]["b"] == "running, or its process was killed"
    assert rows(runs_table(found))["took"]["b"] is None


def test_what_is_not_fair_stands_on_the_page():
    found = pair({"made_by": {"device": "another", "commit": "feed"}})
    page, lines = pair_page(found, chances(found)), caveats(found, chances(found))
    assert lines
    assert all(f"<li>{line}</li>" in page for line in lines)


def test_curves_are_of_trainings_that_differ():
    drawn = training_curves(pair())
    assert [panel.label.partition(":")[0] for panel, _ in drawn] == ["train.bam", "train.btx"]
    assert re.fullmatch(rf"Ends: A at (\d\.\d+), B at (\d\.\d+) \({MINUS}3\.0%\)\.", drawn[0][1])
    assert "The same training in both" in pair_page(pair(), Chances({}))


def test_a_training_without_a_finite_loss_is_said_so():
    training = dict(run_b().training) | {"train.bam": [{"step": 1, "tokens": 8, "loss": nan}]}
    [(_, ends), _] = training_curves(pair({"training": training}))
    assert re.fullmatch(r"Only A at \d\.\d+: the other has no finite loss\.", ends)


def test_stages_show_times_tokens_and_what_is_shared():
    table = rows(stages_table(pair()))
    seed, trained = table["seed"], table["train.bam"]
    assert (seed["who"], trained["who"]) == (SAME, None)
    assert (seed["a.tokens"], seed["b.tokens"]) == (2_000_000, 2_000_000)
    assert trained["a.rate"] == pytest.approx(1_000_000 / trained["a.seconds"])
    assert "b.seconds" not in table["dense"]


def test_two_runs_of_the_same_artifacts():
    a = run_a()
    twin = replace(a, name="quickstart-20261102-101500-cccccc")
    found = Pair(a, twin)
    assert "the very same artifacts" in headline(found)
    page = pair_page(found, chances(found))
    assert "The recipes are equal." in page
    assert "<svg" not in page


def test_other_devices_make_times_no_comparison():
    found = pair({"made_by": {"device": "another", "commit": "feed"}})
    assert "The runs were made on other devices, so times cannot be compared." in told(found)
    assert "The runs were made by other code." in told(found)


def test_equal_inputs_give_equal_pages():
    assert pair_page(pair(), chances(pair())) == pair_page(pair(), chances(pair()))


def test_figures_that_are_not_finite_are_shown_and_win_nothing():
    models = dict(run_b().evaluated)
    models["train.bam"] = models["train.bam"] | {"average_perplexity": inf}
    found = pair({"perplexity": {"models": models}, "documents": None})
    table = average_table(found, chances(found))
    assert rows(table)["train.bam"]["difference"] is None
    assert "the best of B is train.bam_more" in headline(found).striptags()
    assert "∞" in pair_page(found, chances(found))


def hostile(run: RunLeft) -> RunLeft:
    models = dict(run.evaluated) | {f"train.{HOSTILE}": run.evaluated["train.bam"]}
    training = dict(run.training) | {f"train.{HOSTILE}": run.training["train.bam"]}
    recipe = dict(run.recipe) | {HOSTILE: f"{HOSTILE} {run.name}"}
    made_by = dict.fromkeys(run.made_by, HOSTILE)
    return replace(
        run, perplexity={"models": models}, documents=None, training=training, recipe=recipe, made_by=made_by
    )


def test_hostile_names_are_shown_and_do_nothing():
    found = Pair(hostile(run_a()), hostile(run_b()))
    html = pair_page(found, chances(found))
    page = Page(html)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert(1)</script>" in page.text
    assert not set("\x00\u202e") & set(html)


def test_every_drawing_has_a_sentence_and_every_link_a_section():
    page = pair_page(pair(), chances(pair()))
    assert page.count("<figure") == page.count("<figcaption>") == page.count("<svg") == 3
    assert set(re.findall(r'href="#(\w+)"', page)) == set(re.findall(r'section id="(\w+)"', page))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
