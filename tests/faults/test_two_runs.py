"""Two runs at once on one store make each stage once, and both end well."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from infra.leases import HeldLease
from infra.store import ArtifactStore
from tests.e2e.kit import STAGES, Place
from tests.faults.processes import KillPoint, Process, gate


def test_two_runs_at_once_make_each_stage_once(empty: Place, finished: Place) -> None:
    both = gate(2)
    words = ("run", str(empty.recipe), "--json")
    processes = [Process(empty, *words, gate=both) for _ in range(2)]
    assert [process.end() for process in processes] == [0, 0], [process.err for process in processes]
    assert empty.attempts() == dict.fromkeys(STAGES, 1)
    assert empty.perplexity() == finished.perplexity()
    actions = [{s["stage"]: s["action"] for s in json.loads(process.out)["stages"]} for process in processes]
    for stage in STAGES:
        assert sorted(action[stage] for action in actions) == ["reuse", "run"]


def test_a_run_takes_over_what_another_was_killed_at(empty: Place, finished: Place) -> None:
    """The first stands still in the middle of the seed; the second waits for its lease until it dies."""
    still = KillPoint("os.rename", "seed-*/*/step-000010", signal=signal.SIGSTOP)
    doomed = Process(empty, "run", str(empty.recipe), kill=still)
    doomed.until(empty.store, "training/seed-*/*/step-000005")
    other = Process(empty, "run", str(empty.recipe))
    other.until_says("starts: held by")
    assert empty.attempts()["seed"] == 1
    doomed.send(signal.SIGKILL)
    assert doomed.end() == -signal.SIGKILL
    assert other.end() == 0, other.err
    assert empty.attempts() == dict.fromkeys(STAGES, 1) | {"seed": 2}
    assert empty.perplexity() == finished.perplexity()


def test_what_another_run_makes_between_the_look_and_the_lease_is_not_made_again(
    up_to: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, acquire = up_to("tokenizer", "data.*", "seed"), ArtifactStore.acquire
    quicker: list[int] = []

    def late(store: ArtifactStore, stage: str, key: str, owner: str) -> HeldLease:
        if not quicker:
            quicker.append(Process(place, "run", str(place.recipe), "--only", "expert.law").end())
        return acquire(store, stage, key, owner)

    monkeypatch.setattr(ArtifactStore, "acquire", late)
    assert place.run("--only", "expert.law").actions()["expert.law"] == "reuse"
    assert quicker == [0]
    assert place.attempts()["expert.law"] == 1
    assert not list(place.artifact("expert.law").glob("lease*"))
