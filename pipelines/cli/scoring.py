"""`bam tasks`, `bam lm-eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.text import table
from pipelines.cli.units import IntRange

limit_ = click.option("--limit", type=IntRange(min=1), metavar="N", help="The first N items of each alone.")
dtype_ = click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp64"]), help="Precision of the model. [as stored, at least fp32]"
)


@click.command(
    cls=Command,
    examples=("bam tasks train.bam questions.jsonl --limit 100",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@limit_
@click.option("--execute", is_flag=True, help="Run the code that the model writes, confined (SECURITY.md).")
@click.option("--new-tokens", type=IntRange(min=0), metavar="N", help="Of an answer at most; 0 generates none. [128]")
@dtype_
@with_session
def tasks(
    session: Session,
    ref: str,
    files: Sequence[str],
    limit: int | None,
    execute: bool,
    new_tokens: int | None,
    dtype: str | None,
) -> None:
    """Score the model REF on task files: multiple choice, exact match, code.

    FILE is a path or URI of JSON lines; docs/recipe.md has their columns."""
    from pipelines import wiring

    found = wiring.score_files(
        ref, files, session.settings(), limit=limit, execute=execute, new_tokens=new_tokens, dtype=dtype
    )
    value = {"model": found.model, "tasks": found.tasks}
    session.answer(value, lambda: f"{found.model}\n\n{_table(_native_rows(found.tasks))}")


@click.command(
    "lm-eval",
    cls=Command,
    examples=("bam lm-eval train.bam arc_easy hellaswag --limit 100",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("names", nargs=-1, required=True, metavar="TASK...")
@click.option(
    "--tasks-folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Of tasks (YAML) beside lm-eval's own. What Python they name is run.",
)
@limit_
@dtype_
@with_session
def lm_eval(
    session: Session, ref: str, names: Sequence[str], tasks_folder: Path | None, limit: int | None, dtype: str | None
) -> None:
    """Score the model REF on tasks of lm-eval, by its own library (extra `lm-eval`)."""
    from pipelines import wiring

    found = wiring.lm_eval(ref, names, session.settings(), folder=tasks_folder, limit=limit, dtype=dtype)
    value = {"model": found.model, "tasks": found.tasks}
    session.answer(value, lambda: f"{found.model}\n\n{_table(_lm_eval_rows(found.tasks))}")


def _table(rows: Iterator[Sequence[str]]) -> str:
    return table(["task", "figure", "value", "± s.e.", "items", "chance"], list(rows), right=(2, 3, 4, 5))


def _native_rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """A row for each figure; chance where a guess has one."""
    for task, score in found.items():
        for name, figure in score["figures"].items():
            chance = _number(score["chance"]) if name.startswith("acc") else ""
            yield task, name, _number(figure["value"]), _number(figure["stderr"]), str(figure["items"]), chance


def _lm_eval_rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """lm-eval's own names: `acc,none` is the metric and the filter of answers."""
    for task, results in found.items():
        for key, value in results.items():
            name, comma, chosen = key.partition(",")
            if comma and not name.endswith("_stderr"):
                stderr = results.get(f"{name}_stderr,{chosen}")
                items = str(results.get("sample_len", ""))
                yield task, name if chosen == "none" else key, _number(value), _number(stderr), items, ""


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


COMMANDS = (tasks, lm_eval)
