"""What this machine does in a second, for the planner: training steps and forward passes of small models, processes,
the disk, and a rehearsal of a pipeline (`rehearsing`).

What needs a process of its own (its memory, its neighbours on the other CPUs) gets one from a server that has loaded
torch once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from bam_core.planner.calibration import Calibration, Prices, fit
from infra.devices import device_name
from infra.storage import sync
from pipelines.wiring.rehearsing import rehearsed
from pipelines.wiring.settings import Settings

Say = Callable[[str], None]
MOST_NEIGHBOURS = 8
PROCESS = "process"
WRITTEN_BYTES = 2**25


def calibrate(settings: Settings, say: Say = lambda words: None) -> Calibration:
    """Measure this device, its GPU if there is one; about two minutes, with Ray. Leaves nothing behind."""
    import torch

    from bam_core.planner import measure

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    points = measure.points(kind)
    steps, passes = {}, {}
    with _processes(1) as pool:
        for threads in sorted({1, n_cpus}) if kind == "cpu" else (1,):
            say(f"training steps on {threads} thread(s): {len(points)} models")
            best = {dtype: pool(measure.least_seconds, kind, threads, dtype).result() for dtype in ("bf16", "fp32")}
            timed = pool(measure.time_steps, points, kind, threads, 2 if threads == 1 else 1)
            steps[threads] = fit([point.training.step_costs() for point in points], timed.result(), best["bf16"])
            timed = pool(measure.time_passes, points, kind, threads)
            passes[threads] = fit([measure.passed_costs(point) for point in points], timed.result(), best["fp32"])
        say(f"memory of {len(points)} trainings")
        peaks = [pool(measure.peak_bytes, point, kind, n_cpus) for point in points]
        counts = [{PROCESS: 1.0, **point.training.peak_bytes()} for point in points]
        peak = fit(counts, [peak.result() for peak in peaks])
    say("processes and disk")
    bare = Calibration(
        device=device_name(),
        kind=kind,
        cpus=n_cpus,
        made=_made(settings),
        steps=steps,
        passes=passes,
        peak=Prices({name: price for name, price in peak.of.items() if name != PROCESS}, peak.worst),
        idle_bytes={"local": peak.of[PROCESS]},
        crowding=_crowding(points[len(points) // 2], kind, n_cpus),
        text_s_per_byte={},
        fixed_s={"local": {"none": 0.0}},
        start_s=_start_seconds(),
        write_s_per_byte=_write_seconds(settings) / WRITTEN_BYTES,
        bytes_per_token=4.0,
    )
    executors = ["local", *(["ray"] if settings.executor == "ray" and settings.address is None else [])]
    with _processes(1) as pool:
        return rehearsed(bare, executors, say, lambda work, *args: pool(work, *args).result())


@contextmanager
def _processes(n: int) -> Iterator[Callable[..., Future[Any]]]:
    """`submit`, each call in a process that has done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["bam_core.planner.measure", "pipelines.wiring.rehearsing"])
    with ProcessPoolExecutor(n, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool.submit


def _made(settings: Settings) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "ray", "numpy")}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "python": sys.version.split()[0], "executor": settings.executor, **packages}


def _crowding(point: Any, kind: str, n_cpus: int) -> float:
    """Time of a training while others run on all other CPUs, over its time alone."""
    if n_cpus == 1 or kind != "cpu":
        return 1.0
    from bam_core.planner import measure

    n = min(n_cpus, MOST_NEIGHBOURS)
    with _processes(1) as pool:
        alone = pool(measure.time_steps, [point], kind, n_cpus // n).result()
    with _processes(n) as pool:
        together = [pool(measure.time_steps, [point], kind, n_cpus // n) for _ in range(n)]
        slower: float = median(found.result()[0] for found in together) / alone[0]
        return max(1.0, slower)


def _start_seconds() -> float:
    """Of a process that imports what a stage that trains needs."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import pipelines.wiring, pipelines.stages.training"], check=True)
    return time.perf_counter() - started


def _write_seconds(settings: Settings) -> float:
    """Of `WRITTEN_BYTES`, until they are on the disk of a local store and hashed, as an artifact's are."""
    from infra.mlflow_connect import local_path

    folder = local_path(settings.store)
    while folder is not None and not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bam-calibrate-") as here:
        path, content = Path(here, "file"), os.urandom(WRITTEN_BYTES)
        started = time.perf_counter()
        path.write_bytes(content)
        sync(path)
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
        return time.perf_counter() - started
