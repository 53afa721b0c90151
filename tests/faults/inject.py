"""Faults inside a training step, and a note of every step that is computed. Imports nothing of ours.

A folder says what happens: `plan.json` is {"at": n, "do": KIND}, for the n-th step of whichever process gets there
first, once (an exclusively created `fired` says so). `steps` gets a line for every step, of every process: when (the
machine's monotonic clock), of which training and which it was: with the same model, settings and rows it is the same.
One that a fault made worthless has none.

KINDS: hold (waits for the file `go`), nan, memory (allocates until there is no more, under a limit), kill (-9).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "BAM_TEST_FAULTS"
LOOK_EVERY_S = 0.01
ROOM_BYTES = 256 * 2**20
"""What a process out of memory may still take: less than a machine, and enough to begin with."""


def install(loop: ModuleType, folder: Path) -> None:
    """loop: the module `bam_core.train.loop`."""
    step, done = loop.accumulate_gradient, [0]

    def noted(model: Any, optimizer: Any, rows: Any, config: Any, *rest: Any, **named: Any) -> Any:
        done[0] += 1
        _await_checkpoint(folder, done[0])
        planned = _take(folder, done[0])
        if planned == "hold":
            _hold(folder)
        elif planned == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif planned == "memory":
            _use_up_memory()
        sums = step(model, optimizer, rows, config, *rest, **named)
        if planned == "nan":
            sums.scalars.fill_(float("nan"))
            return sums
        training, which = (
            hashlib.sha256(data).hexdigest()[:16] for data in (repr((model.config, config)).encode(), rows.tobytes())
        )
        with (folder / "steps").open("a") as file:
            file.write(f"{time.monotonic():.3f} {training} {which}\n")
        return sums

    loop.accumulate_gradient = noted  # type: ignore[attr-defined]


def _await_checkpoint(folder: Path, n: int) -> None:
    """Two steps of a tiny model are done before a file is on the disk: the step before the planned one waits for it,
    and publishes it."""
    with suppress(FileNotFoundError):
        if n == json.loads((folder / "plan.json").read_text())["at"] - 1:
            for thread in threading.enumerate():
                if thread.name.startswith("checkpoint of step"):
                    thread.join()


def _take(folder: Path, n: int) -> str:
    """What is to happen at this process's n-th step, if nobody has had it."""
    with suppress(FileNotFoundError, FileExistsError):
        plan = json.loads((folder / "plan.json").read_text())
        if n == plan["at"]:
            with (folder / "fired").open("x") as file:
                file.write(str(os.getpid()))
            return str(plan["do"])
    return ""


def _hold(folder: Path) -> None:
    while not (folder / "go").exists():
        time.sleep(LOOK_EVERY_S)


def _use_up_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, hard))
    try:
        import torch

        kept = []
        while True:
            kept.append(torch.ones(ROOM_BYTES // 32))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
