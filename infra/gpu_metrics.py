"""What the GPUs of this machine do, as NVML says, under the names that MLflow's page for system metrics knows.

NVML's binding is the extra `gpu`. Without it, without a driver or without a GPU there are no figures and no complaint:
a run goes on as well. A figure that a GPU does not give, as one that is cut up for several people may not, is left out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


def gpu_figures() -> dict[str, float]:
    """Of every GPU of this machine, also those that other processes use."""
    return {f"system/gpu_{number}_{name}": figure for number, gpu in enumerate(_gpus()) for name, figure in _of(gpu)}


@functools.cache
def _gpus() -> tuple[Any, ...]:
    """As NVML knows them; it stays open for as long as the process lives."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        return tuple(pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()


def _of(gpu: Any) -> Iterator[tuple[str, float]]:
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        yield "memory_usage_megabytes", memory.used / 1e6
        yield "memory_usage_percentage", 100 * memory.used / memory.total
    with contextlib.suppress(pynvml.NVMLError):
        yield "utilization_percentage", float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
    with contextlib.suppress(pynvml.NVMLError):
        yield "power_usage_watts", pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
