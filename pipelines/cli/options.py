"""Options that several commands share, and a command as the words that a person would type."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.app import Session
from pipelines.cli.units import IntRange

if TYPE_CHECKING:
    from pipelines.recipe.imports import Asked, Checkpoint

Options = Mapping[str, Sequence[str] | bool]

set_ = click.option(
    "--set", "sets", metavar="KEY=VALUE", multiple=True, help="Override a key, e.g. phases.seed.lr=1e-3."
)
only = click.option("--only", metavar="STAGE", multiple=True, help="These stages alone; globs such as 'expert.*' too.")
from_ = click.option(
    "--from", "from_", metavar="STAGE", multiple=True, help="This stage and all that is built from it."
)
until = click.option("--until", metavar="STAGE", multiple=True, help="This stage and all that it is built from.")
force = click.option("--force", metavar="STAGE", multiple=True, help="Make it again even if it is done.")
max_parallel = click.option("--max-parallel", type=IntRange(min=1), metavar="N", help="Stages at once at most.")
wait = click.option(
    "--wait/--no-wait", default=True, help="For what another run is making: wait (default), or end with status 3."
)
keep_going = click.option(
    "--keep-going/--fail-fast",
    default=True,
    help="When a stage fails, do the branches beside it (default), or stop.",
)


def look(asked: Asked, seed: Checkpoint | None) -> Checkpoint:
    """`wiring.imported.look`, for a recipe that imports; any other has its answer without what this loads."""
    from pipelines.wiring.imported import look

    return look(asked, seed)


def typed(words: Sequence[str]) -> str:
    """A command as it can be typed here: `bam`, or where that is, since after `make run` the shell has not heard of the
    environment that was made."""
    own = Path(sys.argv[0])
    if own.name != "bam" or shutil.which("bam") is not None:
        return shlex.join(words)
    place = os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)
    return shlex.join([place, *words[1:]])


def words_of(options: Options) -> list[str]:
    """`{"--only": ["a", "b"], "--with-deps": True}` -> `--only a --only b --with-deps`."""
    words: list[str] = []
    for option, values in options.items():
        words += ([option] if values else []) if isinstance(values, bool) else [w for v in values for w in (option, v)]
    return words


def command(name: str, arguments: Sequence[str], options: Options, session: Session) -> list[str]:
    """The words that give this command again."""
    words = ["bam", name, *arguments, *words_of(options)]
    for option, value in (session.typed or {}).items():
        if "@" not in value:  # may hold a password; the environment is the place for it
            words += [f"--{option.replace('_', '-')}", value]
    return words


def continuing(name: str, arguments: Sequence[str], options: Options, session: Session) -> str:
    """The command that continues this one: in a job, the one that the submitter can type."""
    from pipelines.wiring import CONTINUES

    if submitted := os.environ.get(CONTINUES):
        return shlex.join([*shlex.split(submitted), *words_of({"--force": options.get("--force", ())})])
    return typed(command(name, arguments, options, session))
