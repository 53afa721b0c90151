"""What a stage asks of its machine while it runs, under the names that MLflow's page for system metrics knows.

Of the machine where the stage's driver is; the workers of a group on other machines are not seen here. MLflow's own
monitor is not used: it looks for the run again at every sample, and takes the disk and the network with it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import psutil

from bam_core.protocols import Metrics
from infra.gpu_metrics import gpu_figures

FIRST_S, EVERY_S = 2.0, 10.0


class SystemMetrics:
    """log: of (seconds since `since`, figures). since: seconds since the epoch."""

    def __init__(
        self, log: Callable[[int, Metrics], None], since: float, first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        self._log, self._since = log, since
        self._first_s, self._every_s = first_s, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="bam-system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Afterwards nothing more is logged."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        wait_s = self._first_s
        with contextlib.suppress(OSError):  # a container may hide what psutil reads
            psutil.cpu_percent()  # a figure is over the time since the one before
            while not self._ended.wait(wait_s):
                wait_s = self._every_s
                self._log(int(time.time() - self._since), _figures())


def _figures() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        **gpu_figures(),
    }
