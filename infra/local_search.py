"""A search in this process: one trial after another, so that its outcome depends on nothing but its inputs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bam_core.errors import TrainingDiverged
from bam_core.graph.stage import Resources
from bam_core.protocols import Halving, Metrics, TrainLoop, Trial, TrialEnd
from bam_core.train.search import Cutoffs, losses_of_metrics
from infra.local_executor import LocalTrainer
from infra.trials import Notes, quiet


class _Stopped(Exception):
    """Not the end of the search: of one trial."""


@dataclass(frozen=True)
class LocalSearcher:
    """Implements protocols.Searcher. trainer: of the stage; each trial has a folder of its own in its folder."""

    trainer: LocalTrainer

    def run(
        self,
        loop: TrainLoop,
        trials: Sequence[Trial],
        halving: Halving,
        group: Resources,
        heard: Callable[[Sequence[TrialEnd]], None],
    ) -> list[TrialEnd]:
        notes, cutoffs = Notes(str(self.trainer.checkpoint_root)), Cutoffs(halving.reduction)
        ends: list[TrialEnd] = []
        for trial in trials:
            for rung, loss in enumerate(notes.of(trial.name).losses):
                cutoffs.stops(trial.name, rung, loss)
            if notes.of(trial.name).status is None:
                self._run(loop, trial, halving, group, notes, cutoffs)
            ends.append(notes.of(trial.name).end(trial.name))
            heard(ends)
        return ends

    def _run(
        self, loop: TrainLoop, trial: Trial, halving: Halving, group: Resources, notes: Notes, cutoffs: Cutoffs
    ) -> None:
        before, started = notes.of(trial.name), time.monotonic()

        def seconds() -> float:
            return before.seconds + time.monotonic() - started

        def judged(step: int, metrics: Metrics) -> None:
            if losses := losses_of_metrics(metrics):
                notes.judged(trial.name, losses, seconds())
                if cutoffs.stops(trial.name, len(losses) - 1, losses[-1]):
                    raise _Stopped

        root = self.trainer.checkpoint_root / trial.name
        try:
            with tempfile.TemporaryDirectory(prefix="bam-trial-") as nothing:
                trainer = replace(self.trainer, checkpoint_root=root, log=quiet, judged=judged)
                result = trainer.fit(loop, trial.config, group, Path(nothing))
        except _Stopped:
            notes.ended(trial.name, "stopped", notes.of(trial.name).losses, seconds())
        except TrainingDiverged:
            notes.ended(trial.name, "diverged", notes.of(trial.name).losses, seconds())
        else:
            notes.ended(trial.name, "finished", result["losses"], seconds())
            cutoffs.stops(trial.name, halving.n_rungs - 1, result["losses"][-1])
