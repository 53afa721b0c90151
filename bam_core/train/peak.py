"""The most memory that a process has held: of its GPU where it trains on one, else resident.

A figure of where it ran, like a time: it is in records, never in what an artifact's bytes depend on.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: str) -> None:
    """Count from now on, as far as the system can: what this process still holds counts."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        _FORGET.write_text("5")


def peak_of_process(device: str) -> int:
    """Bytes. Of a GPU with what torch keeps of it for later."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_reserved())
    with suppress(OSError, IndexError, ValueError):
        lines = _STATUS.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
