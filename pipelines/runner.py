"""Runs a plan: stages go to an executor as their inputs get done; each ends with a record, or with what to do next.

Through ports only: no Ray, MLflow or fsspec here. What happens to one stage is in `attempt`.
Invariant: one failure never stops an independent branch.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol

from bam_core.errors import BamError, ExecutorLost, LeaseHeld, StoreError
from bam_core.graph.plan import Decision
from bam_core.graph.runs import RunStatus
from bam_core.graph.schedule import Schedule
from bam_core.graph.stage import Pipeline
from bam_core.protocols import (
    Executor,
    Store,
)
from pipelines.attempt import StageEnd, StageJob

POLL_S = 0.25
"""How often the driver looks at what runs."""
HELD_S = 1.0
"""How long a stage that another run is making is left alone, so that this run does something else meanwhile."""


@dataclass(frozen=True)
class StageState:
    """One line of the live table. progress: step, total_steps, loss, tokens_per_s ... of a running stage.

    waits_for: of a pending one, the stages that must be done before it may start.
    """

    stage: str
    key: str
    action: str
    status: str
    reason: str
    seconds: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    waits_for: tuple[str, ...] = ()


class Display(Protocol):
    def update(self, states: list[StageState]) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class StageResult:
    stage: str
    key: str
    action: str
    status: str
    seconds: float
    artifact: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class RunResult:
    """status: done, failed or interrupted. report: where `report.html` lies, if it was made or reused."""

    run: str
    status: RunStatus
    seconds: float
    stages: tuple[StageResult, ...]
    report: str | None = None


@dataclass(frozen=True)
class Task:
    """What an executor runs for a stage: `call(job, *args)`, a module-level function with picklable arguments."""

    call: Callable[..., StageEnd]
    args: tuple[Any, ...]


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as a batch system or a container sends it, ends a run as ctrl-C does: in order and with words."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _words(name: str, error: BaseException) -> str:
    """A stage's own, or of a process or machine that was lost with it: the first line is what happened."""
    if isinstance(error, ExecutorLost):
        return f"{name}: {error}"
    if isinstance(error, BamError):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{name}: {type(error).__name__}: {first}; nothing committed is lost, and the same command continues"


