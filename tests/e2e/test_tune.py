"""A search in a pipeline: what it finds is what the next stages train with, whatever happened on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from bam_core.checkpoint import load_model
from bam_core.data.shards import ShardedRows
from bam_core.evaluate.perplexity import score
from tests.e2e.kit import Place, merged
from tests.faults.processes import KillPoint, Process, end_all

LR, GENERAL = "phases.expert.lr", "phases.expert.data.general"
SEARCH = {
    "stage": "expert.law",
    "search": {LR: {"log_uniform": [1e-4, 3e-2]}, GENERAL: {"uniform": [0.05, 0.5]}},
    "trials": 6,
    "eval_tokens": 1000,
}
FILES = ("best.json", "trials.json", "trials.parquet")


@pytest.fixture
def searching(up_to: Callable[..., Place]) -> Place:
    place = up_to("tokenizer", "data.*", "seed")
    return with_search(place)


def with_search(place: Place, **changes: Any) -> Place:
    place.set_recipe(place.recipe_dict() | {"tune": {"lr": SEARCH | changes}})
    return place


def found(place: Place) -> dict[str, Any]:
    return json.loads((place.artifact("tune.lr") / "best.json").read_text())


def trials(place: Place) -> list[dict[str, Any]]:
    return json.loads((place.artifact("tune.lr") / "trials.json").read_text())["trials"]


def phase(place: Place, stage: str) -> dict[str, Any]:
    """What a stage says that it trained with."""
    return json.loads((place.artifact(stage) / "training.json").read_text())["phase"]


def test_the_best_values_are_what_every_expert_trains_with(searching: Place) -> None:
    answer = searching.run("--only", "tune.*", "--only", "expert.*")
    assert answer.status == 0, answer.err
    values = found(searching)["values"]
    total = 0.9 + values[GENERAL]
    for domain in ("law", "code"):
        trained = phase(searching, f"expert.{domain}")
        assert trained["lr"] == values[LR]
        assert trained["shares"] == {"general": values[GENERAL] / total, domain: 0.9 / total}
        made_from = searching.record(f"expert.{domain}")["inputs"]["tune.lr"]
        assert made_from == {name: searching.record("tune.lr")[name] for name in ("stage", "key", "digest")}


def test_a_trial_is_the_training_that_it_stands_for(searching: Place) -> None:
    """The expert that trains with the best values reaches the loss that chose them, to the last bit."""
    assert searching.run("--only", "tune.*", "--only", "expert.law").status == 0
    expert = load_model(searching.artifact("expert.law"), dtype=torch.bfloat16)
    rows = ShardedRows(searching.artifact("data.law") / "valid")
    assert score(expert, rows, SEARCH["eval_tokens"])[0].nll == found(searching)["loss"]


def test_a_look_at_a_rung_changes_nothing_of_the_training_after_it(searching: Place) -> None:
    """Even where a model computes otherwise in training: there, experts have no room for all that comes."""
    tight = {"variants": {"btx": {"ffn": {"capacity_factor": 0.5}}}}
    lr = {"phases.mixture.lr": {"uniform": [1e-3, 3e-3]}}
    searching.set_recipe(merged(searching.recipe_dict(), tight))
    with_search(searching, stage="train.btx", search=lr, trials=1, rungs=2, domains=["law"])
    assert searching.run("--until", "train.btx").status == 0
    trained = load_model(searching.artifact("train.btx"), dtype=torch.bfloat16)
    rows = ShardedRows(searching.artifact("data.law") / "valid")
    assert score(trained, rows, SEARCH["eval_tokens"])[0].nll == found(searching)["loss"]


def test_the_best_trial_is_the_best_and_those_that_fell_behind_were_stopped(searching: Place) -> None:
    assert searching.run("--only", "tune.*").status == 0
    tried, metrics = trials(searching), searching.record("tune.lr")["metrics"]
    ended = {index: trial["rungs"][-1]["loss"] for index, trial in enumerate(tried) if trial["status"] == "finished"}
    assert found(searching)["trial"] == min(ended, key=ended.__getitem__)
    assert found(searching)["loss"] == min(ended.values()) == metrics["best_loss"]
    assert [rung["step"] for rung in tried[0]["rungs"]] == [2, 6, 20]
    stopped = [trial for trial in tried if trial["status"] == "stopped"]
    assert len(stopped) == metrics["n_stopped"] >= 2
    assert all(trial["rungs"][-1]["step"] < 20 for trial in stopped)
    assert metrics["train_tokens"] == sum(256 * trial["rungs"][-1]["step"] for trial in tried)
    table = pq.read_table(searching.artifact("tune.lr") / "trials.parquet").to_pylist()
    assert [(row[LR], row["status"]) for row in table] == [(t["values"][LR], t["status"]) for t in tried]
    assert len(metrics["trial_s"]) == 6
    assert not list((searching.store / "training").glob("*")), "checkpoints of trials are gone"


@pytest.fixture
def killed() -> Any:
    yield Process
    end_all()


@pytest.mark.parametrize("n", [1, 4, 7])
def test_killed_in_the_middle_it_continues_and_ends_alike(searching: Place, killed: type[Process], n: int) -> None:
    undisturbed = Place(searching.recipe, searching.recipe.parent / "undisturbed")
    assert undisturbed.run("--until", "tune.lr").status == 0
    words = ("run", str(searching.recipe), "--only", "tune.*")
    process = killed(searching, *words, kill=KillPoint("os.rename", "notes/*.json", n))
    assert process.end() == -9
    assert not searching.is_done("tune.lr")
    notes = {path.name for path in searching.store.glob("training/*/*/notes/*.json")}
    assert len(notes) == len({path for path in notes if path.startswith("trial-")}) < 6

    assert searching.bam(*words).status == 0
    assert searching.record("tune.lr")["attempt"] == 2
    for name in FILES:
        assert (searching.artifact("tune.lr") / name).read_bytes() == (
            undisturbed.artifact("tune.lr") / name
        ).read_bytes(), name


def test_it_is_reused_and_what_it_searches_is_in_the_key_of_what_uses_it(searching: Place) -> None:
    selection = ("--only", "tune.*", "--only", "expert.law")
    assert searching.run(*selection).status == 0
    assert searching.run(*selection).actions() == {"tune.lr": "reuse", "expert.law": "reuse"}
    with_search(searching, trials=7)
    plan = searching.plan(*selection).stages()
    assert (plan["tune.lr"]["action"], plan["tune.lr"]["reason"]) == ("run", "trials 6 -> 7")
    assert (plan["expert.law"]["action"], plan["expert.law"]["cause"]) == ("run", "input")
    searching.set_recipe(merged(with_search(searching).recipe_dict(), {"phases": {"expert": {"lr": 0.5}}}))
    assert searching.run(*selection).actions() == {"tune.lr": "reuse", "expert.law": "reuse"}, "it is searched"


def test_a_trial_that_diverges_is_one_that_did_not_do_well(searching: Place) -> None:
    with_search(searching, search={LR: {"choice": [1e6, 3e-3]}}, rungs=1)
    assert searching.run("--only", "tune.*").status == 0
    status = {trial["values"][LR]: trial["status"] for trial in trials(searching)}
    assert status == {1e6: "diverged", 3e-3: "finished"}
    assert found(searching)["values"] == {LR: 3e-3}


def test_a_search_in_which_all_diverge_fails_in_words(searching: Place) -> None:
    with_search(searching, search={LR: {"uniform": [1e6, 2e6]}}, trials=2)
    answer = searching.run("--only", "tune.*")
    assert answer.status == 1
    assert "tune.lr: each of 2 trials diverged; search a lower range" in answer.err
    assert "Traceback" not in answer.err
    assert not searching.is_done("tune.lr")


def test_a_best_value_of_another_search_is_refused(searching: Place) -> None:
    assert searching.run("--only", "tune.*").status == 0
    with_search(searching, search={"phases.expert.weight_decay": {"uniform": [0.0, 0.2]}})
    answer = searching.bam("stage", "expert.law", str(searching.recipe), "--input", "tune.lr=tune.lr")
    assert answer.status == 1
    assert "tune.lr: its search has no best value of phases.expert.weight_decay" in answer.err


def test_a_variants_search_and_the_report_of_a_whole_run(searching: Place) -> None:
    coefficient = "phases.mixture.load_balancing_coef"
    balance = {"stage": "train.btx", "search": {coefficient: {"log_uniform": [1e-3, 1e-1]}}, "trials": 2, "rungs": 1}
    searching.set_recipe(merged(searching.recipe_dict(), {"tune": {"balance": balance | {"eval_tokens": 500}}}))
    plan = searching.plan()
    assert plan.json["searches"]["tune.lr"] == {
        "trials": 6,
        "train_tokens": 6 * 20 * 256,
        "train_flops": 6 * plan.json["models"]["expert.law"]["train_flops"],
    }
    assert "search, at most" in searching.bam("plan", str(searching.recipe)).out
    answer = searching.run()
    assert answer.status == 0, answer.err
    chosen = json.loads((searching.artifact("tune.balance") / "best.json").read_text())["values"][coefficient]
    for stage in ("train.bam", "train.btx"):
        assert phase(searching, stage)["load_balancing_coef"] == chosen
    assert "tune.balance" not in searching.record("dense")["inputs"], "it has no router"

    report = searching.artifact("report")
    with (report / "tables" / "searches.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {LR, GENERAL, coefficient}
    assert float(rows[LR]["value"]) == found(searching)["values"][LR]
    assert rows[LR]["space"] == "0.0001 to 0.03, logarithmic"
    assert int(rows[LR]["trials"]) == 6
    assert '<section id="searches">' in (report / "report.html").read_text()
    with (report / "tables" / "costs.csv").open() as file:
        assert all(float(row["train_flops"]) > 0 for row in csv.DictReader(file) if row["stage"].startswith("tune."))
    ensemble = json.loads(searching.perplexity())["models"]["ensemble"]
    assert ensemble["lineage_tokens"] == 3 * 20 * 256, "the seed once, though each expert has a search behind it too"


def test_without_a_search_the_report_has_no_such_section(finished: Place) -> None:
    report = finished.artifact("report")
    assert "searches" not in (report / "report.html").read_text()
    assert not (report / "tables" / "searches.csv").exists()


@pytest.fixture
def driver(searching: Place) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the search on an embedded Ray of its own; all that is left of it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    words = searching.words("run", str(searching.recipe), "--only", "tune.*", executor="ray")

    def start() -> subprocess.Popen[bytes]:
        with (searching.recipe.parent / f"driver-{len(started)}.txt").open("wb") as output:
            script = Path(sys.executable).with_name("bam")
            process = subprocess.Popen([script, *words], stdout=output, stderr=output, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended_trials(place: Place) -> dict[str, str]:
    notes = {path.stem: json.loads(path.read_text()) for path in place.store.glob("training/*/*/notes/trial-*.json")}
    return {name: note["status"] for name, note in notes.items() if note["status"] is not None}


@pytest.mark.ray
@pytest.mark.long
def test_the_driver_killed_in_the_middle_of_a_search_on_ray(
    searching: Place, driver: Callable[[], subprocess.Popen[bytes]]
) -> None:
    with_search(searching, trials=4)
    process = driver()
    while not (before := ended_trials(searching)):
        with pytest.raises(subprocess.TimeoutExpired):  # it must still run
            process.wait(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before |= ended_trials(searching)
    assert not searching.is_done("tune.lr")

    assert driver().wait() == 0, (searching.recipe.parent / "driver-1.txt").read_text()
    assert searching.record("tune.lr")["attempt"] == 2
    after = {trial["name"]: trial["status"] for trial in trials(searching)}
    assert {name: after[name] for name in before} == before
    logs = searching.artifact("tune.lr") / "attempts" / "0002"
    ran = {path.name for path in logs.glob("trial-*")}
    assert ran == after.keys() - before.keys(), "a trial that had ended ran again, or one that had not did not"
    losses = {t["name"]: t["rungs"][-1]["loss"] for t in trials(searching) if t["status"] == "finished"}
    assert found(searching)["loss"] == min(losses.values())
