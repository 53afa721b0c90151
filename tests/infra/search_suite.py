"""What every searcher does, as a test class to inherit: `SearcherSuite` asks for the fixture `new_searcher`.

`new_searcher()` gives a searcher over the same folder each time, as a stage that is run again has. Trials are no
trainings: they report the losses that their config says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import StoreError, TrainingDiverged
from bam_core.graph.stage import Resources
from bam_core.protocols import Halving, Searcher, Trained, TrainWorker, Trial, TrialEnd
from bam_core.train.search import losses_as_metrics

GROUP = Resources(workers=1, cpus=1, trains=True)
HALVING = Halving(n_rungs=3, reduction=2, at_once=1)
PATIENCE_S = 120.0
"""Ends a test whose trials never meet; no test takes this long."""


def nothing(folder: Path) -> None:
    pass


def compete(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """Reaches the losses of its config rung by rung, and leaves a line for each in the file `ran`.

    diverges_at, fails_at: rungs. The latter until the file `repaired` is there.
    """
    resumed = worker.resume_dir()
    start = json.loads((resumed / "state.json").read_text())["rung"] + 1 if resumed else 0
    losses = config["losses"]
    for rung in range(start, len(losses)):
        if rung == config.get("diverges_at"):
            raise TrainingDiverged("step 3: loss is nan")
        if rung == config.get("fails_at") and not Path(config["repaired"]).exists():
            raise StoreError("the store is gone")
        _note(config, rung)
        if rung < len(losses) - 1:
            state = json.dumps({"rung": rung})
            reached = losses_as_metrics(losses[: rung + 1])
            worker.save(rung + 1, lambda folder, state=state: _write(folder, state), metrics=reached)
    return Trained({"losses": losses}, nothing)


def _write(folder: Path, state: str) -> None:
    (folder / "state.json").write_text(state)


def _note(config: Mapping[str, Any], rung: int) -> None:
    with Path(config["ran"]).open("a") as file:
        file.write(f"{config['name']} {rung}\n")


def meet(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """Ends when the other trial has started too."""
    here, other = (Path(config["folder"]) / name for name in (config["name"], config["other"]))
    here.touch()
    started = time.monotonic()
    while not other.exists():
        assert time.monotonic() - started < PATIENCE_S, "the other trial does not run beside this one"
        time.sleep(0.05)
    return Trained({"losses": [config["loss"]]}, nothing)


class Contest:
    """Trials that share a file, and what of them ran."""

    def __init__(self, folder: Path) -> None:
        self.ran, self.repaired = folder / "ran.txt", folder / "repaired"
        self.told: list[list[str]] = []

    def trial(self, name: str, *losses: float, **more: int) -> Trial:
        files = {"ran": str(self.ran), "repaired": str(self.repaired)}
        return Trial(name, {"name": name, "losses": list(losses), **files, **more})

    def run(self, searcher: Searcher, trials: list[Trial], halving: Halving = HALVING) -> list[TrialEnd]:
        return searcher.run(compete, trials, halving, GROUP, lambda ends: self.told.append([e.name for e in ends]))

    def rungs(self) -> list[str]:
        return self.ran.read_text().splitlines()


def ends_of(ends: list[TrialEnd]) -> list[tuple[str, str, tuple[float, ...]]]:
    return [(end.name, end.status, end.losses) for end in ends]


class SearcherSuite:
    @pytest.fixture
    def contest(self, tmp_path: Path) -> Contest:
        return Contest(tmp_path)

    def test_who_falls_behind_is_stopped_and_who_diverges_is_no_failure(
        self, new_searcher: Callable[[], Searcher], contest: Contest
    ) -> None:
        trials = [
            contest.trial("first", 5.0, 4.0, 3.0),
            contest.trial("worse", 6.0, 1.0, 1.0),
            contest.trial("burnt-out", 4.0, 3.0, 2.0, diverges_at=1),
            contest.trial("better", 4.5, 3.5, 2.5),
        ]
        assert ends_of(contest.run(new_searcher(), trials)) == [
            ("first", "finished", (5.0, 4.0, 3.0)),
            ("worse", "stopped", (6.0,)),
            ("burnt-out", "diverged", (4.0,)),
            ("better", "finished", (4.5, 3.5, 2.5)),
        ]
        assert contest.told[-1] == ["first", "worse", "burnt-out", "better"]

    def test_an_error_is_raised_as_it_is_and_the_next_call_continues(
        self, new_searcher: Callable[[], Searcher], contest: Contest, tmp_path: Path
    ) -> None:
        trials = [contest.trial("done", 3.0, 2.0, 1.0), contest.trial("cut-off", 2.0, 1.0, 0.5, fails_at=2)]
        with pytest.raises(StoreError, match=r"^the store is gone$"):
            contest.run(new_searcher(), trials)
        assert contest.rungs() == ["done 0", "done 1", "done 2", "cut-off 0", "cut-off 1"]
        contest.repaired.touch()
        ends = contest.run(new_searcher(), trials)
        assert ends_of(ends) == [("done", "finished", (3.0, 2.0, 1.0)), ("cut-off", "finished", (2.0, 1.0, 0.5))]
        again = contest.rungs()[5:]
        assert "done 0" not in again, "it had ended"
        assert again[-1] == "cut-off 2"
        assert ends_of(contest.run(new_searcher(), trials)) == ends_of(ends)
        assert contest.rungs()[5:] == again, "a search that has ended runs nothing"
        assert not list(tmp_path.rglob("state.json")), "a trial that has ended leaves no checkpoints"
