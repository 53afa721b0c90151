"""What a process computes on, in words, for records and benchmarks. Needs nothing beside Python."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path


def device_name() -> str:
    """The GPU of this process where it has loaded torch and has one, else its processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor()


@functools.cache
def processor() -> str:
    """Its model where the kernel names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), "") or platform.processor() or platform.machine()


def nvidia_gpus() -> int:
    """How many the driver of this machine shows, whether or not anything here can use them."""
    listed = list(Path("/proc/driver/nvidia/gpus").glob("*"))
    return len(listed) or len(list(Path("/dev").glob("nvidia[0-9]*")))
