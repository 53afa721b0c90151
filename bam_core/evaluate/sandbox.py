"""Runs a program that a model wrote, apart from everything: an own interpreter, few resources, no network.

Refused on Linux by the kernel, for root too (`sandbox_child.py`): sockets, other processes and programs, signals to
others, more CPU time, memory, open files and bytes of a file than the limits. Where the kernel has Landlock (5.13),
files are written in an empty folder that is removed afterwards, and read there and from Python's own library only.
No variable of our environment goes along. What it does not hold is in SECURITY.md.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bam_core.errors import UsageError
from bam_core.evaluate import sandbox_child

CHILD = Path(sandbox_child.__file__)


@dataclass(frozen=True)
class Limits:
    """seconds: on the clock, to the end of all. The others: of the program's one process."""

    seconds: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 2**20
    open_files: int = 16


Outcome = Literal["passed", "failed", "timeout"]
"""passed: the program came to its end. failed: it raised, exited before its end, or broke a limit."""


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run Python apart; its output is thrown away. Raises UsageError where this system cannot confine it.

    The clock decides what is a timeout, so on a loaded machine a slow program may end as one.
    """
    limits = limits or Limits()
    if sys.platform != "linux":
        raise _unsafe(sys.platform)
    mark = secrets.token_hex(16)
    words = [sys.executable, "-S", "-s", "-B", "-P", str(CHILD)]
    sizes = (limits.cpu_s, limits.memory_bytes, limits.file_bytes, limits.open_files)
    with tempfile.TemporaryDirectory(prefix="bam-code-") as folder, tempfile.TemporaryFile() as answers:
        with tempfile.TemporaryFile() as given:
            given.write(f"{mark}\n{program}".encode())
            given.seek(0)
            process = subprocess.Popen(
                [*words, *map(str, sizes)],
                stdin=given,
                stdout=answers,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"},
                start_new_session=True,
            )
        try:
            status = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answers.seek(0)
        said = answers.read(100).decode(errors="replace").split()
    if not said:
        raise _unsafe(f"this kernel ({os.uname().machine})")
    if status == -signal.SIGXCPU:
        return "timeout"
    return "passed" if status == 0 and said == [sandbox_child.CONFINED, mark] else "failed"


def _unsafe(what: str) -> UsageError:
    return UsageError(
        f"{what} cannot confine the code of a model: it takes Linux on x86_64 or aarch64 with seccomp filters; "
        "leave `execute` off, and only the likelihood of reference code is scored"
    )
