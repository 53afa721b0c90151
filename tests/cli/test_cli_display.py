"""What is seen of a run: lines that say each change once, and a table that fits."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bam_core.errors import LeaseHeld
from bam_core.graph.plan import Decision
from bam_core.graph.stage import Pipeline, Stage
from pipelines import runner
from pipelines.attempt import StageEnd
from pipelines.cli.display import Figures, LiveTable, PlainLines, fit, open_display
from pipelines.runner import PipelineRun, StageState, Task


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def state(stage: str, status: str, reason: str = "", seconds: float = 0.0, **progress: Any) -> StageState:
    return StageState(stage, "0" * 64, "run", status, reason, seconds, progress)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> tuple[PlainLines, io.StringIO]:
    stream = io.StringIO()
    return PlainLines(stream, clock), stream


def test_each_change_is_one_line(lines: tuple[PlainLines, io.StringIO], clock: Clock) -> None:
    display, stream = lines
    reused, waiting = state("tokenizer", "reused"), state("seed", "pending", "never made")
    display.update([reused, waiting])
    display.update([reused, waiting])
    clock.now = 61
    display.update([reused, replace(waiting, status="running")])
    clock.now = 75.5
    display.update([reused, state("seed", "done", "never made", 14.5)])
    display.update([reused, state("seed", "done", "never made", 14.5)])
    assert stream.getvalue().splitlines() == [
        "00:00  tokenizer  reused",
        "01:01  seed       starts: never made",
        "01:15  seed       done in 14s",
    ]


def test_training_is_told_every_ten_seconds(lines: tuple[PlainLines, io.StringIO], clock: Clock) -> None:
    display, stream = lines
    for second in range(26):
        clock.now = float(second)
        display.update([state("seed", "running", step=100 + second, total_steps=200, loss=3.0, tokens_per_s=41_234.0)])
    assert stream.getvalue().splitlines() == [
        "00:00  seed  starts",
        "00:10  seed  step 110/200  loss 3.0000  41.2k tokens/s  ETA 1m 30s",
        "00:20  seed  step 120/200  loss 3.0000  41.2k tokens/s  ETA 1m 20s",
    ]


def test_figures_that_stand_still_are_told_once(lines: tuple[PlainLines, io.StringIO], clock: Clock) -> None:
    """As those of a training in another process are from when it was killed until its lease is over."""
    display, stream = lines
    for second in range(62):
        clock.now = float(second)
        display.update([state("seed", "running", step=min(100 + second, 105), total_steps=200, loss=3.0)])
    assert [line.partition("  ETA")[0] for line in stream.getvalue().splitlines()] == [
        "00:00  seed  starts",
        "00:10  seed  step 105/200  loss 3.0000",
    ]


def test_the_end_tells_the_final_loss_and_never_an_older_one(lines: tuple[PlainLines, io.StringIO]) -> None:
    display, stream = lines
    display.update([state("seed", "running", step=9, total_steps=10, loss=2.5), state("dense", "running", loss=2.0)])
    display.update([state("seed", "done", seconds=3, loss=2.4), state("dense", "done", seconds=4)])
    assert [line.partition("done ")[2] for line in stream.getvalue().splitlines()[2:]] == [
        "in 3.0s, loss 2.4000",
        "in 4.0s",
    ]


def test_a_failure_is_one_line(lines: tuple[PlainLines, io.StringIO]) -> None:
    display, stream = lines
    display.update([state("seed", "failed", "no room\nand a long story", 2)])
    assert stream.getvalue() == "00:00  seed  failed after 2.0s: no room\n"


@pytest.mark.parametrize("junk", [None, "x", [], float("nan"), True])
def test_figures_that_are_no_numbers_are_left_out(junk: Any, clock: Clock) -> None:
    stream = io.StringIO()
    plain, table = PlainLines(stream, clock), live(clock)
    for second in (0.0, 11.0):
        clock.now = second
        states = [state("seed", "running", step=junk, total_steps=junk, loss=junk, tokens_per_s=junk)]
        plain.update(states)
        table.update(states)
    table.close()
    assert stream.getvalue() == "00:00  seed  starts\n"


def live(clock: Clock, width: int = 100, height: int = 40, stream: io.StringIO | None = None) -> LiveTable:
    console = Console(file=stream or io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    return LiveTable(console, clock)


STATES = [
    state("tokenizer", "reused"),
    state("seed", "done", seconds=88),
    state("expert.code", "running", seconds=5, step=30, total_steps=120, loss=5.1234, tokens_per_s=41_234.0),
    state("expert.law", "failed", "the loss is not finite at step 212"),
    state("mix.bam", "skipped"),
    state("report", "pending"),
]


def shown(width: int, height: int = 40) -> list[str]:
    """The table as it stands when the display closes."""
    stream, clock = io.StringIO(), Clock()
    display = live(clock, width, height, stream)
    display.update(STATES)
    display.close()
    last = stream.getvalue().split("stage")[-1]
    return [line.strip() for line in last.splitlines()]


def test_the_table_says_everything() -> None:
    text = "\n".join(shown(120))
    assert "▸  expert.code  running" in text
    assert "━━━━━━━━━━━━ 30/120  5.1234     41.2k" in text
    assert "✗  expert.law   the loss is not finite at step 212" in text
    assert "✓  seed         done" in text
    assert "1m 28s" in text


@pytest.mark.parametrize("width", [60, 70, 84, 120, 200])
def test_the_table_fits_its_terminal(width: int) -> None:
    rows = shown(width)
    assert max(map(len, rows)) <= width
    assert any("expert.code  running" in row and "30/120" in row and "5.1234" in row for row in rows)


def test_what_waits_says_for_what() -> None:
    waits = replace(state("train.bam", "pending", "never made"), waits_for=("mix.bam",))

    def row(width: int) -> str:
        stream, clock = io.StringIO(), Clock()
        display = live(clock, width, 40, stream)
        display.update([waits])
        display.close()
        return next(line for line in reversed(stream.getvalue().splitlines()) if "train.bam" in line)

    assert "train.bam  after mix.bam" in row(100)
    assert "train.bam  pending" in row(60)


def test_a_low_terminal_shows_what_matters() -> None:
    text = "\n".join(shown(100, height=8))
    assert "expert.code" in text
    assert "expert.law" in text
    assert "tokenizer" not in text
    assert "and 1 reused, 1 done, 1 skipped" in text


def test_fit_keeps_the_order_and_counts_the_rest() -> None:
    kept, hidden = fit(STATES, 5)
    assert [state.stage for state in kept] == ["expert.code", "expert.law", "mix.bam", "report"]
    assert hidden == ["reused", "done"]
    assert fit(STATES, 6) == (STATES, [])


def test_a_pipe_gets_lines() -> None:
    assert isinstance(open_display(io.StringIO()), PlainLines)


def test_a_stage_waits_for_what_is_not_done_yet() -> None:
    """As the driver tells it: of the stages before it, those that have been reused or made no longer count."""
    stages = [Stage(name, name.partition(".")[0], 1, {}, {}) for name in ("data.law", "seed")]
    last = Stage("expert.law", "expert", 1, {}, {"seed": "seed", "data.law": "data.law"})
    decisions = [
        Decision("data.law", "a" * 64, "reuse", "done", "none"),
        Decision("seed", "b" * 64, "run", "never made", "new"),
        Decision("expert.law", "c" * 64, "run", "never made", "new", ("data.law", "seed")),
    ]
    nowhere: Any = None
    states = PipelineRun(Pipeline("p", (*stages, last)), decisions, {}, nowhere, nowhere).states()
    assert [(each.stage, each.waits_for) for each in states] == [
        ("data.law", ()),
        ("seed", ()),
        ("expert.law", ("seed",)),
    ]


class Elsewhere:
    """Executor, store and display of a run that has room for one stage, while another process trains `expert.law`.

    ends: at which second what ends. until: the second at which the other process has its lease no more.
    """

    def __init__(self, clock: Clock, ends: dict[int, tuple[str, Any]], until: int) -> None:
        self._clock, self._ends, self._until = clock, ends, until
        self.seen: list[tuple[str, str, Any]] = []

    def submit(self, *_: Any) -> None:
        pass

    def wait(self, timeout_s: float) -> list[tuple[str, Any]]:
        self._clock.now += 1
        return [self._ends[int(self._clock.now)]] if int(self._clock.now) in self._ends else []

    def lease_info(self, stage: str, key: str) -> str | None:
        return "held" if self._clock.now < self._until else None

    def progress(self, stage: str, key: str) -> dict[str, Any]:
        return {"step": 20, "total_steps": 20} if stage == "expert.law" else {}

    def update(self, states: list[StageState]) -> None:
        law = next(state for state in states if state.stage == "expert.law")
        now = (law.status, law.reason, law.progress.get("step"))
        self.seen += [now] if now not in self.seen[-1:] else []


def test_what_another_run_has_ended_is_no_longer_shown_as_running(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while this run has no room to look for itself: its own stage may take long yet."""
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=clock))
    stages = tuple(Stage(name, "expert", 1, {}, {}) for name in ("expert.law", "expert.code"))
    decisions = [Decision(stage.name, "0" * 64, "run", "never made", "new") for stage in stages]
    record: Any = None
    ends = {
        1: ("expert.law", LeaseHeld("expert.law@0: held by another; run the same command again later")),
        9: ("expert.code", StageEnd(record, made=True)),
        11: ("expert.law", StageEnd(record, made=False)),
    }
    world: Any = Elsewhere(clock, ends, until=5)
    jobs: Any = dict.fromkeys(("expert.law", "expert.code"))
    watched = PipelineRun(Pipeline("p", stages), decisions, jobs, world, world)
    assert watched.run(world, Task(world.submit, ()), 1) == "done"
    assert world.seen == [
        ("running", "held by another", 20),
        ("pending", "never made", None),
        ("running", "never made", 20),
        ("reused", "never made", 20),
    ]


@pytest.mark.parametrize(
    ("step", "total_steps", "shown"), [(None, 9, ""), (0, None, ""), (0, 9, "0/9"), (3, None, "3"), (3, 9, "3/9")]
)
def test_steps_are_shown_where_there_are_some(step: float | None, total_steps: float | None, shown: str) -> None:
    assert Figures(step, total_steps).steps == shown