class PipelineRun:
    """The driver's side of a run: starts what may start, watches, and knows what to tell the person who waits."""

    def __init__(
        self,
        pipeline: Pipeline,
        decisions: list[Decision],
        jobs: Mapping[str, StageJob],
        store: Store,
        display: Display,
        *,
        fail_fast: bool = False,
    ) -> None:
        self._jobs, self._store, self._display = jobs, store, display
        self._new_schedule = partial(Schedule, pipeline, decisions, fail_fast=fail_fast)
        self._schedule = self._new_schedule(max_parallel=1)
        self._decisions = {decision.stage: decision for decision in decisions}
        self._clock: dict[str, tuple[float, float | None]] = {}
        self._ends: dict[str, StageEnd] = {}
        self._errors: dict[str, str] = {}
        self._last: dict[str, Mapping[str, Any]] = {}
        self._held: dict[str, float] = {}
        self._holders: dict[str, str] = {}

    def run(self, executor: Executor, task: Task, max_parallel: int) -> RunStatus:
        """Run to the end of what can be run. Returns `done` or `failed`."""
        self._schedule = self._new_schedule(max_parallel=max_parallel)
        with terminated_as_interrupted():  # once more: Ray's start takes the signal for itself
            return self._run(executor, task)

    def _run(self, executor: Executor, task: Task) -> RunStatus:
        try:
            while not self._schedule.finished:
                for stage in self._schedule.startable(self._held_now()):
                    self._schedule.started(stage.name)
                    self._clock.setdefault(stage.name, (time.monotonic(), None))
                    executor.submit(stage, task.call, self._jobs[stage.name], *task.args)
                self._let_go()
                for name, outcome in self._wait(executor):
                    self._ended(name, outcome)
                self._display.update(self.states())
        except ExecutorLost as error:
            for name in [name for name, status in self._schedule.statuses.items() if status == "running"]:
                self._ended(name, error)
        finally:
            self._display.update(self.states())
        return "failed" if self._errors else "done"

    def _wait(self, executor: Executor) -> Sequence[tuple[str, Any]]:
        if "running" in self._schedule.statuses.values():
            return executor.wait(POLL_S)
        time.sleep(POLL_S)  # all that could start is being made by other runs
        return ()

    def _held_now(self) -> set[str]:
        return {name for name, since in self._held.items() if time.monotonic() < since + HELD_S}

    def _let_go(self) -> None:
        """Of a stage that another run was making, and that finds no room here: once nobody makes it, it is pending."""
        for name in self._held.keys() - self._held_now():
            if self._schedule.statuses[name] != "pending":
                continue
            if self._is_held(name):
                self._held[name] = time.monotonic()
            else:
                del self._held[name], self._holders[name], self._clock[name]

    def _is_held(self, name: str) -> bool:
        with suppress(StoreError):  # one that cannot be asked is as it was
            return self._store.lease_info(name, self._decisions[name].key) is not None
        return True

    def _ended(self, name: str, outcome: Any) -> None:
        if isinstance(outcome, LeaseHeld):  # it goes on being shown as running: elsewhere
            self._held[name] = time.monotonic()
            self._holders[name] = str(outcome).partition(": ")[2].partition(";")[0]
            self._schedule.put_back(name)
            return
        self._clock[name] = (self._clock[name][0], time.monotonic())
        self._last[name] = self._progress(name)
        if isinstance(outcome, BaseException):
            self._errors[name] = _words(name, outcome)
            self._schedule.failed(name)
        else:
            self._ends[name] = outcome
            self._schedule.done(name)

    def states(self) -> list[StageState]:
        """Every stage of the plan as it is now."""
        return [self._state(decision) for decision in self._decisions.values()]

    def _state(self, decision: Decision) -> StageState:
        status = self._status(decision)
        reason = self._errors.get(decision.stage) or self._holders.get(decision.stage, decision.reason)
        progress = self._progress(decision.stage) if status == "running" else self._last.get(decision.stage)
        return StageState(
            decision.stage,
            decision.key,
            decision.action,
            status,
            reason,
            self._seconds(decision.stage),
            progress or {},
            self._waits_for(decision) if status == "pending" else (),
        )

    def _waits_for(self, decision: Decision) -> tuple[str, ...]:
        parents = [self._decisions[name] for name in decision.after if name in self._decisions]
        return tuple(parent.stage for parent in parents if self._status(parent) not in ("done", "reused"))

    def _progress(self, name: str) -> Mapping[str, Any]:
        """Nothing of a store that is away: a stage that needs it says so, and the others go on."""
        with suppress(StoreError):
            return self._store.progress(name, self._decisions[name].key) or {}
        return {}

    def _status(self, decision: Decision) -> str:
        name = decision.stage
        if name in self._errors:
            return "failed"
        if name in self._ends:
            return "done" if self._ends[name].made else "reused"
        if name in self._clock:
            return "running"
        if decision.action == "reuse":
            return "reused"
        return "skipped" if name in self._schedule.skipped else "pending"

    def _seconds(self, name: str) -> float:
        if name not in self._clock:
            return 0.0
        started, ended = self._clock[name]
        return (ended if ended is not None else time.monotonic()) - started

    def results(self) -> tuple[StageResult, ...]:
        return tuple(self._result(decision) for decision in self._decisions.values())

    def _result(self, decision: Decision) -> StageResult:
        name, status = decision.stage, self._status(decision)
        made_here = name in self._ends and self._ends[name].made
        action = "reuse" if status == "reused" else "run" if made_here else decision.action
        artifact = self._store.artifact_uri(name, decision.key) if status in ("done", "reused") else None
        seconds = round(self._seconds(name), 3)
        return StageResult(name, decision.key, action, status, seconds, artifact, self._errors.get(name))
