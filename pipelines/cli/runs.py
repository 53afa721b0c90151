"""`bam run`, `bam plan`, `bam stage`: what a recipe asks for, planned or done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import INTERRUPTED, InvalidInput, Problem, UsageError
from bam_core.graph.select import Selection
from pipelines.cli import completing, jobs
from pipelines.cli import options as shared
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.ending import failures, next_text, result_text
from pipelines.cli.forecasts import comparison_text, forecast_text
from pipelines.cli.tables import plan_text

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from pipelines.runner import RunResult
    from pipelines.wiring import Plan

STATUS = {"done": 0, "failed": 1, "interrupted": INTERRUPTED}


@click.command(
    cls=Command,
    examples=(
        "bam run quickstart",
        "bam run mine.yaml --set phases.seed.lr=1e-3 --until train.bam",
        "bam run mine.yaml --only 'expert.*' --max-parallel 2",
    ),
)
@click.argument("recipe", shell_complete=completing.recipes)
@shared.set_
@shared.only
@shared.from_
@shared.until
@shared.force
@shared.max_parallel
@shared.wait
@click.option("--dry-run", is_flag=True, help="Say what would run, as `bam plan` does.")
@shared.keep_going
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
    """Make all that RECIPE describes, reusing what is done. With --address http://HOST:8265, as `bam submit`."""
    selection, loaded = Selection(only, from_, until, force), _load(recipe, sets)
    if jobs.is_job(session) and not dry_run:
        sent = jobs.run_options(only, from_, until, force, max_parallel, wait, keep_going)
        return jobs.send(session, ("run",), recipe, loaded, sets, sent, selection)
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
    rest = shared.continuing("run", [recipe], {"--set": sets}, session) if only or from_ or until else None
    return _finish(session, result, shared.continuing("run", [recipe], options, session), rest)


@click.command(
    cls=Command,
    examples=(
        "bam plan quickstart",
        "bam plan mine.yaml --on cluster.yaml --json",
    ),
)
@click.argument("recipe", shell_complete=completing.recipes)
@shared.set_
@shared.only
@shared.from_
@shared.until
@shared.force
@click.option(
    "--on", metavar="FILE", type=click.Path(path_type=Path), help="Predict time, memory and cost on a cluster."
)
@click.option("--calibration", metavar="FILE", type=click.Path(path_type=Path), help="Of nodes that name none.")
@click.option("--compare", is_flag=True, help="Of all stages, beside what the store has measured.")
@with_session
def plan(
    session: Session,
    recipe: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    from_: tuple[str, ...],
    until: tuple[str, ...],
    force: tuple[str, ...],
    on: Path | None,
    calibration: Path | None,
    compare: bool,
) -> int:
    """What `bam run` would do, why, and what it costs.

    With --on CLUSTER.yaml: each stage's time, memory, cost and energy there; a stage that fits on no node is refused,
    with the smallest change that helps."""
    selection, loaded = Selection(only, from_, until, force), _load(recipe, sets)
    from pipelines import wiring

    settings = session.settings()
    if on is None:
        if compare or calibration is not None:
            raise UsageError(f"{'--compare' if compare else '--calibration'}: say on which nodes, --on CLUSTER.yaml")
        return _show_plan(session, wiring.make_plan(loaded, settings, selection))
    from pipelines.wiring.cluster_files import open_cluster
    from pipelines.wiring.estimating import forecast

    kinds, calibrations = open_cluster(on, calibration)
    made = wiring.make_plan(loaded, settings, selection)
    found = forecast(loaded, made, settings, kinds, calibrations, compare=compare)
    value = _plan_json(made) | {"forecast": asdict(found)}
    session.answer(value, lambda: comparison_text(found) if compare else f"{plan_text(made)}\n\n{forecast_text(found)}")
    return 0


@click.command(
    cls=Command,
    examples=(
        "bam stage expert.law quickstart --with-deps",
        "bam stage train.bam quickstart --input mix=edit.small",
    ),
)
@click.argument("name")
@click.argument("recipe", shell_complete=completing.recipes)
@click.option("--input", "inputs", metavar="ROLE=REF", multiple=True, help="Fill an input with another artifact.")
@click.option("--with-deps", is_flag=True, help="Make the inputs that are not there.")
@shared.wait
@shared.set_
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
    """Make one stage of RECIPE, such as `expert.law`. With --address http://HOST:8265, as a job there."""
    given, loaded = _inputs(inputs), _load(recipe, sets)
    if jobs.is_job(session):
        sent: shared.Options = {"--input": inputs, "--with-deps": with_deps, "--no-wait": not wait}
        return jobs.send(session, ("stage", name), recipe, loaded, sets, sent, Selection())
    from pipelines import wiring
    from pipelines.cli.display import open_display

    settings = session.settings()
    display = open_display(session.progress_stream())
    try:
        result = wiring.run_stage(name, loaded, settings, given, with_deps, display, wait=wait)
    finally:
        display.close()
    options: shared.Options = {"--input": inputs, "--with-deps": with_deps, "--set": sets}
    rest = shared.continuing("run", [recipe], {"--set": sets}, session)
    return _finish(session, result, shared.continuing("stage", [name, recipe], options, session), rest)


COMMANDS = (run, plan, stage)


def _load(recipe: str, sets: Sequence[str]) -> Recipe:
    """Before anything else is imported: a wrong recipe gets its answer at once."""
    from pipelines.recipe import load_recipe

    return load_recipe(recipe, sets, look=shared.look)


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
    session.answer(_plan_json(made), lambda: plan_text(made))
    return 0


def _plan_json(made: Plan) -> dict[str, Any]:
    return {
        "stages": [asdict(decision) for decision in made.decisions],
        "models": dict(made.models),
        "searches": dict(made.searches),
        "data": dict(made.data),
        "plugins": [asdict(plugin) for plugin in made.plugins],
        "warnings": made.warnings,
        "recipe": dict(made.recipe),
    }


def _finish(session: Session, result: RunResult, again: str, rest: str | None = None) -> int:
    """again: the command that continues what has not ended well. rest: the one for what was not asked for."""
    value = {
        "run": result.run,
        "status": result.status,
        "seconds": round(result.seconds, 3),
        "stages": [asdict(stage) for stage in result.stages],
        "report": result.report,
    }
    is_done = result.status == "done"
    session.answer(
        value,
        lambda: result_text(session, result) + (f"\n\n{next_text(session, result, rest)}" if is_done else ""),
    )
    if not is_done:
        _explain(result, again)
    return STATUS[result.status]


def _explain(result: RunResult, again: str) -> None:
    """Each failure, then the exact command that continues."""
    for line in failures(result):
        click.echo(f"bam: {line}", err=True)
    click.echo(f"bam: what is done is kept; continue with\n  {again}", err=True)


def _left_to_force(force: Sequence[str], result: RunResult) -> list[str]:
    """Of the forced stages, those not made yet: the command that continues must not redo the others."""
    left = [stage.stage for stage in result.stages if stage.status not in ("done", "reused")]
    return [name for name in left if any(fnmatchcase(name, pattern) for pattern in force)]
