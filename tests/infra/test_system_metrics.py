"""Figures of the machine while a stage runs."""

from __future__ import annotations

import threading
from typing import Any

from infra.system_metrics import SystemMetrics


def test_it_samples_until_it_is_stopped() -> None:
    told: list[tuple[int, Any]] = []
    enough = threading.Event()

    def log(step: int, figures: Any) -> None:
        told.append((step, figures))
        if len(told) == 3:
            enough.set()

    watching = SystemMetrics(log, since=0.0, first_s=0.001, every_s=0.001)
    watching.start()
    assert enough.wait(60)
    watching.stop()
    n_told = len(told)
    assert not watching._thread.is_alive()
    assert len(told) == n_told
    figures = told[-1][1]
    assert set(figures) == {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/process_memory_usage_megabytes",
    }
    assert figures["system/process_memory_usage_megabytes"] > 1
    assert told[0][0] > 1_000_000_000  # seconds since `since`: a resumed run goes on where it was


def test_one_that_is_stopped_before_its_first_sample_tells_nothing() -> None:
    told: list[Any] = []
    watching = SystemMetrics(lambda *figures: told.append(figures), since=0.0)
    watching.start()
    watching.stop()
    assert told == []
