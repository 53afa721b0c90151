"""When each stage runs, and where: list scheduling of a DAG on nodes with slots, as a run would do it.

Stages start in the pipeline's order as soon as what they wait for is done and their workers have room; each on the
first nodes that have it, those where it is fastest first. A stage slows down while others work on the CPUs beside it
(`Calibration.crowding`), so time is simulated: from one end of a stage to the next, at the speeds that hold until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Host:
    """One node. memory: bytes; None for as much as is asked for. crowding: factor on the time with all CPUs at work."""

    name: str
    cpus: int
    gpus: int = 0
    memory: float | None = None
    crowding: float = 1.0


@dataclass(frozen=True)
class Job:
    """One stage: `workers` with `cpus`, `gpus` and `memory` each. seconds: host -> alone there; a host without is none.

    after: jobs that must have ended; those that are not in the plan have.
    """

    name: str
    seconds: Mapping[str, float]
    after: Sequence[str] = ()
    workers: int = 1
    cpus: int = 1
    gpus: int = 0
    memory: float = 0.0


@dataclass(frozen=True)
class Placed:
    """hosts: of each worker."""

    name: str
    hosts: tuple[str, ...]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class _Running:
    job: Job
    hosts: tuple[str, ...]
    start: float
    left: float = 1.0
    """The part that is not done yet."""


@dataclass
class _State:
    hosts: Mapping[str, Host]
    now: float = 0.0
    running: list[_Running] = field(default_factory=list)

    def used(self, host: str, what: str) -> float:
        return float(sum(getattr(r.job, what) * r.hosts.count(host) for r in self.running))

    def room(self, job: Job, host: Host) -> int:
        """How many workers of the job fit beside what runs."""
        limits = {"cpus": host.cpus, "gpus": host.gpus, "memory": host.memory}
        free = {what: limit - self.used(host.name, what) for what, limit in limits.items() if limit is not None}
        return int(min((free[what] // getattr(job, what) for what in free if getattr(job, what)), default=job.workers))

    def place(self, job: Job) -> tuple[str, ...] | None:
        """A host for each worker, or None without room."""
        able = sorted((h for h in self.hosts.values() if h.name in job.seconds), key=lambda h: job.seconds[h.name])
        chosen: list[str] = []
        for host in able:
            chosen += [host.name] * min(self.room(job, host), job.workers - len(chosen))
        return tuple(chosen) if len(chosen) == job.workers else None

    def speed(self, running: _Running) -> float:
        """Parts of the job in a second: its slowest worker's."""
        return 1 / max(max(self._seconds(running, host) for host in set(running.hosts)), 1e-9)

    def _seconds(self, running: _Running, name: str) -> float:
        host, job = self.hosts[name], running.job
        own = job.cpus * running.hosts.count(name)
        others = self.used(name, "cpus") - own
        beside = min(1.0, others / (host.cpus - own)) if host.cpus > own else 0.0
        return job.seconds[name] * (1 + (host.crowding - 1) * beside)


def schedule(jobs: Sequence[Job], hosts: Sequence[Host], max_parallel: int) -> list[Placed]:
    """Place every job; `jobs` are in an order in which they can run. Asserts that each fits on idle hosts."""
    state, waiting, ended = _State({host.name: host for host in hosts}), list(jobs), dict[str, Placed]()
    known = {job.name for job in jobs}
    while waiting or state.running:
        for job in list(waiting):
            ready = all(name in ended for name in job.after if name in known)
            chosen = state.place(job) if ready and len(state.running) < max_parallel else None
            if chosen is not None:
                state.running.append(_Running(job, chosen, state.now))
                waiting.remove(job)
        assert state.running, f"no room for {waiting[0].name} on idle hosts"
        speeds = [state.speed(running) for running in state.running]
        step = min(running.left / speed for running, speed in zip(state.running, speeds, strict=True))
        state.now += step
        for running, speed in zip(list(state.running), speeds, strict=True):
            running.left -= step * speed
            if running.left <= 1e-9:
                state.running.remove(running)
                ended[running.job.name] = Placed(running.job.name, running.hosts, running.start, state.now)
    return [ended[job.name] for job in jobs]


def critical_path(jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """The longest chain of stages, each on the host where it is fastest: no number of nodes makes a run shorter."""
    best: dict[str, tuple[float, list[str]]] = {}
    for job in jobs:
        before = max((best[name] for name in job.after if name in best), key=lambda chain: chain[0], default=(0.0, []))
        best[job.name] = (before[0] + min(job.seconds.values()), [*before[1], job.name])
    return max(best.values(), key=lambda chain: chain[0], default=(0.0, []))
