"""`bam ls`: every artifact of the store, with its state, age and size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import ArtifactDamaged
from bam_core.graph.key import key12
from bam_core.graph.record import Record
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.units import AGE, SIZE

if TYPE_CHECKING:
    from infra.store import ArtifactStore

STATES = ("done", "running", "failed", "damaged", "missing")


@dataclass(frozen=True)
class Row:
    """One artifact as `bam ls` shows it. state: one of STATES. age_s, size_bytes: None until it is done."""

    stage: str
    key: str
    state: str
    age_s: float | None
    seconds: float | None
    size_bytes: int | None
    metrics: Mapping[str, Any]


_ORDER: Mapping[str, Callable[[Row], tuple[Any, ...]]] = {
    "stage": lambda row: (row.stage, -1.0 if row.age_s is None else row.age_s, row.key),
    "age": lambda row: (-1.0 if row.age_s is None else row.age_s, row.stage, row.key),
    "size": lambda row: (-(row.size_bytes or 0), row.stage, row.key),
}


@click.command(
    "ls",
    cls=Command,
    examples=(
        "bam ls",
        "bam ls 'expert.*' --state failed",
        "bam ls --larger-than 1GiB --sort size",
    ),
)
@click.argument("stage", required=False, shell_complete=completing.artifacts)
@click.option("--state", "states", type=click.Choice(STATES), multiple=True, help="Only these; may be repeated.")
@click.option("--older-than", type=AGE, metavar="AGE", help="Only what was made longer ago: 30m, 2d.")
@click.option("--larger-than", type=SIZE, metavar="SIZE", help="Only what takes more: 100M, 1.5GiB.")
@click.option(
    "--sort",
    type=click.Choice(tuple(_ORDER)),
    default="stage",
    show_default=True,
    help="By age the newest first, by size the largest.",
)
@with_session
def list_artifacts(
    session: Session,
    stage: str | None,
    states: tuple[str, ...],
    older_than: float | None,
    larger_than: int | None,
    sort: str,
) -> None:
    """Every artifact of the store, or those of STAGE.

    STAGE may be a glob such as 'expert.*'."""
    from pipelines import wiring

    rows = [
        row
        for row in listing(wiring.open_store(session.settings()), time.time(), stage or "*")
        if (not states or row.state in states)
        and (older_than is None or (row.age_s is not None and row.age_s > older_than))
        and (larger_than is None or (row.size_bytes or 0) > larger_than)
    ]
    rows.sort(key=_ORDER[sort])
    is_whole = not (stage or states or older_than is not None or larger_than is not None)
    nothing = "nothing yet" if is_whole else "nothing is like that"
    session.answer([asdict(row) for row in rows], lambda: _listing_text(rows) if rows else nothing)


def listing(store: ArtifactStore, now: float, pattern: str = "*") -> list[Row]:
    """By stage, the newest first. States are read from the files, never stored."""
    places = [(stage, key) for stage, key in store.artifacts() if fnmatchcase(stage, pattern)]
    stages = {stage for stage, _ in places}
    found = store.records() if pattern == "*" else [record for stage in stages for record in store.records(stage)]
    records = {(record.stage, key12(record.key)): record for record in found}
    rows = [_row(store, stage, key, records.get((stage, key)), now) for stage, key in places]
    return sorted(rows, key=_ORDER["stage"])


def _row(store: ArtifactStore, stage: str, key: str, record: Record | None, now: float) -> Row:
    if store.lease_info(stage, key) is not None:
        return Row(stage, key, "running", None, None, None, store.progress(stage, key) or {})
    if record is None:
        error = store.error(stage, key)
        words = {"error": error.get("message", "")} if error else {}
        return Row(stage, key, "failed" if error else "missing", None, None, None, words)
    size = sum(output.size for output in record.outputs)
    try:
        store.record(stage, record.key)
        state = "done"
    except ArtifactDamaged:
        state = "damaged"
    return Row(stage, record.key, state, max(0.0, now - record.ended), record.seconds, size, record.metrics)


def _listing_text(rows: Sequence[Row]) -> str:
    cells = [
        [
            row.stage,
            key12(row.key),
            text.styled(row.state),
            "" if row.age_s is None else text.duration(row.age_s),
            "" if row.seconds is None else text.duration(row.seconds),
            "" if row.size_bytes is None else text.size(row.size_bytes),
            str(row.metrics["error"]).splitlines()[0] if row.metrics.get("error") else text.metrics(row.metrics),
        ]
        for row in rows
    ]
    table = text.table(["stage", "key", "state", "age", "took", "size", "metrics"], cells, right=(3, 4, 5))
    return f"{table}\n\n{_total(rows)}"


def _total(rows: Iterable[Row]) -> str:
    rows = list(rows)
    size = text.size(sum(row.size_bytes or 0 for row in rows))
    others = [f"{n} {state}" for state in STATES[1:] if (n := sum(row.state == state for row in rows))]
    words = f"{len(rows)} artifact{'' if len(rows) == 1 else 's'}, {size}"
    return f"{words} ({', '.join(others)})" if others else words


COMMANDS = (list_artifacts,)
