"""`bam verify`, `bam keygen`: whether what the store holds is what was made, and by whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bam_core.errors import UsageError
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from pipelines.wiring import Checked, Verified

QUIET_S = 5.0
"""How long nothing is said of what is being read."""
COLOURS = {"ok": "green", "fault": "red", "cannot": "yellow"}


@click.command(
    cls=Command,
    examples=("bam verify train.bam --deep",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--deep", is_flag=True, help="Also all that REF was made from, its records and tensors.")
@click.option("--sources", "texts", is_flag=True, help="With --deep: also the raw texts, where they can be found.")
@with_session
def verify(session: Session, ref: str, deep: bool, texts: bool) -> int:
    """Hash every file of REF again; compare with its record.

    BAM_TRUSTED_KEYS (paths of public keys, with ':' between) wants every record signed by one of them. Exit status 1 if
    anything is not as recorded; what was collected is named, and no fault."""
    from pipelines import wiring

    if texts and not deep:
        raise UsageError("--sources: the texts are far behind most artifacts; add --deep")
    found = wiring.verify(ref, session.settings(), deep=deep, texts=texts, say=now_and_then())
    root = found.artifacts[0]
    value = {
        "stage": root.stage,
        "key": root.key,
        "ok": not found.faults,
        "deep": deep,
        "faults": root.faults,
        "signed_by": root.signed_by,
        "artifacts": [asdict(checked) | {"state": checked.state} for checked in found.artifacts],
    }
    session.answer(value, lambda: _deep_text(found) if deep else _text(found))
    return 1 if found.faults else 0


@click.command(
    cls=Command,
    examples=("bam keygen ~/.config/bam/key",),
)
@click.argument("path", type=click.Path(path_type=Path))
@with_session
def keygen(session: Session, path: Path) -> None:
    """Make a key that signs records: PATH, which is secret, and PATH.pub.

    Nothing that exists is overwritten."""
    from pipelines import wiring

    made = wiring.make_keys(path)
    value = {"private": str(made.private), "public": str(made.public), "fingerprint": made.fingerprint}
    words = [
        f"{made.private}: the private key; keep it secret. BAM_SIGNING_KEY={made.private} signs what runs make",
        f"{made.public}: the public key {made.fingerprint}. BAM_TRUSTED_KEYS={made.public} makes `bam verify` want it",
    ]
    session.answer(value, lambda: "\n".join(words))


COMMANDS = (verify, keygen)


def now_and_then() -> Callable[[str], None]:
    """Says on standard error what is being read, once that takes long."""
    last = time.monotonic()

    def say(words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_S:
            click.echo(words, err=True)
            last = time.monotonic()

    return say


def _text(found: Verified) -> str:
    if found.faults:
        return "\n".join([*found.faults, *found.cannot])
    whole = [
        f"{checked.name}: {checked.n_files} files are as recorded"
        + (f", signed by {checked.signed_by}" if checked.signed_by else "")
        for checked in found.artifacts
    ]
    return "\n".join([*whole, *found.cannot])


def _deep_text(found: Verified) -> str:
    rows = [
        [checked.name, click.style(checked.state, fg=COLOURS[checked.state]), _figures(checked)]
        for checked in found.artifacts
    ]
    parts = [text.table(["artifact", "state", "compared"], rows)]
    for title, lines in (("faults", found.faults), ("cannot be checked", found.cannot)):
        parts += [f"{click.style(title, bold=True)}\n" + "\n".join(f"  {line}" for line in lines)] if lines else []
    states = [checked.state for checked in found.artifacts]
    counts = ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)
    return "\n\n".join([*parts, f"{len(states)} artifact{'s'[: len(states) > 1]}: {counts}"])


def _figures(checked: Checked) -> str:
    parts = [f"{checked.n_files} file{'s'[: checked.n_files != 1]}"] if checked.n_files else []
    if checked.n_tensors:
        again = f", {checked.n_again} of them made again from their sources" if checked.n_again else ""
        parts.append(f"{checked.n_tensors} tensors{again}")
    if checked.signed_by:
        parts.append(f"signed by {checked.signed_by}")
    return "; ".join(parts)
