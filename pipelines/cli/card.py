"""`bam card`: a model's card with its evaluation, its lineage and the commands that make it again."""

from __future__ import annotations

from pathlib import Path

import click

from bam_core.errors import UsageError
from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command


@click.command(
    cls=Command,
    examples=("bam card train.bam --out card.md",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there; nothing is overwritten.")
@with_session
def card(session: Session, ref: str, out: Path | None) -> None:
    """The model card of REF: Markdown, with the metadata of Hugging Face's hub.

    It is the MODEL_CARD.md in the model's own folder and what the store knows beside it: evaluation, licences as they
    were stated last, commit, commands, lineage."""
    from pipelines import wiring

    made = wiring.card(ref, session.settings())
    value = {"stage": made.record.stage, "key": made.record.key, "card": made.text}
    if out is None:
        session.answer(value, lambda: made.text.rstrip("\n"))
        return
    _write(out, made.text)
    session.answer(value | {"file": str(out)}, lambda: f"{out}: the card of {ref}")


def _write(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{out} exists already: nothing was written; give another --out") from error
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror or error}") from error


COMMANDS = (card,)
