"""`bam diff`: why two artifacts differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from bam_core.graph.diff import BYTES, NAME, UNKNOWN, Cause, Difference, Pair
from bam_core.graph.key import Change
from bam_core.graph.words import clip, listed, printable, short
from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

MOST = 12
"""Changes that are named; JSON has all."""


@click.command(
    "diff",
    cls=Command,
    examples=("bam diff seed@0123abcd seed@latest",),
)
@click.argument("left", metavar="A", shell_complete=completing.artifacts)
@click.argument("right", metavar="B", shell_complete=completing.artifacts)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if they differ.")
@with_session
def diff(session: Session, left: str, right: str, exit_code: bool) -> int:
    """Why the artifacts A and B differ: which field of which ancestor, the earliest cause first."""
    from pipelines import wiring

    found = wiring.compare(left, right, session.settings())
    columns = max(40, shutil.get_terminal_size((100, 24)).columns)
    lines = difference_lines(found, columns)
    session.answer(found.to_json(), lambda: "\n".join(_clipped(line, columns) for line in lines))
    return 1 if exit_code and not found.is_empty else 0


COMMANDS = (diff,)


def _clipped(line: str, columns: int) -> str:
    """A line too long for the terminal loses its colours with its end."""
    plain = click.unstyle(line)
    return line if len(plain) <= columns else clip(plain, columns)


def difference_lines(found: Difference, columns: int) -> Iterator[str]:
    """What differs, for people; a line may be wider than `columns`."""
    left, right = short(found.left), short(found.right)
    if found.is_empty:
        yield f"{left} and {right} are identical: made from the same, the same bytes"
        return
    yield f"{left} -> {right}: " + _counted(len(found.causes), "cause")
    for number, cause in enumerate(found.causes, 1):
        yield ""
        yield f"{number}. {click.style(_pair(cause), bold=True)}"
        yield from (f"   {line}" for line in _why(cause, columns - 3))
        if cause.follows:
            verb = "differ" if cause.follows[1:] else "differs"
            yield f"   so {_listed((stage for stage, _ in cause.follows), columns - 18)} {verb} too"
    yield from _rest(found, columns)


def _pair(cause: Cause) -> str:
    """`seed@0123 -> @4567`."""
    (stage, key), (other, other_key) = cause.left, cause.right
    if stage == other:
        return short(cause.left) + ("" if key == other_key else f" -> {short(('', other_key))}")
    return f"{short(cause.left)} -> {short(cause.right)}"


def _why(cause: Cause, columns: int) -> Iterator[str]:
    if cause.kind == BYTES:
        yield from _other_bytes(cause, columns)
    elif cause.kind == NAME:
        yield "the same definition under another name"
    elif cause.kind == UNKNOWN:
        yield "the record of one of them is gone or says nothing of it: what differs cannot be told any more"
    else:
        for change in cause.changes[:MOST]:
            yield printable(f"{change.cause}: {change}")
            yield from _values(change)
        if len(cause.changes) > MOST:
            yield f"and {len(cause.changes) - MOST} more fields (--json has all)"


def _other_bytes(cause: Cause, columns: int) -> Iterator[str]:
    yield "bytes: the same key and the same inputs, but other bytes"
    yield f"files: {_listed(cause.files, columns - 7)}" if cause.files else "it was made again between the two"
    for change in cause.changes[:MOST]:
        yield printable(f"made with: {str(change).removeprefix('provenance.')}")
    if cause.files and not cause.changes:
        yield "made by the same code, packages, hosts and workers: making it is not deterministic"


def _values(change: Change) -> Iterator[str]:
    """Both values, where they are too long for the words of `bam plan`."""
    if not str(change).endswith(("changed", "added", "removed")):
        return
    for word, value in (("was", change.old), ("is", change.new)):
        if value is not Change.ABSENT:
            yield f"  {word:<3} {_shown(value)}"


def _shown(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value))


def _rest(found: Difference, columns: int) -> Iterator[str]:
    explained = {node for cause in found.causes for node in cause.follows}
    left_over = [pair for pair in found.follows if pair[1] not in explained]
    rows: Sequence[tuple[str, Iterable[str]]] = (
        ("differ too", _names(left_over)),
        (f"only behind {short(found.left)}", map(short, found.only_left)),
        (f"only behind {short(found.right)}", map(short, found.only_right)),
        ("the same", (stage for stage, _ in found.same)),
    )
    shown = [(title, list(names)) for title, names in rows]
    if any(names for _, names in shown):
        yield ""
    yield from (
        f"{click.style(title, dim=True)}: {_listed(names, columns - len(title) - 2)}" for title, names in shown if names
    )


def _names(pairs: Iterable[Pair]) -> Iterator[str]:
    return (stage for _, (stage, _) in pairs)


def _listed(names: Iterable[str], columns: int) -> str:
    return listed([printable(name) for name in names], columns)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
