"""What a program that a model wrote may not do, tried from inside."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from bam_core.errors import UsageError
from bam_core.evaluate import sandbox
from bam_core.evaluate.sandbox import Limits, run_program
from tests.task_kit import program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is confined on Linux only")

LANDLOCK = Path("/sys/kernel/security/lsm")
MIB = 2**20


def refused(statement: str) -> str:
    """A program that passes if the statement is refused by the kernel."""
    return (
        "import os, socket, subprocess, resource\n"
        f"try:\n    {statement}\nexcept (OSError, ValueError):\n    pass\nelse:\n    raise SystemExit('allowed')\n"
    )


def has_landlock() -> bool:
    return "landlock" in LANDLOCK.read_text() if LANDLOCK.exists() else _asks_for_landlock()


def _asks_for_landlock() -> bool:
    return ctypes.CDLL(None).syscall(444, None, 0, 1) > 0


def test_a_program_that_ends_has_passed_and_one_that_does_not_has_not():
    row = program(2)
    assert run_program(row["prompt"] + row["answer"] + row["test"]) == "passed"
    assert run_program(row["prompt"] + "    return x\n" + row["test"]) == "failed"
    assert (
        run_program("import math, re, collections, typing, random, itertools, string, heapq, datetime, threading")
        == "passed"
    )


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def f(:",
        "import os; os.abort()",
        "'\\0' + chr(0",
        "print('passed')\nimport os\nos._exit(0)",
    ],
)
def test_an_end_before_its_end_is_a_failure(text: str):
    assert run_program(text) == "failed"


def test_limits_hold():
    assert run_program("while True: pass", Limits(seconds=20, cpu_s=1)) == "timeout"
    assert run_program("import time; time.sleep(60)", Limits(seconds=1)) == "timeout"
    assert run_program("x = bytearray(100 * 2**20)", Limits(memory_bytes=300 * MIB)) == "passed"
    assert run_program("x = bytearray(400 * 2**20)", Limits(memory_bytes=300 * MIB)) == "failed"
    assert run_program("open('a', 'wb', 0).write(b'x' * 1000)", Limits(file_bytes=2000)) == "passed"
    assert run_program("for _ in 'ab': open('a', 'ab', 0).write(b'x' * 2000)", Limits(file_bytes=2000)) == "failed"
    assert run_program("f = [open('a', 'w') for _ in range(50)]", Limits(open_files=16)) == "failed"


@pytest.mark.parametrize(
    "statement",
    [
        "socket.socket()",
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socketpair()",
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "subprocess.run(['/bin/true'])",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
        "os.killpg(os.getpgid(0), 0)",
        "os.setsid()",
        "os.chmod('/tmp', 0o777)",
        "os.utime('/tmp')",
        "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
    ],
)
def test_the_kernel_refuses(statement: str):
    assert run_program(refused(statement)) == "passed"


@pytest.mark.skipif(sys.platform != "linux" or not has_landlock(), reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    "what", ["open({0!r}, 'w')", "open({0!r}).read()", "os.remove({0!r})", "os.rename({0!r}, 'here')"]
)
def test_files_elsewhere_are_out_of_reach(what: str, tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("kept")
    assert run_program(refused(what.format(str(file)))) == "passed"
    assert run_program(refused(f"os.listdir({str(tmp_path)!r})")) == "passed"
    assert run_program(refused(f"os.mkdir({str(tmp_path / 'new')!r})")) == "passed"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert file.read_text() == "kept"


def test_nothing_of_ours_goes_along_and_nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BAM_SECRET", "hidden")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    text = "import os\nassert set(os.environ) <= {'PYTHONHASHSEED', 'PYTHONIOENCODING', 'LC_CTYPE'}, os.environ\n"
    text += "assert os.listdir('.') == []\nopen('left', 'w').write('x')\n"
    assert run_program(text) == "passed"
    assert run_program("import torch") == "failed"
    assert run_program("import bam_core") == "failed"
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_sets_does_not_change_from_run_to_run():
    """Or whether a program passes would be a matter of luck."""
    letters = "{'a', 'b', 'c', 'd', 'e'}"
    command = [sys.executable, "-c", f"print(list({letters}))"]
    seen = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True).stdout
    assert run_program(f"assert str(list({letters})) == {seen.strip()!r}") == "passed"


def test_what_cannot_be_confined_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine whose system calls have other numbers than those that are known."""
    child = tmp_path / "child.py"
    ran = tmp_path / "ran"
    child.write_text(
        sandbox.CHILD.read_text().replace('"x86_64": (', '"other": (').replace('"aarch64": (', '"another": (')
    )
    monkeypatch.setattr(sandbox, "CHILD", child)
    with pytest.raises(UsageError, match="leave `execute` off"):
        run_program(f"open({str(ran)!r}, 'w')")
    assert not ran.exists()
