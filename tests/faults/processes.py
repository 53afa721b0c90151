"""`bam` in a process of its own that can be killed, from outside or at an exact change of a file.

Processes are forked from one that has imported everything (multiprocessing's fork server): a start costs
milliseconds, and a test may kill as often as it likes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path, PurePath
from typing import Any

from tests.e2e.kit import NO_MLFLOW, Place
from tests.faults import inject

PRELOADED = [
    "torch",
    "mlflow",
    "pyarrow",
    "fsspec.implementations.local",
    "infra.local_executor",
    "pipelines.cli.runs",
    "pipelines.wiring.running",
    "pipelines.stages.evaluate",
    "pipelines.stages.mix",
    "pipelines.stages.training",
    "pipelines.report.build",
]
LOOK_EVERY_S = 0.01
"""Between two looks at whether a process still runs, while its files are watched."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)
_started: list[BaseProcess] = []


@dataclass(frozen=True)
class KillPoint:
    """Killed just before the n-th change (of those that Python audits) of a file whose path ends in a match of `path`.

    event: an audit event, such as `os.rename` (also of `Path.replace`), `os.mkdir`, `os.remove` or `shutil.rmtree`.
    """

    event: str
    path: str
    n: int = 1
    signal: int = signal.SIGKILL


class Process:
    """A `bam` that runs beside the test. Output goes to files beside the recipe."""

    def __init__(
        self,
        place: Place,
        *words: str,
        tracking: tuple[str, ...] = NO_MLFLOW,
        kill: KillPoint | None = None,
        gate: Barrier | None = None,
        faults: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """faults: a folder of `inject`. env: on top of the fork server's."""
        self._out, self._err = (place.recipe.parent / f"{name}-{id(self)}" for name in ("out", "err"))
        self._out.touch()
        arguments = (place.words(*words, tracking=tracking), str(self._out), str(self._err), kill, gate, faults, env)
        self._process = _context.Process(target=_bam, args=arguments)
        self._process.start()
        _started.append(self._process)

    def until(self, place: Path, pattern: str) -> Path:
        """The first file under `place` that matches, as soon as it is there; the process must still run."""
        while True:
            if found := next(iter(place.glob(pattern)), None):
                return found
            self._process.join(LOOK_EVERY_S)
            assert self._process.is_alive(), f"ended before there was any {pattern}: {self.err}"

    def until_says(self, words: str) -> None:
        """As soon as its output has these words."""
        while words not in self.out:
            self._process.join(LOOK_EVERY_S)
            assert self._process.is_alive(), f"ended before it said {words!r}: {self.err}"

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> int:
        """Wait. Returns the exit status; -9 after a `kill -9`."""
        self._process.join()
        assert self._process.exitcode is not None
        status = self._process.exitcode
        self._process.close()
        return status

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()


def end_all() -> None:
    """Kill what a test has left behind, one that was stopped too."""
    while _started:
        process = _started.pop()
        with suppress(ValueError):  # it ended, and was closed
            process.kill()
            process.join()
            process.close()


def gate(n_processes: int) -> Barrier:
    """Lets `n_processes` start together."""
    return _context.Barrier(n_processes)


def _bam(
    words: tuple[str, ...],
    out: str,
    err: str,
    kill: KillPoint | None,
    gate: Barrier | None,
    faults: Path | None,
    env: Mapping[str, str] | None,
) -> None:
    """The process: as if the script had been started with `words`."""
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["bam", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    os.environ.update(env or {})
    if faults is not None:
        from bam_core.train import loop

        inject.install(loop, faults)
    if kill is not None:
        _die_at(kill)
    if gate is not None:
        gate.wait()
    from pipelines.cli import main

    sys.exit(main())


def _die_at(point: KillPoint) -> None:
    left = point.n

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == point.event:
            paths = [os.fspath(value) for value in arguments if isinstance(value, str | os.PathLike)]
            if any(PurePath(path).match(point.path) for path in paths):
                left -= 1
                if not left:
                    os.kill(os.getpid(), point.signal)

    sys.addaudithook(hook)
