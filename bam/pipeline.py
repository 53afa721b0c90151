"""A recipe, and what can be done with it: `bam plan`, `run`, `stage` and `submit`, and what they left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam.artifacts import Artifact, Store
from bam.plans import Plan
from bam.words import Names, in_words, names, session
from bam_core.errors import UsageError
from bam_core.graph.select import Selection

if TYPE_CHECKING:
    from bam.results import Results
    from bam.runs import Job, Run
    from pipelines.cli.app import Session
    from pipelines.recipe import Recipe
    from pipelines.wiring import Settings

Set = Mapping[str, Any] | Sequence[str]
"""Dotted key -> value, as `{"phases.seed.lr": 1e-3}`; or the words of `--set`, as `["phases.seed.lr=1e-3"]`."""


def recipes() -> list[str]:
    """The names of the recipes that come with bam."""
    from pipelines.recipe import shipped_recipes

    return list(shipped_recipes())


def load(
    recipe: str | os.PathLike[str],
    *,
    set: Set = (),
    store: str | os.PathLike[str] | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    executor: str | None = None,
    verbose: bool = False,
) -> Pipeline:
    """Read a recipe, a file or the name of a shipped one, and say where it runs.

    What is not given is as on the command line: from the environment, else `./bam_store`, MLflow in the store, and an
    embedded Ray. executor: `ray`, or `local` for this process.
    Raises UsageError for a name that is none, InvalidInput with all that is wrong with the recipe.
    """
    with in_words():
        from pipelines.cli.options import look
        from pipelines.recipe import load_recipe

        given = os.fspath(store) if store is not None else None
        options = session(given, tracking_uri, address, executor, verbose)
        words = _set_words(set)
        return Pipeline(os.fspath(recipe), load_recipe(os.fspath(recipe), words, look=look), words, options)


def _set_words(given: Set) -> tuple[str, ...]:
    """As `--set` takes them. A value goes as JSON, which is YAML but for characters that YAML would not read."""
    if not isinstance(given, Mapping):
        return names(given)
    written = {key: json.dumps(_plain(value), ensure_ascii=False) for key, value in given.items()}
    return tuple(f"{key}={''.join(map(_readable, text))}" for key, text in written.items())


def _readable(char: str) -> str:
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UsageError(
        f"set: {value!r} ({type(value).__name__}) is no value of a recipe: give text, numbers, lists, dicts"
    )


class Pipeline:
    """name: as it was asked for. recipe: whole and checked. sets: what was laid over it, in the words of `--set`."""

    def __init__(self, name: str, recipe: Recipe, sets: tuple[str, ...], options: Session) -> None:
        self.name, self.recipe, self.sets = name, recipe, sets
        self._session = options

    @property
    def settings(self) -> Settings:
        """Where it runs and lives."""
        return self._session.settings()

    @property
    def store(self) -> Store:
        return Store(self.settings)

    def plan(self, *, only: Names = (), from_: Names = (), until: Names = (), force: Names = ()) -> Plan:
        """What `run` would do, why, and what it costs. Nothing is written."""
        with in_words():
            from pipelines import wiring

            selection = Selection(names(only), names(from_), names(until), names(force))
            return Plan(wiring.make_plan(self.recipe, self.settings, selection))

    def run(
        self,
        *,
        only: Names = (),
        from_: Names = (),
        until: Names = (),
        force: Names = (),
        keep_going: bool = True,
        wait: bool = True,
        max_parallel: int | None = None,
        quiet: bool = False,
    ) -> Run:
        """Make what is missing and reuse the rest; the options are those of `bam run`.

        quiet: show nothing meanwhile. Raises StageFailed with every failure (what is done is kept, and the same call
        continues), LeaseHeld if another run makes it and `wait` is off, KeyboardInterrupt.
        """
        with in_words():
            self._require_here()
            from bam.runs import Run, shown
            from pipelines import wiring

            selection = Selection(names(only), names(from_), names(until), names(force))
            with shown(quiet) as display:
                result = wiring.run(
                    self.recipe,
                    self.settings,
                    selection,
                    display,
                    keep_going=keep_going,
                    wait=wait,
                    max_parallel=max_parallel,
                )
            return Run.of(result, self._session)

    def stage(
        self,
        name: str,
        *,
        inputs: Mapping[str, str] | None = None,
        with_deps: bool = False,
        wait: bool = True,
        quiet: bool = False,
    ) -> Artifact:
        """Make one stage, such as `expert.law`. inputs: role -> reference of what fills it. Raises as `run`."""
        with in_words():
            self._require_here()
            from bam.runs import Run, shown
            from pipelines import wiring

            with shown(quiet) as display:
                result = wiring.run_stage(
                    name, self.recipe, self.settings, dict(inputs or {}), with_deps, display, wait=wait
                )
            ended = {stage.stage: stage for stage in Run.of(result, self._session)}
            return self.store[f"{name}@{ended[name].key}"]

    def submit(
        self,
        *,
        only: Names = (),
        from_: Names = (),
        until: Names = (),
        force: Names = (),
        keep_going: bool = True,
        max_parallel: int | None = None,
        again: bool = False,
        python: str = "python",
    ) -> Job:
        """`run` as a job of the cluster whose dashboard is at `address`, http://HOST:8265; it runs on without us.

        The same submission twice is one job; one that has failed is continued.
        """
        with in_words():
            from bam.runs import Job
            from pipelines import wiring
            from pipelines.cli import jobs
            from pipelines.cli.options import command, words_of

            options = jobs.run_options(
                names(only), names(from_), names(until), names(force), max_parallel, True, keep_going
            )
            continues = command("submit", [self.name], {"--set": self.sets, **options}, self._session)
            asked = wiring.Submission(("run",), tuple(words_of(options)), tuple(continues), python)
            selection = Selection(names(only), names(from_), names(until), names(force))
            sent = wiring.submit(self.recipe, self.settings, selection, asked, again=again)
            return Job(sent.job.id, self.settings)

    def results(self) -> Results:
        """What the recipe's evaluation and report have found, as frames and drawings.

        Raises UsageError if they are not made yet.
        """
        with in_words():
            from bam.results import Results

            made = self.plan()
            needed = [stage for stage in ("evaluate", "report") if made[stage].action != "reuse"]
            if needed:
                why = "; ".join(f"{stage}: {made[stage].reason}" for stage in needed)
                raise UsageError(f"recipe {self.name}: no results yet ({why}); run() makes them")
            judged = {
                name: self.store[f"{name}@{made.keys[name]}"]
                for name in ("evaluate", "routing", "report")
                if name in made.keys
            }
            return Results({name: artifact.folder for name, artifact in judged.items()})

    def __getitem__(self, stage: str) -> Artifact:
        """What this recipe's stage has made. Raises UsageError if it is not there, or is no stage."""
        with in_words():
            made = self.plan()
            decision = made[stage]
            if decision.action != "reuse":
                raise UsageError(f"{stage}: not made yet ({decision.reason}); run(until={stage!r}) makes it")
            return self.store[f"{stage}@{decision.key}"]

    def _require_here(self) -> None:
        if (self.settings.address or "").startswith(("http://", "https://")):
            raise UsageError(
                f"address {self.settings.address}: is that of a cluster's dashboard; submit() runs it there as a job"
            )

    def __repr__(self) -> str:
        sets = f", set={list(self.sets)}" if self.sets else ""
        with in_words():
            from pipelines.wiring import mask_text

            return f"<bam.Pipeline {self.name!r}{sets}, store {mask_text(self.settings.store)!r}>"
