"""`bam lineage`, `bam ui`, `bam generate`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from bam_core.errors import UsageError
from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.units import FloatRange, IntRange
from pipelines.cli.writing import write_text

WIDEST, PIPED = 200, 160
"""Columns."""


@click.command(
    cls=Command,
    examples=(
        "bam lineage train.bam --out lineage.html",
        "bam lineage data.law --down",
        "bam lineage sync",
    ),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--up", is_flag=True, help="What it was made from (default).")
@click.option("--down", is_flag=True, help="What was made from it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "mermaid", "html", "openlineage"]),
    help="[default: what --out's name says, else text]",
)
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="Write it to FILE.")
@click.option("--from-mlflow", is_flag=True, help="As MLflow shows it, without a look at the records.")
@with_session
def lineage(
    session: Session, ref: str, up: bool, down: bool, form: str | None, out: Path | None, from_mlflow: bool
) -> None:
    """What exactly made REF, or what REF has made.

    `bam lineage sync` rebuilds MLflow's view from the records."""
    from pipelines import wiring

    settings = session.settings()
    if ref == "sync":
        synced = wiring.lineage_sync(settings)
        session.answer({"synced": synced}, lambda: f"{synced} artifacts are in MLflow")
        return
    from bam_core.graph.lineage_render import RENDERERS, SUFFIXES

    form = form or (SUFFIXES.get(out.suffix.lower(), "text") if out is not None else "text")
    if form == "html" and out is None and not session.json and sys.stdout.isatty():
        raise UsageError("--format html is a page for a browser: give --out lineage.html, or redirect it to a file")
    walk = wiring.lineage_from_mlflow if from_mlflow else wiring.lineage
    graph = walk(ref, settings, "both" if up and down else "down" if down else "up")
    store = wiring.mask_text(wiring.open_store(settings).uri)
    columns = _columns() if out is None else WIDEST
    if out is None:
        session.answer(graph.to_json(), lambda: RENDERERS[form](graph, store, columns))
        return
    write_text(out, RENDERERS[form](graph, store, columns) + "\n")
    value = {"file": str(out), "format": form, "nodes": len(graph.nodes), "edges": len(graph.edges)}
    session.answer(value, lambda: f"{out}: {len(graph.nodes)} nodes, {len(graph.edges)} edges, as {form}")


def _columns() -> int:
    """Of the terminal; of a pipe or a file, as many as COLUMNS says, or enough for every fact."""
    return min(WIDEST, shutil.get_terminal_size((PIPED, 24)).columns)


@click.command(
    cls=Command,
    examples=("bam ui --open",),
)
@click.option("--port", type=IntRange(0, 65535), default=5000, show_default=True, help="0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open a browser.")
@with_session
def ui(session: Session, port: int, open_browser: bool) -> None:
    """MLflow on 127.0.0.1 over this store's tracking data."""
    from pipelines import wiring

    wiring.serve_ui(session.settings(), port, open_browser)


@click.command(
    cls=Command,
    examples=(
        "bam generate train.bam 'The court held that'",
        "bam generate train.bam 'def main' --temperature 0.8 --top-p 0.9",
    ),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("prompt")
@click.option("--max-new-tokens", type=IntRange(min=1), default=64, show_default=True)
@click.option(
    "--temperature",
    type=FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest.",
)
@click.option(
    "--top-p",
    type=FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the fewest likeliest tokens whose probability reaches this.",
)
@click.option("--seed", type=IntRange(min=0), default=0, show_default=True)
@with_session
def generate(
    session: Session, ref: str, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    """Continue PROMPT with the model REF."""
    from pipelines import wiring

    settings = session.settings()
    continued = wiring.generate(
        ref, prompt, settings, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    session.answer({"ref": ref, "prompt": prompt, "text": continued}, lambda: continued)


COMMANDS = (lineage, ui, generate)
