"""What may start now: a pure state machine. Events in (`started`, `done`, `failed`, `put_back`), stages to start out.

Invariants: a stage starts only after all it waits for is done; never more than `max_parallel` run; every
stage ends as done, failed, skipped or reused, so a run always finishes. A failure skips what is built from
it and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from bam_core.graph.plan import Decision
from bam_core.graph.stage import Pipeline, Stage

Status = Literal["pending", "running", "done", "failed", "skipped", "reused"]


class Schedule:
    """decisions: of `plan`. fail_fast: after a failure nothing more starts; what runs may still end."""

    def __init__(
        self, pipeline: Pipeline, decisions: Iterable[Decision], max_parallel: int, *, fail_fast: bool = False
    ) -> None:
        assert max_parallel >= 1, f"max_parallel {max_parallel} < 1: nothing could ever start"
        self._stages = {stage.name: stage for stage in pipeline}
        self._decisions = {decision.stage: decision for decision in decisions}
        self._max_parallel = max_parallel
        self._fail_fast = fail_fast
        first: dict[str, Status] = {"reuse": "reused", "blocked": "skipped"}
        self._status = {name: first.get(d.action, "pending") for name, d in self._decisions.items()}
        self._place = {name: place for place, name in enumerate(self._decisions)}
        self._children: dict[str, list[str]] = {}
        self._open = dict.fromkeys(self._decisions, 0)
        """Of each stage, how much of what it waits for is not there yet: looking at all of them at every event would
        cost the square of their number."""
        for name, decision in self._decisions.items():
            for parent in decision.after:
                self._children.setdefault(parent, []).append(name)
                self._open[name] += self._status[parent] != "reused"
        self._n_running = 0
        self._ready = {name for name, status in self._status.items() if status == "pending" and not self._open[name]}
        self._skip_orphans()

    @property
    def statuses(self) -> Mapping[str, Status]:
        return MappingProxyType(self._status)

    @property
    def skipped(self) -> frozenset[str]:
        return frozenset(name for name, status in self._status.items() if status == "skipped")

    @property
    def finished(self) -> bool:
        return not {"pending", "running"} & set(self._status.values())

    def startable(self, held: Collection[str] = ()) -> list[Stage]:
        """The stages to start now, in the pipeline's order; those that wait for another run come last.

        held: stages that another run is making at this moment; left out.
        """
        room = self._max_parallel - self._n_running
        ready = [name for name in self._ready if name not in held]
        ready.sort(key=lambda name: (self._decisions[name].action == "wait", self._place[name]))
        return [self._stages[name] for name in ready[:room]]

    def started(self, name: str) -> None:
        assert self._status[name] == "pending", f"{name} is {self._status[name]}, not pending"
        assert not self._open[name], f"{name} started before {self._decisions[name].after}"
        assert self._n_running < self._max_parallel, f"more than {self._max_parallel} run"
        self._status[name] = "running"
        self._ready.remove(name)
        self._n_running += 1

    def done(self, name: str) -> None:
        self._end(name, "done")
        for child in self._children.get(name, ()):
            self._open[child] -= 1
            if not self._open[child] and self._status[child] == "pending":
                self._ready.add(child)

    def put_back(self, name: str) -> None:
        """It did not start after all, and may do so later."""
        self._end(name, "pending")
        self._ready.add(name)

    def failed(self, name: str) -> list[str]:
        """Returns the stages that will not run because of it."""
        self._end(name, "failed")
        if self._fail_fast:
            return self._skip(name for name, status in self._status.items() if status == "pending")
        return self._skip_orphans()

    def _end(self, name: str, status: Status) -> None:
        assert self._status[name] == "running", f"{name} is {self._status[name]}, not running"
        self._status[name] = status
        self._n_running -= 1

    def _skip_orphans(self) -> list[str]:
        """Skip what waits for something that will never be done; decisions are in the pipeline's order."""
        skipped: list[str] = []
        for name, status in self._status.items():
            lost = any(self._status[parent] in ("failed", "skipped") for parent in self._decisions[name].after)
            if status == "pending" and lost:
                skipped += self._skip([name])
        return skipped

    def _skip(self, names: Iterable[str]) -> list[str]:
        skipped = list(names)
        for name in skipped:
            self._status[name] = "skipped"
            self._ready.discard(name)
        return skipped
