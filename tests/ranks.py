"""The ranks of a worker group as real processes on this machine, joined by gloo: what tests of sharding run on.

The processes stay for many runs, since importing torch takes each seconds; every run has a process group of its own.
"""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TIMEOUT_S = 900
"""What hangs this long has a rank that waits for another."""


class RanksFailed(AssertionError):
    """Carries the traceback of each rank that raised."""


class Ranks:
    """`run(work, n, *args)` calls the module-level function `work(rank, n, *args)` in n processes at once."""

    def __init__(self, n_most: int) -> None:
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(n_most):
            own, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(own)
            self._processes.append(process)

    def run(self, work: Callable[..., Any], n: int, *args: Any) -> list[Any]:
        """The results by rank. Raises RanksFailed if any raised or hangs; then the processes are gone."""
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self._pipes[:n]):
                pipe.send((work, rank, n, str(Path(folder) / "store"), args))
            results: dict[int, Any] = {}
            failed: list[str] = []
            while len(results) < n:
                ready = wait([pipe for rank, pipe in enumerate(self._pipes[:n]) if rank not in results], TIMEOUT_S)
                for pipe in ready:
                    rank = self._pipes.index(pipe)
                    ok, results[rank] = pipe.recv()
                    failed += [] if ok else [f"rank {rank} of {n}:\n{results[rank]}"]
                if failed or not ready:  # the others may wait for the failed one for ever
                    self.close(wait_s=0)
                    raise RanksFailed("\n".join(failed) or f"ranks {sorted(set(range(n)) - set(results))} hang")
            return [results[rank] for rank in range(n)]

    def close(self, wait_s: float = 10) -> None:
        """End the processes: those that wait for work end by themselves."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(wait_s)
            process.kill()
            process.join()


@dataclass
class RankWorker:
    """A `TrainWorker` of several ranks that share a folder. die_at: the step whose checkpoint is the last thing."""

    folder: Path
    rank: int
    world_size: int
    die_at: int | None = None
    device: str = "cpu"
    threads: int = 1
    inputs: Mapping[str, Path] = field(default_factory=dict)
    logged: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def resume_dir(self) -> Path | None:
        found = sorted(self.folder.glob("step-*"))
        return found[-1] if found else None

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        metrics: Mapping[str, float] | None = None,
        sharded: bool = False,
    ) -> None:
        """Each rank brings its own files, as on a cluster; the folder has its name when all of them are there."""
        saving = self.folder / f"saving-{step}"
        if sharded or self.rank == 0:
            own = self.folder / f"rank-{self.rank}-{step}"
            own.mkdir(parents=True)
            write(own)
            saving.mkdir(exist_ok=True)
            for path in own.iterdir():
                target = saving / path.name
                assert not target.exists(), f"two ranks wrote {path.name}"
                path.rename(target)
            own.rmdir()
        self._barrier()
        if self.rank == 0:
            saving.rename(self.folder / f"step-{step:06d}")
        self._barrier()
        self.saved.append(step)
        if step == self.die_at:
            raise KeyboardInterrupt

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, metrics))

    def _barrier(self) -> None:
        import torch.distributed as dist

        if self.world_size > 1:
            dist.barrier()


@contextmanager
def ranks(n_most: int) -> Iterator[Ranks]:
    started = Ranks(n_most)
    try:
        yield started
    finally:
        started.close()


def _serve(pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = min(socket.if_nameindex())[1]
    while True:
        try:
            work, rank, n, store, args = pipe.recv()
        except EOFError:
            return
        try:
            dist.init_process_group("gloo", store=dist.FileStore(store, n), rank=rank, world_size=n)
            result = (True, work(rank, n, *args))
            dist.destroy_process_group()
        except BaseException:
            result = (False, traceback.format_exc())
        pipe.send(result)
