"""Where faults are tried: a store, the command that works on it, and what a fault cost.

lab.plan(13, "hold"); process = lab.start(); lab.until_fired(process)     in the middle of a training
lab.strikes(); process.send(SIGKILL); ...                                 the fault
lab.again()                                                               the same command, to its end
lab.outcome()                                                             what was lost, for how long, same bytes?
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from infra.store import ArtifactStore
from tests.e2e.kit import NO_MLFLOW, Place, merged, recipe_dict, write_recipe, write_texts
from tests.faults import inject
from tests.faults.processes import Process

LOOK_EVERY_S = 0.02
CHECKPOINT_STEPS = 5
"""Of the tiny recipe: what a fault may cost of a training."""
SITE = Path(__file__).parent / "site"
ROOT = Path(__file__).parents[2]

Step = tuple[float, str, str]
"""When it was done, of which training, and which of its steps."""


class Running(Protocol):
    """A `bam` beside the test: forked (`Process`) or a program of its own (`Program`)."""

    @property
    def is_alive(self) -> bool: ...
    @property
    def out(self) -> str: ...
    @property
    def err(self) -> str: ...
    def send(self, number: int) -> None: ...
    def end(self) -> int: ...


@dataclass(frozen=True)
class Outcome:
    """made_again: stages that were done when it struck and were not what it broke.

    lost_steps: of the training that lost most, those that were done when it struck and were done again.

    back_s: until the training that it struck does a step that never was done before; where it struck a commit
    (`Lab.is_of_services`), until the next stage starts; where neither, until the command has ended.
    """

    made_again: tuple[str, ...]
    broken: tuple[str, ...]
    lost_steps: int
    back_s: float
    is_identical: bool


@dataclass
class Lab:
    """place: the recipe and its store, which `uri` names where it is not a folder. undisturbed: perplexity.json.

    is_of_services: the fault meets what a stage talks to, so that its training goes on and its commit has to wait.
    """

    place: Place
    undisturbed: bytes
    uri: str = ""
    executor: str = "local"
    words: tuple[str, ...] = ()
    tracking: tuple[str, ...] = NO_MLFLOW
    env: dict[str, str] = field(default_factory=dict)
    is_of_services: bool = False
    broken: set[str] = field(default_factory=set)
    programs: list[Program] = field(default_factory=list)
    cleanup: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uri = self.uri or str(self.place.store)
        self.faults.mkdir()

    @property
    def folder(self) -> Path:
        """For the fault's own files."""
        return self.place.recipe.parent

    @property
    def faults(self) -> Path:
        return self.folder / "faults"

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.uri)

    def plan(self, at: int, do: str) -> None:
        """See `inject`."""
        (self.faults / "plan.json").write_text(json.dumps({"at": at, "do": do}))

    def start(
        self, *words: str, forked: bool = True, env: Mapping[str, str] | None = None, before: tuple[str, ...] = ()
    ) -> Running:
        """The command. forked: in milliseconds, from a process that has imported all; the local executor only.

        before: words of a program that starts it.
        """
        at = _At(self.place.recipe, self.uri)
        every = ("run", str(self.place.recipe), *self.words, *words)
        if forked:
            settings = {**self.env, **(env or {})}
            return Process(at, *every, tracking=self.tracking, faults=self.faults, env=settings)
        command = at.words(*every, tracking=self.tracking, executor=self.executor)
        log = self.folder / f"program-{len(self.programs)}"
        self.programs.append(Program(log, command, self.program_env(env), before))
        return self.programs[-1]

    def again(self, *, forked: bool = True) -> Running:
        """The same command, which must end well."""
        process = self.start(forked=forked)
        self.must_end_well(process)
        return process

    def must_end_well(self, process: Running) -> None:
        self.must_end(process, 0)

    def must_end(self, process: Running, status: int) -> None:
        ended = process.end()
        assert ended == status, f"exit status {ended}, not {status}:\n{process.out[-3000:]}\n{process.err[-3000:]}"
        assert "Traceback" not in process.err, process.err

    def until_fired(self, process: Running) -> int:
        """As soon as what was planned happens. Returns the process that it happens in."""
        self.until(process, lambda: (self.faults / "fired").exists() and (self.faults / "fired").read_text() != "")
        return int((self.faults / "fired").read_text())

    def until(self, process: Running, holds: Callable[[], Any]) -> None:
        while not holds():
            assert process.is_alive, f"ended too early:\n{process.out[-3000:]}\n{process.err[-3000:]}"
            time.sleep(LOOK_EVERY_S)

    def go(self) -> None:
        """Ends what `hold` holds."""
        (self.faults / "go").touch()

    def strikes(self) -> None:
        """Now: what is done, and which steps are, is noted."""
        self._struck_at, self._struck_on = time.monotonic(), time.time()
        self._done = self._records()
        self._steps_before = self._steps()

    def outcome(self) -> Outcome:
        """After the command that ended well, just now."""
        ended_at, steps, records = time.monotonic(), self._steps(), self._records()
        changed = {stage for stage, started in self._done.items() if records.get(stage) != started}
        new = self._new_steps(steps)
        [evaluated] = self.store.records("evaluate")
        perplexity = (self.store.localize(evaluated) / "perplexity.json").read_bytes()
        return Outcome(
            tuple(sorted(changed - self.broken)),
            tuple(sorted(self.broken)),
            self._lost_steps(steps),
            self._next_start(records) if self.is_of_services else (min(new) if new else ended_at) - self._struck_at,
            perplexity == self.undisturbed,
        )

    def close(self) -> None:
        for program in self.programs:
            program.close()
        for undo in reversed(self.cleanup):
            undo()

    def _records(self) -> dict[str, tuple[str, float]]:
        """A record that is torn, or whose outputs are not there, is not one."""
        return {record.stage: (record.key, record.started) for record in self.store.records()}

    def _lost_steps(self, steps: list[Step]) -> int:
        again = {step[1:] for step in steps if step[0] > self._struck_at}
        lost = [step[1] for step in set(self._steps_before) if step[1:] in again]
        return max((lost.count(training) for training in lost), default=0)

    def _next_start(self, records: Mapping[str, tuple[str, float]]) -> float:
        return min(started for _, started in records.values() if started > self._struck_on) - self._struck_on

    def _new_steps(self, steps: list[Step]) -> list[float]:
        """When the training that was at work did steps that had not been done before."""
        if not self._steps_before or self.broken:
            return []
        known, training = {step[1:] for step in self._steps_before}, self._steps_before[-1][1]
        return [step[0] for step in steps if step[1] == training and step[1:] not in known]

    def _steps(self) -> list[Step]:
        """Of all processes, in the order in which they were done."""
        if not (self.faults / "steps").exists():
            return []
        lines = (line.split() for line in (self.faults / "steps").read_text().splitlines())
        return sorted((float(at), training, which) for at, training, which in lines)

    def program_env(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        path = {"PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}", inject.FOLDER: str(self.faults)}
        return {**os.environ, **path, **self.env, **(env or {})}


class Program:
    """`bam` as a person starts it."""

    def __init__(self, log: Path, words: tuple[str, ...], env: Mapping[str, str], before: tuple[str, ...] = ()) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        # Whoever started the tests in the background made them ignore ctrl-C, and this would inherit it.
        listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        script = f"{listen}; import sys; from pipelines.cli import main; sys.exit(main())"
        command = [*before, sys.executable, "-c", script, *words]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(command, stdout=out, stderr=err, env=dict(env), start_new_session=True)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        """With all that it has started and that is still in its session."""
        for number in (18, 9):  # a stopped one too
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
        self._process.wait()


@dataclass(frozen=True)
class _At(Place):
    """A place whose store is named by a URI."""

    store: Any


SMALLER = {"domains": {"law": None}, "variants": {"btx": None}, "dense": False}
"""Few trainings: Ray costs seconds for each."""
_FIRST = ("tokenizer", "data.*", "seed")


def whole_run(folder: Path, changes: Mapping[str, Any] | None = None) -> Place:
    """An undisturbed run of the tiny recipe, on the local executor."""
    place = new_place(folder, changes)
    answer = place.run()
    assert answer.status == 0, answer.err
    return place


def new_place(folder: Path, changes: Mapping[str, Any] | None = None) -> Place:
    texts = folder / "texts"
    write_texts(texts)
    recipe = merged(recipe_dict(texts), changes or {})
    return Place(write_recipe(folder / "tiny.yaml", recipe), folder / "store")


def new_lab(folder: Path, finished: Place, patterns: tuple[str, ...] = _FIRST, **settings: Any) -> Lab:
    """A lab on a copy of these artifacts of a finished run; its recipe with texts of its own."""
    place = new_place(folder)
    recipe = finished.recipe_dict()
    recipe["domains"] = {name: place.recipe_dict()["domains"][name] for name in recipe["domains"]}
    place.set_recipe(recipe)
    for pattern in patterns:
        for found in finished.store.glob(f"artifacts/{pattern}"):
            shutil.copytree(found, place.store / "artifacts" / found.name)
    return Lab(place, finished.perplexity(), **settings)
