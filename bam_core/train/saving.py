"""Files of a run: checkpoints, and of a sharded run the trained model.

A checkpoint is written in the background while training goes on. Each rank that holds some of it (of a run that is not
sharded rank 0) copies that to host memory, for which training waits; a thread writes the copy to the local disk; and at
the first step by which all ranks have done so they publish together through `TrainWorker.save`, which training waits
for too. So the host's memory holds masters and moments twice meanwhile.
A run that is killed before that goes on from the checkpoint before, as it would had it been killed while writing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bam_core.errors import BamError, StoreError, TrainingDiverged
from bam_core.protocols import TrainWorker
from bam_core.train.optim import Optimizer
from bam_core.train.parallel import sum_over_ranks
from bam_core.train.state import Progress, State


class Checkpoints:
    """All ranks make the same calls at the same steps."""

    def __init__(self, worker: TrainWorker, optimizer: Optimizer) -> None:
        self._worker, self._optimizer = worker, optimizer
        self._writing: _Writing | None = None

    def save(self, progress: Progress) -> None:
        """Begin to write the state as it is now."""
        self.finish()  # a disk that is slower than the steps between two checkpoints: wait for it
        state = None
        if self._optimizer.sharded or self._worker.rank == 0:
            state = State.of(self._optimizer, progress, self._worker.rank, self._worker.world_size).copy()
        self._writing = _Writing(progress.step, state)

    def publish_if_written(self) -> None:
        """After each step: publish what is being written, if every rank is through."""
        if self._writing is not None and self._count(not self._writing.is_alive()) == self._worker.world_size:
            self._publish(self._writing)

    @contextmanager
    def finished_if_diverged(self) -> Iterator[None]:
        """Where what is inside finds that the run diverged, the last good checkpoint is published first."""
        try:
            yield
        except TrainingDiverged:
            self.finish()
            raise

    def finish(self) -> None:
        """Wait for what is being written, and publish it."""
        if self._writing is not None:
            self._writing.join()
            self._publish(self._writing)

    def _publish(self, writing: _Writing) -> None:
        self._writing = None
        with writing.folder:
            n_failed = self._count(writing.error is not None)
            if writing.error is not None:
                raise StoreError(f"the checkpoint of step {writing.step}: {writing.error}") from writing.error
            if n_failed:
                raise StoreError(f"the checkpoint of step {writing.step}: {n_failed} other rank(s) could not write it")
            self._worker.save(writing.step, writing.move_to, sharded=bool(self._optimizer.sharded))

    def _count(self, holds: bool) -> int:
        """On how many ranks this holds."""
        count = torch.tensor(float(holds), device=self._worker.device)
        sum_over_ranks([count], self._worker.world_size)
        return int(count)


class _Writing(threading.Thread):
    """Writes a copy of a state to a temporary folder, to the disk. A daemon: a run that ends does not wait for it.

    state: None where other ranks hold all of it.
    """

    def __init__(self, step: int, state: State | None) -> None:
        super().__init__(name=f"checkpoint of step {step}", daemon=True)
        self.step, self._state = step, state
        self.folder = tempfile.TemporaryDirectory(prefix="bam-state-")
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            if self._state is not None:
                self._state.write(Path(self.folder.name))
                self._state = None  # its memory is free before it is published
                _bring_to_disk(Path(self.folder.name))
        except Exception as error:  # told by whoever publishes
            self.error = error

    def move_to(self, target: Path) -> None:
        _move(self.folder, target)


def write_gathered(
    worker: TrainWorker, optimizer: Optimizer, write: Callable[[Path, Iterator[tuple[str, Tensor]]], None]
) -> Callable[[Path], None]:
    """Write what takes all master weights, gathered one at a time by all ranks: rank 0 writes, to a temporary folder.

    Returns what moves the files to where they belong, to be called on rank 0. Raises StoreError on every rank if rank 0
    could not write.
    """
    folder = tempfile.TemporaryDirectory(prefix="bam-model-")
    masters, failure = optimizer.masters(), None
    if worker.rank == 0:
        try:
            write(Path(folder.name), masters)
        except (OSError, BamError) as error:
            failure = error
    for _ in masters:  # the other ranks, and rank 0 after a failure: a gather takes all of them
        pass
    n_failed = torch.tensor(float(failure is not None), device=worker.device)
    sum_over_ranks([n_failed], worker.world_size)
    if n_failed:
        folder.cleanup()
        raise StoreError(f"the trained model cannot be written: {failure or 'see the error of rank 0'}") from failure
    return partial(_move, folder)


def _bring_to_disk(folder: Path) -> None:
    """So that who publishes and asks for that does not wait long."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _move(folder: tempfile.TemporaryDirectory[str], target: Path) -> None:
    for path in sorted(Path(folder.name).iterdir()):
        shutil.move(path, target / path.name)
