"""A search by Ray Tune: each trial is a Ray Train run of its own, and ASHA stops those that fall behind.

A trial's process coordinates and computes nothing. Were it to ask for a CPU, the trials of a small cluster would hold
all of them and wait for ever for their workers; so it asks for a thousandth of the node that the search runs on. How
many run side by side is what the cluster has room for. Tune's own files are pickles: they lie in a temporary folder and
are never read; a search that was killed continues from `Notes` and from each trial's checkpoints.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import ray.train
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from bam_core.errors import BamError, StageFailed, TrainingDiverged
from bam_core.graph.stage import Resources
from bam_core.protocols import Halving, TrainLoop, Trial, TrialEnd
from bam_core.train.search import losses_of_metrics
from infra.ray_controller import free_room
from infra.ray_room import cluster_nodes, nodes_that_may_come, require_room, room_for
from infra.ray_train import MAX_WORKER_FAILURES, RayTrainer
from infra.trials import Notes, quiet

MOST_AT_ONCE = 16
"""Each trial costs a process beside its workers."""
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


@dataclass(frozen=True)
class RaySearcher:
    """Implements protocols.Searcher. trainer: of the stage; each trial has a folder of its own in its folder."""

    trainer: RayTrainer

    def run(
        self,
        loop: TrainLoop,
        trials: Sequence[Trial],
        halving: Halving,
        group: Resources,
        heard: Callable[[Sequence[TrialEnd]], None],
    ) -> list[TrialEnd]:
        require_room(group, cluster_nodes(), nodes_that_may_come())
        notes = Notes(self.trainer.training_uri)
        waiting = [trial for trial in trials if notes.of(trial.name).status is None]
        watch = _Watch(notes, [trial.name for trial in trials], halving, heard)
        if waiting:
            self._search(loop, waiting, halving, group, watch)
        return watch.ends()

    def _search(
        self, loop: TrainLoop, trials: Sequence[Trial], halving: Halving, group: Resources, watch: _Watch
    ) -> None:
        os.environ.update(QUIET)
        trainer, named = self.trainer, {trial.name: trial for trial in trials}
        at_once = halving.at_once or min(MOST_AT_ONCE, max(1, room_for(group, cluster_nodes())))

        def trial(chosen: Mapping[str, str]) -> None:
            _run(trainer, loop, named[chosen["trial"]], halving, group)

        with tempfile.TemporaryDirectory(prefix="bam-tune-") as folder:
            results = tune.Tuner(
                tune.with_resources(trial, {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": 0.001}),
                param_space={"trial": tune.grid_search(list(named))},
                tune_config=tune.TuneConfig(scheduler=watch.scheduler, max_concurrent_trials=at_once),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=folder,
                    callbacks=[watch],
                    failure_config=tune.FailureConfig(max_failures=MAX_WORKER_FAILURES),
                    stop=_OnError(watch),
                    verbose=0,
                ),
            ).fit()
        if watch.error is not None:
            raise watch.error
        if results.errors:
            raise StageFailed(f"a trial failed {MAX_WORKER_FAILURES + 1} times: {_last_line(results.errors[0])}")


def _run(trainer: RayTrainer, loop: TrainLoop, trial: Trial, halving: Halving, group: Resources) -> None:
    """What a trial's process does. Its errors are reported, not raised: Tune would try again."""
    logs = trainer.log_dir / trial.name
    if trainer.log_dir.is_dir():
        logs.mkdir(exist_ok=True)
    uri = f"{trainer.training_uri}/{trial.name}"
    own = replace(trainer, training_uri=uri, log=quiet, log_dir=logs, callbacks=[_Report(halving.reduction)])
    try:
        with tempfile.TemporaryDirectory(prefix="bam-trial-") as nothing:
            result = own.fit(loop, trial.config, group, Path(nothing))
    except BamError as error:
        tune.report({"rung_time": 0, "loss": float("nan"), "error": error})
    else:
        tune.report(_judged(result["losses"], halving.reduction) | {"finished": True})


def _judged(losses: Sequence[float], reduction: int) -> dict[str, Any]:
    """rung_time: 1 at the first rung, and at each `reduction` times that of the one before, as ASHA counts."""
    return {"rung_time": reduction ** (len(losses) - 1), "loss": losses[-1], "losses": list(losses)}


class _Report(ray.train.UserCallback):
    """Tells Tune what a trial's workers say of a rung."""

    def __init__(self, reduction: int) -> None:
        self._reduction = reduction

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if losses := losses_of_metrics(metrics[0]):
            tune.report(_judged(losses, self._reduction))


class _Watch(tune.Callback):
    """In the search's own process: takes notes, so that a killed search loses none of its ends."""

    def __init__(
        self, notes: Notes, names: Sequence[str], halving: Halving, heard: Callable[[Sequence[TrialEnd]], None]
    ) -> None:
        self._notes, self._names, self._heard = notes, names, heard
        self._started: dict[str, float] = {}
        self.error: BamError | None = None
        self.scheduler = ASHAScheduler(
            time_attr="rung_time",
            metric="loss",
            mode="min",
            max_t=halving.reduction ** (halving.n_rungs - 1),
            grace_period=1,
            reduction_factor=halving.reduction,
        )
        for name in names:
            self._tell_again(name, halving)

    def _tell_again(self, name: str, halving: Halving) -> None:
        """What is known of a trial since an earlier attempt counts at its rungs."""
        losses = self._notes.of(name).losses
        known: Any = SimpleNamespace(trial_id=name)  # all that ASHA asks of a trial; the controller it does not ask
        nobody: Any = None
        self.scheduler.on_trial_add(nobody, known)
        for rung in range(len(losses)):
            self.scheduler.on_trial_result(nobody, known, _judged(losses[: rung + 1], halving.reduction))

    def ends(self) -> list[TrialEnd]:
        """Of those that have ended, in the order of the trials."""
        return [self._notes.of(name).end(name) for name in self._names if self._notes.of(name).status is not None]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started.setdefault(trial.config["trial"], time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        error = result.get("error")
        if isinstance(error, TrainingDiverged):
            self._notes.ended(name, "diverged", self._notes.of(name).losses, self._seconds(name))
        elif error is not None:
            self.error = self.error or error
        elif result.get("finished"):
            self._notes.ended(name, "finished", result["losses"], self._seconds(name))
        else:
            self._notes.judged(name, result["losses"], self._seconds(name))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        free_room(name)  # of a trial that was stopped: its process has no time to do so
        if self._notes.of(name).status is None and self.error is None:
            self._notes.ended(name, "stopped", self._notes.of(name).losses, self._seconds(name))
        self._heard(self.ends())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        free_room(trial.config["trial"])

    def _seconds(self, name: str) -> float:
        """Those of an earlier attempt are not known when a trial is told of again."""
        return time.monotonic() - self._started[name]


class _OnError(tune.Stopper):
    """An error in one trial, such as a store that is gone, would be every trial's."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch.error is not None


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
