"""`bam gc`, `pin`, `unpin`, `pins`, `runs`: what stays, what goes, and who asked for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import UsageError
from bam_core.graph.holdings import Going, Node, Policy, ref
from bam_core.graph.key import key12
from bam_core.graph.pins import Pin
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.units import AGE, IntRange

if TYPE_CHECKING:
    from infra.housekeeping import Removal
    from pipelines.wiring.keeping import House, RunRow

NAMED = 6
"""Artifacts named in one line of what stays; `-v` names all."""


@click.command(
    cls=Command,
    examples=(
        "bam gc",
        "bam gc --keep-last 2 --min-age 7d --apply",
    ),
)
@click.option("--apply", is_flag=True, help="Remove it; without, it is only shown.")
@click.option(
    "--keep-last",
    type=IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Keep what the newest N runs of each recipe made or used.",
)
@click.option("--keep-run", "keep_runs", metavar="RUN", multiple=True, help="Keep what this run made or used.")
@click.option(
    "--min-age", type=AGE, default="1h", show_default=True, metavar="AGE", help="What is younger stays: 30m, 2d, 0."
)
@with_session
def gc(session: Session, apply: bool, keep_last: int, keep_runs: tuple[str, ...], min_age: float) -> None:
    """What nothing needs any more, and with --apply its removal.

    Kept, with all that it was made from: what the newest run of each recipe made or used, what a run is making now,
    pins (`bam pin`; `bam promote` pins too), and what is younger than --min-age. Interrupted, the same command goes on.
    """
    from pipelines.wiring import keeping

    done = 0

    def tell(removal: Removal) -> None:
        nonlocal done
        done += 1
        words = f"stays: {removal.kept}" if removal.kept else text.size(removal.going.size_bytes)
        click.echo(f"{done}  {removal.going.name}  {words}", file=session.progress_stream())

    policy = Policy(keep_last, keep_runs, min_age)
    house = keeping.collect(session.settings(), policy, apply=apply, tell=tell)
    now = time.time()
    session.answer(_house_value(house, now), lambda: _house_text(house, now, session.verbose))


def _house_value(house: House, now: float) -> dict[str, Any]:
    kept = {removal.going.identity: removal.kept for removal in house.removals or ()}
    goes = [
        {
            "kind": going.kind,
            "stage": going.node[0] if going.node else None,
            "key": going.node[1] if going.node else None,
            "run": going.run,
            "size_bytes": going.size_bytes,
            "age_s": max(0.0, now - going.changed),
            "why": going.why,
            "removed": going.identity in kept and kept[going.identity] is None,
            "kept": kept.get(going.identity),
        }
        for going in house.reach.goes
    ]
    stays = [
        {"stage": node[0], "key": node[1], "size_bytes": house.artifacts[node].size_bytes, "why": list(why)}
        for node, why in sorted(house.reach.stays.items())
    ]
    return {
        "applied": house.removals is not None,
        "goes": goes,
        "stays": stays,
        "goes_bytes": sum(going.size_bytes for going in house.reach.goes),
        "freed_bytes": sum(item["size_bytes"] for item in goes if item["removed"]),
        "blocked": list(house.reach.blocked),
        "notes": list(house.reach.notes),
    }


def _house_text(house: House, now: float, is_verbose: bool) -> str:
    reach = house.reach
    parts = [_goes_text(reach.goes, now)] if reach.goes and house.removals is None else []
    if reach.stays:
        parts.append(_stays_text(house, is_verbose))
    for title, lines in (("nothing may go now", reach.blocked), ("note", reach.notes)):
        parts += ["\n".join(f"{click.style(title, fg='yellow')}: {line}" for line in lines)] if lines else []
    return "\n\n".join([*parts, text.prose(_total_text(house))])


def _goes_text(goes: Sequence[Going], now: float) -> str:
    rows = [
        [
            going.name,
            text.size(going.size_bytes) if going.node else "",
            text.duration(max(0.0, now - going.changed)) if going.changed else "",
            going.why,
        ]
        for going in goes
    ]
    return text.table(["would go", "size", "age", "why"], rows, right=(1, 2))


def _stays_text(house: House, is_verbose: bool) -> str:
    """By reason, those of most artifacts last: what is kept for a reason of its own is what people look for."""
    stays = house.reach.stays
    if is_verbose:
        rows = [[ref(node), _size(house, [node]), "; ".join(why)] for node, why in sorted(stays.items())]
        return text.table(["stays", "size", "why"], rows, right=(1,))
    groups: dict[str, list[Node]] = {}
    for node, why in sorted(stays.items()):
        groups.setdefault(why[0], []).append(node)
    rows = [
        [_named(nodes), str(len(nodes)), _size(house, nodes), reason]
        for reason, nodes in sorted(groups.items(), key=lambda group: (len(group[1]), group[0]))
    ]
    return text.table(["stays", "n", "size", "why"], rows, right=(1, 2))


def _named(nodes: Sequence[Node]) -> str:
    if len(nodes) == 1:
        return ref(nodes[0])
    names = list(dict.fromkeys(node[0] for node in nodes))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _size(house: House, nodes: Sequence[Node]) -> str:
    return text.size(sum(house.artifacts[node].size_bytes for node in nodes))


def _total_text(house: House) -> str:
    n_stays, stays = len(house.reach.stays), _size(house, list(house.reach.stays))
    kept = f"{_count(n_stays, 'artifact')} ({stays}) stay" + ("s" if n_stays == 1 else "")
    if house.removals is None:
        goes = house.reach.goes
        if not goes:
            return f"nothing would go; {kept}"
        total = text.size(sum(going.size_bytes for going in goes))
        return f"{_kinds(goes)} would go, {total}; {kept}. `bam gc --apply` with the same options removes it"
    removed = [removal.going for removal in house.removals if removal.kept is None]
    total = text.size(sum(going.size_bytes for going in removed))
    left = len(house.removals) - len(removed)
    needed = f"; {left} became needed meanwhile" if left else ""
    return (f"removed {_kinds(removed)}, {total}" if removed else "nothing was removed") + f"{needed}; {kept}"


def _kinds(goes: Sequence[Going]) -> str:
    words = {"artifact": "artifact", "checkpoints": "training's checkpoints", "scratch": "half-written folder"}
    words |= {"lease": "lease that is over", "run": "run's record"}
    counts = {kind: sum(going.kind == kind for going in goes) for kind in words}
    return ", ".join(f"{n} {words[kind]}" if n == 1 else f"{n} {_PLURALS[kind]}" for kind, n in counts.items() if n)


_PLURALS: Mapping[str, str] = {
    "artifact": "artifacts",
    "checkpoints": "trainings' checkpoints",
    "scratch": "half-written folders",
    "lease": "leases that are over",
    "run": "runs' records",
}


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


@click.command(
    cls=Command,
    examples=(
        "bam pin train.bam --name paper --why 'The model of Table 1'",
        "bam pin",
    ),
)
@click.argument("ref", required=False, shell_complete=completing.artifacts)
@click.option("--name", metavar="NAME", help="Of the pin; by default after the artifact.")
@click.option("--why", metavar="TEXT", default="", help="For whoever wonders later.")
@with_session
def pin(session: Session, ref: str | None, name: str | None, why: str) -> None:
    """Keep REF and all that it was made from, whatever `bam gc` finds. Without REF: the pins."""
    from pipelines.wiring import keeping

    if ref is None:
        if name or why:
            raise UsageError("`bam pin` with --name or --why needs a REF: what to pin")
        _show_pins(session)
        return
    made = keeping.pin(session.settings(), ref, name, why)
    value = {"name": made.name, **made.to_json()}
    session.answer(value, lambda: f"{made.stage}@{key12(made.key)} is pinned as {made.name}; `bam unpin {made.name}`")


@click.command(
    cls=Command,
    examples=("bam unpin paper",),
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also the pin of a registered model.")
@with_session
def unpin(session: Session, name: str, force: bool) -> None:
    """Remove a pin; the artifact itself is `bam gc`'s to judge."""
    from pipelines.wiring import keeping

    keeping.unpin(session.settings(), name, force=force)
    session.answer({"name": name, "removed": True}, lambda: f"{name}: no longer pinned")


