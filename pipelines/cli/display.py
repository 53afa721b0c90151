"""What a run shows while it goes: a live table on a terminal, plain lines elsewhere.

Both are told the same: `update(states)` with every stage of the plan, as often as the driver likes. ETA comes
from the steps seen since the first look, so a resumed training is not flattered by an earlier attempt.
Progress comes from a file that is being written: a figure that is not a number is left out, never an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, TextIO

from pipelines.cli import text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from pipelines.runner import Display, StageState

LINE_EVERY_S = 10.0
"""Between two plain lines of one training stage."""

MARKS = {
    "pending": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "reused": ("✓", "dim green"),
    "failed": ("✗", "bold red"),
    "skipped": ("-", "dim"),
}


def open_display(stream: TextIO) -> Display:
    """The live table if `stream` is a terminal, else plain lines."""
    if not stream.isatty():
        return PlainLines(stream)
    from rich.console import Console

    console = Console(file=stream)
    return PlainLines(stream) if console.is_dumb_terminal else LiveTable(console)


@dataclass(frozen=True)
class Figures:
    """What is known of a training stage; None where it is not."""

    step: float | None = None
    total_steps: float | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None

    @property
    def steps(self) -> str:
        if self.step is None or not (self.step or self.total_steps):  # a mixture is measured at step 0, of none
            return ""
        return f"{self.step:.0f}/{self.total_steps:.0f}" if self.total_steps else f"{self.step:.0f}"


class Watch:
    """Reads figures out of states, and from their pace the time to go."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, float]] = {}

    def look(self, state: StageState) -> Figures:
        """What the driver tells of a stage now. Of an ended one that is nothing, or its last figures."""
        names = ("step", "total_steps", "loss", "tokens_per_s")
        values = {name: _number(state.progress.get(name)) for name in names}
        eta_s = self._eta_s(state.stage, values["step"], values["total_steps"])
        return Figures(**values, eta_s=eta_s)

    def _eta_s(self, stage: str, step: float | None, total_steps: float | None, **_: float | None) -> float | None:
        if step is None or total_steps is None:
            return None
        now = self._clock()
        then, first = self._first.setdefault(stage, (now, step))
        if step <= first or now <= then:
            return None
        return max(0.0, total_steps - step) * (now - then) / (step - first)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


class PlainLines:
    """One line when a stage starts, ends or is reused; one every `every_s` while it trains and gets on."""

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, every_s: float = LINE_EVERY_S
    ) -> None:
        self._stream, self._clock, self._every_s = stream, clock, every_s
        self._began = clock()
        self._watch = Watch(clock)
        self._status: dict[str, str] = {}
        self._said_at: dict[str, float] = {}
        self._told: dict[str, Figures] = {}
        self._width = 0

    def update(self, states: Sequence[StageState]) -> None:
        self._width = max((len(state.stage) for state in states), default=0)
        for state in states:
            figures = self._watch.look(state)
            if self._status.get(state.stage, "pending") != state.status:
                self._say(state.stage, _event(state, figures))
            elif state.status == "running" and self._is_due(state.stage) and self._is_news(state.stage, figures):
                self._say(state.stage, _progress(figures))
            self._status[state.stage] = state.status

    def message(self, words: str) -> None:
        print(words, file=self._stream, flush=True)

    def close(self) -> None:
        pass

    def _is_due(self, stage: str) -> bool:
        return self._clock() - self._said_at[stage] >= self._every_s

    def _is_news(self, stage: str, figures: Figures) -> bool:
        """Not the last figures once more, of a process that stands still or has been killed."""
        told, self._told[stage] = self._told.get(stage, Figures()), replace(figures, eta_s=None)
        return self._told[stage] not in (told, Figures())

    def _say(self, stage: str, words: str) -> None:
        self._said_at[stage] = self._clock()
        minutes, seconds = divmod(int(self._clock() - self._began), 60)
        self.message(f"{minutes:02d}:{seconds:02d}  {stage:<{self._width}}  {words}")


def _event(state: StageState, figures: Figures) -> str:
    took, reason = text.duration(state.seconds), state.reason.partition("\n")[0]
    if state.status == "running":
        return f"starts: {reason}" if reason else "starts"
    if state.status == "done":
        return f"done in {took}" if figures.loss is None else f"done in {took}, loss {figures.loss:.4f}"
    if state.status == "pending":  # it was shown as running in another run, which has ended
        return "waits for its turn"
    return f"failed after {took}: {reason}" if state.status == "failed" else state.status


