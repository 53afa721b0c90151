"""Leases between real processes: one that was killed makes nobody wait, and only one takes over from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import LeaseHeld
from infra import leases
from infra.leases import Claim
from infra.store import ArtifactStore

KEY = "ab" * 32
SEED = ("seed", KEY)

PROCESS = """
import sys
from bam_core.errors import LeaseHeld
from infra.store import ArtifactStore
store = ArtifactStore(sys.argv[1], lease_ttl_s=3600)
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = store.acquire("seed", "ab" * 32, "child")
    print("held", flush=True)
except LeaseHeld:
    print("refused", flush=True)
sys.stdin.read()
"""


class Child:
    """A process that takes the lease of `seed` when told, and keeps it until it ends."""

    def __init__(self, uri: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(leases.__file__).parents[1])},
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Dead, and not yet reaped: a zombie, until `reap`."""
        self.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> int:
        self.process.communicate()
        return self.process.returncode


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[], Child]]:
    """Starts children on the store in `tmp_path`; all of them end with the test."""
    started: list[Child] = []

    def start() -> Child:
        started.append(Child(str(tmp_path)))
        assert started[-1].hear() == "ready"
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.reap()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to judge another process")


@needs_proc
def test_a_killed_process_makes_nobody_wait(tmp_path: Path, child: Callable[[], Child]) -> None:
    store, holder = ArtifactStore(str(tmp_path)), child()
    holder.go()
    assert holder.hear() == "held"
    with pytest.raises(LeaseHeld, match="held by child"):
        store.acquire(*SEED, "me")
    holder.kill()
    assert store.lease_info(*SEED) is None
    assert holder.reap() == -signal.SIGKILL
    assert store.lease_info(*SEED) is None
    store.acquire(*SEED, "me").release()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@needs_proc
def test_of_two_processes_one_takes_over_from_a_killed_one(child: Callable[[], Child]) -> None:
    holder, racers = child(), [child(), child()]
    holder.go()
    assert holder.hear() == "held"
    holder.kill()
    for racer in racers:
        racer.go()
    assert sorted(racer.hear() for racer in racers) == ["held", "refused"]


@pytest.mark.parametrize(
    ("changes", "orphaned"),
    [
        ({}, False),
        ({"pid_started": 1}, True),
        ({"pid": 2**22 + 5}, True),
        ({"pid": 2**22 + 5, "host": "far"}, False),
        ({"pid": 2**22 + 5, "boot_id": "an earlier boot"}, False),
        ({"pid": 2**22 + 5, "pid_started": None}, False),
    ],
)
@needs_proc
def test_whose_end_can_be_known(changes: dict[str, Any], orphaned: bool) -> None:
    assert replace(Claim.of_this_process("x", 0.0, 30.0), **changes).is_orphaned() is orphaned