@click.command(
    cls=Command,
    examples=("bam pins",),
)
@with_session
def pins(session: Session) -> None:
    """What is pinned, and why."""
    _show_pins(session)


def _show_pins(session: Session) -> None:
    from pipelines.wiring import keeping

    found = keeping.pins(session.settings())
    value = [{"name": there.name, **there.to_json()} for there in found]
    session.answer(value, lambda: _pins_text(found, time.time()) if found else "nothing is pinned")


def _pins_text(found: Sequence[Pin], now: float) -> str:
    rows = [
        [there.name, f"{there.stage}@{key12(there.key)}", text.duration(max(0.0, now - there.created)), there.words]
        for there in found
    ]
    return text.table(["pin", "artifact", "age", "why"], rows, right=(2,))


@click.command(
    cls=Command,
    examples=(
        "bam runs",
        "bam runs quickstart --json",
    ),
)
@click.argument("recipe", required=False)
@with_session
def runs(session: Session, recipe: str | None) -> None:
    """The runs on record, or those of RECIPE (its name), the newest first.

    `stopped`: it says that it is running, and no stage of it is being made: its process was killed."""
    from pipelines.wiring import keeping

    found = keeping.runs(session.settings(), recipe)
    session.answer([asdict(row) for row in found], lambda: _runs_text(found) if found else "no run on record")


def _runs_text(rows: Sequence[RunRow]) -> str:
    cells = [
        [
            row.name,
            row.recipe,
            text.styled(row.status),
            text.duration(row.age_s),
            "" if row.seconds is None else text.duration(row.seconds),
            *(str(count or "") for count in (row.made, row.reused, row.failed, row.left)),
        ]
        for row in rows
    ]
    headers = ["run", "recipe", "status", "age", "took", "made", "reused", "failed", "not made"]
    return text.table(headers, cells, right=range(3, len(headers)))


COMMANDS = (gc, pin, unpin, pins, runs)