def _progress(figures: Figures) -> str:
    parts = [f"step {figures.steps}"] if figures.steps else []
    parts += [f"loss {figures.loss:.4f}"] if figures.loss is not None else []
    parts += [f"{text.count(figures.tokens_per_s)} tokens/s"] if figures.tokens_per_s is not None else []
    parts += [f"ETA {text.duration(figures.eta_s)}"] if figures.eta_s is not None else []
    return "  ".join(parts)


class LiveTable:
    """A table that repaints in place; messages scroll above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        self._console = console
        self._watch = Watch(clock)
        self._states: Sequence[StageState] = ()
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def update(self, states: Sequence[StageState]) -> None:
        self._states = tuple(states)

    def message(self, words: str) -> None:
        self._console.print(words, markup=False, highlight=False)

    def close(self) -> None:
        self._live.transient = not self._states
        self._live.stop()

    def _render(self) -> RenderableType:
        from rich.text import Text

        if not self._states:
            return Text("planning", style="dim")
        shown, hidden = fit(self._states, self._console.height - 4)
        table = _table(self._console.width)
        for state in shown:
            table.add_row(*_cells(state, self._watch.look(state), self._console.width))
        if hidden:
            counts = ", ".join(f"{hidden.count(name)} {name}" for name in dict.fromkeys(hidden))
            table.caption, table.caption_justify = Text(f"   and {counts}", style="dim"), "left"
        return table


_FIRST_SHOWN = ("running", "failed", "pending", "skipped")


def fit(states: Sequence[StageState], lines: int) -> tuple[list[StageState], list[str]]:
    """The states to show in `lines` lines, in their order, and the statuses of those left out.

    What runs or has failed comes first, then what is next, then what has ended last.
    """
    if len(states) <= lines:
        return list(states), []

    def rank(index: int) -> tuple[int, int]:
        status = states[index].status
        return (_FIRST_SHOWN.index(status), index) if status in _FIRST_SHOWN else (len(_FIRST_SHOWN), -index)

    kept = sorted(sorted(range(len(states)), key=rank)[: max(1, lines - 1)])
    return [states[index] for index in kept], [s.status for i, s in enumerate(states) if i not in kept]


NARROW = 84
"""Below this many columns the table does without tokens/s and the bar."""


def _table(width: int) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    widths = {"": 1, "stage": 30, "state": max(10, width - 76), "progress": 30}
    for name, most in widths.items():
        table.add_column(name, no_wrap=True, max_width=most)
    for name in ("loss", *(("tokens/s",) if width >= NARROW else ()), "ETA", "elapsed"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(state: StageState, figures: Figures, width: int) -> list[RenderableType]:
    from rich.text import Text

    mark, style = MARKS.get(state.status, (" ", ""))
    runs = state.status == "running"
    words = _words(state) if width >= NARROW else state.status
    faded = "dim" if state.status in ("pending", "reused", "skipped") else ""
    speed = text.count(figures.tokens_per_s) if runs and figures.tokens_per_s is not None else ""
    return [
        Text(mark, style=style),
        Text(state.stage, style=faded),
        Text(words or state.status, style=style, overflow="ellipsis"),
        _bar(figures) if runs and width >= NARROW else Text(figures.steps),
        Text("" if figures.loss is None else f"{figures.loss:.4f}"),
        *((Text(speed),) if width >= NARROW else ()),
        Text(text.duration(figures.eta_s) if runs and figures.eta_s is not None else ""),
        Text(text.duration(state.seconds) if state.seconds else "", style=faded),
    ]


def _words(state: StageState) -> str:
    """Why it failed, what it waits for, or how it is."""
    if state.status == "failed":
        return state.reason.partition("\n")[0]
    if state.status == "pending" and state.waits_for:
        return f"after {', '.join(state.waits_for)}"
    return state.status


def _bar(figures: Figures) -> RenderableType:
    from rich.text import Text

    if figures.step is None or not figures.total_steps:
        return Text(figures.steps)
    filled = round(BAR * min(1.0, figures.step / figures.total_steps))
    bar = Text("━" * filled, style="cyan").append("━" * (BAR - filled), style="dim")
    return bar.append(f" {figures.steps}", style="default")


BAR = 12
