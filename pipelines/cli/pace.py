"""`bam pace`: the seconds per token that `match: seconds` takes from a recipe, measured."""

from __future__ import annotations

from collections.abc import Mapping

import click

from pipelines.cli import completing, text
from pipelines.cli import options as shared
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.units import IntRange


@click.command(
    cls=Command,
    examples=("bam pace mine.yaml --steps 10",),
)
@click.argument("recipe", shell_complete=completing.recipes)
@shared.set_
@click.option("--steps", type=IntRange(min=1), default=5, show_default=True, help="Timed steps of each turn.")
@click.option("--rounds", type=IntRange(min=1), default=5, show_default=True, help="Turns of each model.")
@with_session
def pace(session: Session, recipe: str, sets: tuple[str, ...], steps: int, rounds: int) -> int:
    """Measure what RECIPE's mixtures and its dense baseline take per token, here and now.

    Each is trained for a few steps with random weights, in turns; the median counts. Prints the lines for the recipe's
    `phases.mixture`, with which `match: seconds` gives every variant the same time. Measure on the machine that the
    recipe will run on, with nothing else running."""
    from pipelines.recipe import load_recipe

    loaded = load_recipe(recipe, sets, unmeasured=True, look=shared.look)
    from pipelines import wiring

    paces = wiring.measure_paces(loaded, n_steps=steps, rounds=rounds, say=_told)
    session.answer({"seconds_per_token": paces, "steps": steps * rounds}, lambda: paces_text(paces))
    return 0


def _told(name: str, seconds: float) -> None:
    click.echo(f"{name}: {seconds:.3g} s/token", err=True)


def paces_text(paces: Mapping[str, float]) -> str:
    """A table, and what to paste."""
    fastest = min(paces.values())
    rows = [[name, f"{s:.3g}", text.count(1 / s), f"{s / fastest:.2f}"] for name, s in paces.items()]
    table = text.table(["model", "seconds/token", "tokens/s", "to the fastest"], rows, right=(1, 2, 3))
    figures = ", ".join(f"{name}: {seconds:.3g}" for name, seconds in paces.items())
    return f"{table}\n\nphases:\n  mixture:\n    seconds_per_token: {{{figures}}}"


COMMANDS = (pace,)
