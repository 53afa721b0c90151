"""What goes wrong inside a stage, in what it reads, and between two runs at work on one store; the local executor."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.drivers import MIDDLE, in_the_middle
from tests.faults.lab import Lab

HOUR_S = 3600


def nan_in_the_loss(lab: Lab) -> None:
    """Once: of a machine, not of the recipe, which would give it again."""
    _fails_once(lab, "nan", f"step {MIDDLE - 1}: loss is nan")


def out_of_memory(lab: Lab) -> None:
    _fails_once(lab, "memory", "lower runtime.micro_batch_rows or runtime.max_parallel and run the same command")


def _fails_once(lab: Lab, what: str, words: str) -> None:
    lab.plan(MIDDLE, what)
    process = lab.start()
    lab.until_fired(process)
    lab.strikes()
    lab.must_end(process, 1)
    assert words in process.err, process.err
    lab.again()


def two_runs_at_once(lab: Lab) -> None:
    first, _ = in_the_middle(lab)
    lab.strikes()
    second = lab.start()
    lab.until(second, lambda: "starts: held by" in second.out)
    lab.go()
    lab.must_end_well(first)
    lab.must_end_well(second)
    _require_one_attempt_each(lab)


def clock_an_hour_ahead(lab: Lab) -> None:
    """Of the second run: to it every lease of the first looks long expired."""
    _with_wrong_clock(lab, HOUR_S)


def clock_an_hour_behind(lab: Lab) -> None:
    _with_wrong_clock(lab, -HOUR_S)


def _with_wrong_clock(lab: Lab, ahead_s: float) -> None:
    first, _ = in_the_middle(lab)
    lab.strikes()
    second = lab.start(forked=False, env={"BAM_TEST_CLOCK_S": str(ahead_s)})
    lab.until(second, lambda: "expert.code" in second.out and "held by" in second.out)
    lab.go()
    lab.must_end_well(first)
    lab.must_end_well(second)
    _require_one_attempt_each(lab)


def killed_by_a_wrong_clock(lab: Lab) -> None:
    """A run whose clock is an hour ahead dies; its lease looks fresh for an hour to everybody else's clock."""
    lab.plan(MIDDLE, "hold")
    first = lab.start(forked=False, env={"BAM_TEST_CLOCK_S": str(HOUR_S)})
    lab.until_fired(first)
    lab.strikes()
    first.send(signal.SIGKILL)
    lab.must_end(first, -signal.SIGKILL)
    lab.again()


def owner_wakes_up(lab: Lab) -> None:
    """A run is stopped, as a suspended machine is, until its lease has expired and another has done its work."""
    first, _ = in_the_middle(lab)
    first.send(signal.SIGSTOP)
    lab.strikes()
    second = lab.start()
    lab.must_end_well(second)
    lab.go()
    first.send(signal.SIGCONT)
    lab.must_end_well(first)


def owner_wakes_up_too_early(lab: Lab) -> None:
    """As soon as another has taken over, and in the middle of its work: two train the same at once."""
    first, _ = in_the_middle(lab)
    first.send(signal.SIGSTOP)
    lab.strikes()
    lab.plan(1, "hold")  # the second's first step
    (lab.faults / "fired").unlink()
    second = lab.start("--until", "expert.code")
    lab.until_fired(second)
    assert lab.place.attempts()["expert.code"] == 2
    first.send(signal.SIGCONT)
    lab.go()
    lab.must_end_well(first)
    lab.must_end_well(second)


def _require_one_attempt_each(lab: Lab) -> None:
    attempts = {record.stage: record.attempt for record in lab.store.records()}
    assert set(attempts.values()) == {1}, attempts


def truncated_file(lab: Lab) -> None:
    _damage(lab, "expert.law", "model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-10]))


def missing_file(lab: Lab) -> None:
    _damage(lab, "expert.law", "model.safetensors", Path.unlink)


def torn_record(lab: Lab) -> None:
    _damage(lab, "expert.law", "record.json", lambda path: path.write_bytes(path.read_bytes()[:100]))


def changed_file(lab: Lab) -> None:
    """Of the same size: found when a stage is about to read it, which says what makes it again."""
    _all_but_the_end(lab)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    _break(lab, "expert.law", "model.safetensors", flip)
    process = lab.start()
    lab.must_end(process, 1)
    assert "expert.law@" in process.err
    remedy = ("--only", "expert.law", "--force", "expert.law")
    assert f"has other bytes than recorded; `{' '.join(remedy)}` makes it again" in process.err
    lab.must_end_well(lab.start(*remedy))
    lab.again()


def _damage(lab: Lab, stage: str, file: str, how: Callable[[Path], object]) -> None:
    _all_but_the_end(lab)
    _break(lab, stage, file, how)
    lab.again()


def _all_but_the_end(lab: Lab) -> None:
    """A run killed when it has mixed, so that the damage meets one that is under way."""
    lab.plan(20 + 20 + 3, "hold")
    process = lab.start()
    lab.until_fired(process)
    process.send(signal.SIGKILL)
    process.end()


def _break(lab: Lab, stage: str, file: str, how: Callable[[Path], object]) -> None:
    [folder] = lab.place.artifacts(stage)
    lab.strikes()
    how(folder / file)
    lab.broken.add(stage)
