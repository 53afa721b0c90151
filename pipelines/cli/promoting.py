"""`bam promote`: a model into MLflow's registry, if its recipe's rule holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from bam_core.graph.key import key12
from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.verifying import now_and_then

if TYPE_CHECKING:
    from pipelines.wiring import Promotion


@click.command(
    cls=Command,
    examples=("bam promote train.bam --alias champion",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--alias", metavar="ALIAS", help="Give it this alias, such as champion; it moves from whichever had it.")
@click.option("--name", metavar="MODEL", help="The registered model. [the recipe's; default RECIPE-VARIANT]")
@click.option("--recipe", metavar="RECIPE", help="Whose rule it must pass. [that of the newest run that has it]")
@with_session
def promote(session: Session, ref: str, alias: str | None, name: str | None, recipe: str | None) -> int:
    """Register the model REF in MLflow, under a page that leads to all that made it.

    Refused, with status 1 and nothing written, when its bytes or those of the models behind it are not as recorded, or
    when the rule of its recipe (`promote: {require: ...}`) does not hold. Again, it makes no second version. REF may
    also be models:/NAME@ALIAS or models:/NAME/VERSION."""
    from pipelines import wiring

    made = wiring.promote(ref, session.settings(), alias=alias, name=name, recipe=recipe, say=now_and_then())
    session.answer({"promoted": not made.refused, **asdict(made)}, lambda: promotion_text(made))
    return 1 if made.refused else 0


def promotion_text(made: Promotion) -> str:
    """What was registered and why it could be; or every reason why not."""
    artifact = f"{made.stage}@{key12(made.key)}"
    if made.refused:
        head = f"{click.style('refused', fg='red')}: {artifact} is not promoted, and nothing was written"
        return "\n".join([head, *(f"  {reason}" for reason in made.refused), *_judged(made)])
    state = "" if made.is_new else ", registered before"
    lines = [f"{click.style('promoted', fg='green')}: {made.model} version {made.version} is {artifact}{state}"]
    if made.alias:
        moved = made.alias_before not in (None, made.version)
        lines.append(f"  alias {made.alias}{f', until now of version {made.alias_before}' if moved else ''}")
    lines += [f"  {words}" for words in made.rule]
    lines += [f"  not checked: {words}" for words in made.unchecked]
    lines += _judged(made) or ["  no rule was asked: a recipe's `promote: {require: ...}` would be one"]
    return "\n".join([*lines, f"  {made.page} (`bam ui`)"])


def _judged(made: Promotion) -> list[str]:
    """Whose rule it was, and what it was judged by."""
    by = f", judged by {made.evaluation}" if made.evaluation else ""
    return [f"  the rule of {made.rule_of}{by}"] if made.rule_of else []


COMMANDS = (promote,)
