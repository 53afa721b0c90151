"""`bam run`, `bam plan`, `bam stage`: what a recipe asks for, planned or done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.graph.select import Selection
from pipelines.cli import text
from pipelines.cli.app import INTERRUPTED, Session, with_session
from pipelines.cli.tables import perplexity_text, plan_text

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from pipelines.runner import RunResult
    from pipelines.wiring import Plan

STATUS = {"done": 0, "failed": 1, "interrupted": INTERRUPTED}

_set = click.option(
    "--set", "sets", metavar="KEY=VALUE", multiple=True, help="Override a key, e.g. phases.seed.lr=1e-3."
)
_only = click.option("--only", metavar="STAGE", multiple=True, help="These stages alone; globs such as 'expert.*' too.")
_from = click.option(
    "--from", "from_", metavar="STAGE", multiple=True, help="This stage and all that is built from it."
)
_until = click.option("--until", metavar="STAGE", multiple=True, help="This stage and all that it is built from.")
_force = click.option("--force", metavar="STAGE", multiple=True, help="Make it again even if it is done.")
_max_parallel = click.option("--max-parallel", type=click.IntRange(min=1), metavar="N", help="Stages at once at most.")


_wait = click.option(
    "--wait/--no-wait", default=True, help="For what another run is making: wait (default), or end with status 3."
)


@click.command()
@click.argument("recipe")
@_set
@_only
@_from
@_until
@_force
@_max_parallel
@_wait
@click.option("--dry-run", is_flag=True, help="Say what would run, as `bam plan` does.")
@click.option(
    "--keep-going/--fail-fast",
    default=True,
    help="When a stage fails, do the branches beside it (default), or stop.",
)
@with_session
def run(
    session: Session,
    recipe: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    from_: tuple[str, ...],
    until: tuple[str, ...],
    force: tuple[str, ...],
    max_parallel: int | None,
    wait: bool,
    dry_run: bool,
    keep_going: bool,
) -> int:
    """Make all that RECIPE describes, reusing what is done."""
    selection, loaded = Selection(only, from_, until, force), _load(recipe, sets)
    from pipelines import wiring
    from pipelines.cli.display import open_display

    settings = session.settings()
    if dry_run:
        return _show_plan(session, wiring.make_plan(loaded, settings, selection))
    display = open_display(session.progress_stream())
    try:
        result = wiring.run(
            loaded, settings, selection, display, keep_going=keep_going, max_parallel=max_parallel, wait=wait
        )
    finally:
        display.close()
    options = {
        "--set": sets,
        "--only": only,
        "--from": from_,
        "--until": until,
        "--force": _left_to_force(force, result),
    }
    return _finish(session, result, _command("run", [recipe], options, session))


@click.command()
@click.argument("recipe")
@_set
@_only
@_from
@_until
@_force
@with_session
def plan(
    session: Session,
    recipe: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    from_: tuple[str, ...],
    until: tuple[str, ...],
    force: tuple[str, ...],
) -> int:
    """What `bam run` would do, why, and what it costs."""
    selection, loaded = Selection(only, from_, until, force), _load(recipe, sets)
    from pipelines import wiring

    return _show_plan(session, wiring.make_plan(loaded, session.settings(), selection))


@click.command()
@click.argument("name")
@click.argument("recipe")
@click.option("--input", "inputs", metavar="ROLE=REF", multiple=True, help="Fill an input with another artifact.")
@click.option("--with-deps", is_flag=True, help="Make the inputs that are not there.")
@_wait
@_set
@with_session
def stage(
    session: Session,
    name: str,
    recipe: str,
    inputs: tuple[str, ...],
    with_deps: bool,
    wait: bool,
    sets: tuple[str, ...],
) -> int:
    """Make one stage of RECIPE, such as `expert.law`."""
    given, loaded = _inputs(inputs), _load(recipe, sets)
    from pipelines import wiring
    from pipelines.cli.display import open_display

    settings = session.settings()
    display = open_display(session.progress_stream())
    try:
        result = wiring.run_stage(name, loaded, settings, given, with_deps, display, wait=wait)
    finally:
        display.close()
    options = {"--input": inputs, "--with-deps": with_deps, "--set": sets}
    return _finish(session, result, _command("stage", [name, recipe], options, session))


COMMANDS = (run, plan, stage)


def _load(recipe: str, sets: Sequence[str]) -> Recipe:
    """Before anything else is imported: a wrong recipe gets its answer at once."""
    from pipelines.recipe import load_recipe

    return load_recipe(recipe, sets)


def _inputs(items: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    problems = []
    for item in items:
        role, equals, ref = item.partition("=")
        if not (equals and role and ref):
            problems.append(Problem("--input", item, "must read role=REF", "for example --input seed=seed@latest"))
        elif role in given:
            problems.append(Problem("--input", item, f"{role} is filled twice", "keep one"))
        given[role] = ref
    if problems:
        raise InvalidInput("command line", problems)
    return given


def _show_plan(session: Session, made: Plan) -> int:
    value = {
        "stages": [asdict(decision) for decision in made.decisions],
        "models": dict(made.models),
        "warnings": made.warnings,
    }
    session.answer(value, lambda: plan_text(made))
    return 0


def _finish(session: Session, result: RunResult, again: str) -> int:
    value = {
        "run": result.run,
        "status": result.status,
        "seconds": round(result.seconds, 3),
        "stages": [asdict(stage) for stage in result.stages],
        "report": result.report,
    }
    session.answer(value, lambda: _result_text(session, result))
    if result.status != "done":
        _explain(result, again)
    return STATUS[result.status]


def _result_text(session: Session, result: RunResult) -> str:
    states = [stage.status for stage in result.stages]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    parts = [f"{text.styled(result.status)} in {text.duration(result.seconds)}: {counts}"]
    if result.report:
        parts.append(f"report: {result.report}")
    perplexity = _perplexity(session, result)
    return "\n".join([f"\n{perplexity_text(perplexity)}\n", *parts] if perplexity else parts)


def _explain(result: RunResult, again: str) -> None:
    """Each failure, then the exact command that continues."""
    for stage in result.stages:
        if stage.status == "failed":
            click.echo(f"bam: {stage.error or stage.stage + ' failed'}", err=True)
    waiting = [stage.stage for stage in result.stages if stage.status == "skipped"]
    if waiting:
        click.echo(f"bam: not started, they need it: {', '.join(waiting)}", err=True)
    click.echo(f"bam: what is done is kept; continue with\n  {again}", err=True)


def _left_to_force(force: Sequence[str], result: RunResult) -> list[str]:
    """Of the forced stages, those not made yet: the command that continues must not redo the others."""
    left = [stage.stage for stage in result.stages if stage.status not in ("done", "reused")]
    return [name for name in left if any(fnmatchcase(name, pattern) for pattern in force)]


def _command(name: str, arguments: Sequence[str], options: Mapping[str, Sequence[str] | bool], session: Session) -> str:
    words = ["bam", name, *arguments]
    for option, values in options.items():
        words += ([option] if values else []) if isinstance(values, bool) else [w for v in values for w in (option, v)]
    for option, value in (session.typed or {}).items():
        if "@" not in value:  # may hold a password; the environment is the place for it
            words += [f"--{option.replace('_', '-')}", value]
    return shlex.join(words)


def _perplexity(session: Session, result: RunResult) -> dict[str, Any] | None:
    from pipelines import wiring

    for stage in result.stages:
        if stage.stage == "evaluate" and stage.status in ("done", "reused"):
            store = wiring.open_store(session.settings())
            try:
                record = store.record(stage.stage, stage.key)
                return json.loads((store.localize(record) / "perplexity.json").read_text()) if record else None
            except (
                ArtifactDamaged,
                OSError,
                ValueError,
            ):  # the table is a courtesy, the run itself has ended well
                return None
    return None
