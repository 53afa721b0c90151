"""What is done to a driver on the local executor, which trains in its own process."""

from __future__ import annotations

import signal

from tests.faults.lab import Lab, Running

MIDDLE = 13
"""A step between two checkpoints, which come every 5."""


def in_the_middle(lab: Lab, *, forked: bool = True) -> tuple[Running, int]:
    """A command that stands still in the middle of its first training, and the process that does."""
    lab.plan(MIDDLE, "hold")
    process = lab.start(forked=forked)
    return process, lab.until_fired(process)


def kill(lab: Lab) -> None:
    process, _ = in_the_middle(lab)
    lab.strikes()
    process.send(signal.SIGKILL)
    lab.must_end(process, -signal.SIGKILL)
    lab.again()


def terminate(lab: Lab) -> None:
    """As a batch system or `docker stop` does."""
    _ends_in_order(lab, signal.SIGTERM)


def interrupt(lab: Lab) -> None:
    _ends_in_order(lab, signal.SIGINT)


def interrupt_twice(lab: Lab) -> None:
    process, _ = in_the_middle(lab)
    lab.strikes()
    process.send(signal.SIGINT)
    process.send(signal.SIGINT)
    lab.must_end(process, 130)
    # The second may arrive between the first and the closing: then there is no time to name the command.
    assert "continue" in process.err, process.err
    lab.again()


def _ends_in_order(lab: Lab, number: int) -> None:
    process, _ = in_the_middle(lab)
    lab.strikes()
    process.send(number)
    lab.must_end(process, 130)
    assert "interrupted" in process.out + process.err
    assert f"bam run {lab.place.recipe}" in process.err, process.err
    lab.again()
