"""`bam completion`, and what a shell is offered where a recipe or an artifact is named.

The shell waits for each answer, so nothing slow is imported: names come from folders alone, and a store that is not on
this machine is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

import pipelines
from pipelines.cli.app import Session, bam, with_session
from pipelines.cli.commands import Command

VARIABLE = "_BAM_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Command, examples=('eval "$(bam completion bash)"', "bam completion fish > ~/.config/fish/completions/bam.fish")
)
@click.argument("shell", type=click.Choice(SHELLS))
@with_session
def completion(session: Session, shell: str) -> None:
    """Print the script by which SHELL completes commands, options, recipes and artifacts.

    Evaluate it in ~/.bashrc or ~/.zshrc; fish reads it from ~/.config/fish/completions/bam.fish."""
    found = get_completion_class(shell)
    assert found is not None, f"click knows no {shell}"
    script = found(bam, {}, "bam", VARIABLE).source().strip("\n")
    session.answer({"shell": shell, "script": script}, lambda: script)


COMMANDS = (completion,)


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, and the shipped recipes by name: in this order, since bash forgets what stood before `file`."""
    return [CompletionItem(incomplete, type="file"), *_items(shipped(), incomplete)]


def shipped() -> list[str]:
    """As `pipelines.recipe.shipped_recipes`, without what importing that takes."""
    folder = Path(pipelines.__path__[0], "recipes")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def artifacts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Stages of the store; after `@`, their keys."""
    folder = Path(_store(context), "artifacts")
    stage, at, _ = incomplete.partition("@")
    if not at:
        return _items(_folders(folder), incomplete)
    return _items([f"{stage}@latest", *(f"{stage}@{key}" for key in _folders(folder / stage))], incomplete)


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs on record in the store."""
    return _items(sorted(file.stem for file in Path(_store(context), "runs").glob("*.json")), incomplete)


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, and what `artifacts` gives: where a model may be either."""
    return [CompletionItem(incomplete, type="dir"), *artifacts(context, parameter, incomplete)]


def _store(context: click.Context) -> str:
    """As the command would find it: its own option, the one before its name, the environment, the default."""
    here: click.Context | None = context
    while here is not None:
        if here.params.get("store"):
            return str(here.params["store"])
        here = here.parent
    return os.environ.get("BAM_STORE") or Session.store


def _folders(folder: Path) -> Iterator[str]:
    try:
        yield from sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError:  # no store yet, or none on this machine
        return


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
