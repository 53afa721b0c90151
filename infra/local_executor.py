"""Stages and training in this process: the executor and the trainer without a cluster."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bam_core.errors import INTERRUPTED, UsageError
from bam_core.graph.stage import Resources, Stage
from bam_core.protocols import Metrics, Place, TrainLoop
from infra.devices import device_name
from infra.storage import sync

logger = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
"""The newest, and one before it in case the newest is lost."""


class LocalExecutor:
    """Implements protocols.Executor: a daemon thread per task, so an interrupted run ends at once.

    What such an end interrupts is in the state that `kill -9` leaves, from which the same command continues.
    """

    capacity = 1
    """One stage at a time: the number of torch's threads, and with it every rounding, belongs to the process."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._n_running = 0
        self._threads: list[threading.Thread] = []
        atexit.register(self._leave)

    def submit(self, stage: Stage, task: Callable[..., Any], *args: Any) -> None:
        def work() -> None:
            try:
                result = task(*args)
            except BaseException as error:  # the thread's last word: nobody else would hear it
                result = error
            self._ended.put((stage.name, result))

        self._n_running += 1
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=work, name=stage.name, daemon=True))
        self._threads[-1].start()

    def wait(self, timeout_s: float) -> Sequence[tuple[str, Any]]:
        ended: list[tuple[str, Any]] = []
        try:
            if self._n_running:
                ended.append(self._ended.get(timeout=timeout_s))
                while True:
                    ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        self._n_running -= len(ended)
        return ended

    def close(self) -> None:
        """Leaves tasks that still run to end with the process."""

    def _leave(self) -> None:
        """At the process's end, while a task still runs: no step further.

        Python would take its interpreter away from under a thread that is deep in torch, which then aborts the process.
        A thread whose task has been collected is about to end by itself.
        """
        if self._n_running and any(thread.is_alive() for thread in self._threads):
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
                    stream.flush()
            os._exit(INTERRUPTED)


@dataclass(frozen=True)
class LocalTrainer:
    """Implements protocols.Trainer for a group of one worker.

    checkpoint_root: holds `step-000100` folders; a `fit` over the same root resumes from the newest.
    inputs: role -> local folder. log: gets live figures. judged: gets the metrics of `save`, before anything is saved.
    """

    checkpoint_root: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)
    log: Callable[[int, Metrics], None] = lambda step, metrics: None
    judged: Callable[[int, Metrics], None] = lambda step, metrics: None
    workers: list[Place] = field(default_factory=list)

    def fit(self, loop: TrainLoop, config: Mapping[str, Any], group: Resources, out: Path) -> Mapping[str, Any]:
        """Raises UsageError for a group of several workers."""
        if group.workers != 1:
            raise UsageError(
                f"{group.workers} workers: the local executor trains with one; use Ray, or set workers: 1 under runtime"
            )
        for left in self.checkpoint_root.glob("saving-*"):  # of a process that was killed
            shutil.rmtree(left)
        trained = loop(LocalWorker(self, group), config)
        trained.write(out)
        self.workers[:] = [{"rank": 0, "host": socket.gethostname(), "device": device_name()}]
        return trained.result


class LocalWorker:
    """Implements protocols.TrainWorker for rank 0 of 1."""

    rank = 0
    world_size = 1

    def __init__(self, trainer: LocalTrainer, group: Resources) -> None:
        self.device = group.device
        self.threads = group.cpus
        self.inputs = trainer.inputs
        self._root, self._log, self._judged = trainer.checkpoint_root, trainer.log, trainer.judged

    def resume_dir(self) -> Path | None:
        saved = self._saved()
        return saved[-1] if saved else None

    def save(
        self, step: int, write: Callable[[Path], None], *, metrics: Metrics | None = None, sharded: bool = False
    ) -> None:
        """Atomic: the folder gets its name when all of it is on the disk."""
        if metrics:
            self._judged(step, metrics)
        saving, target = self._root / f"saving-{uuid.uuid4().hex}", self._root / f"step-{step:06d}"
        saving.mkdir(parents=True)
        write(saving)
        for path in (*saving.rglob("*"), saving):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        saving.rename(target)
        sync(self._root)
        for old in self._saved()[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)  # a run that lost its lease and does not know yet may be quicker

    def log(self, step: int, metrics: Metrics) -> None:
        try:
            self._log(step, metrics)
        except Exception:
            logger.warning("live figures of step %d are lost", step, exc_info=True)

    def _saved(self) -> list[Path]:
        return sorted(self._root.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
