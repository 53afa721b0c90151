"""Two runs at once on one store make each stage once, and both end well."""

from __future__ import annotations

import json
import signal

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
    """The second waits for the first's lease; the first dies holding it."""
    at_checkpoint = KillPoint("os.rename", "seed-*/*/step-000010")
    both = gate(2)
    doomed = Process(empty, "run", str(empty.recipe), kill=at_checkpoint, gate=both)
    other = Process(empty, "run", str(empty.recipe), gate=both)
    ends = {doomed.end(), other.end()}
    assert 0 in ends
    assert ends <= {0, -signal.SIGKILL}  # the first is killed only if it was the one to train
    assert empty.perplexity() == finished.perplexity()
    assert empty.attempts()["expert.code"] == 1
