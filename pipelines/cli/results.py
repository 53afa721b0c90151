"""`bam results`: the tables of a study from what is in the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bam_core.errors import UsageError
from pipelines.cli import completing
from pipelines.cli import options as shared
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.writing import write_text

README_MARK = "results"


@click.command(
    "results",
    cls=Command,
    examples=("bam results study/core --out results.md",),
)
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True, shell_complete=completing.recipes)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of each recipe.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page here.  [standard output]")
@click.option(
    "--readme",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help=f"Also put the claims between <!-- {README_MARK} --> and <!-- /{README_MARK} --> of this file.",
)
@with_session
def results(
    session: Session, recipes: tuple[str, ...], overrides: tuple[str, ...], out: Path | None, readme: Path | None
) -> None:
    """The tables of a study: each number beside the paper's, each claim with its interval and a verdict.

    Reads evaluations that `bam run RECIPE` has left; computes nothing again.
    """
    from pipelines import wiring
    from pipelines.recipe import load_recipe
    from pipelines.results.page import between_marks, page, summary

    loaded = [(name, load_recipe(name, overrides, look=shared.look)) for name in recipes]
    there = _marked(readme) if readme is not None else ""
    shown = wiring.study_results(loaded, session.settings())
    text = page(shown)
    if readme is not None:
        write_text(readme, between_marks(there, README_MARK, summary(shown)) or there, "--readme")
    if out is not None:
        write_text(out, text, make_folder=True)
    tables = [table for _, of_recipe in shown for table in of_recipe]
    said = f"{len(tables)} tables and {sum(len(table.claims) for table in tables)} claims in {out}"
    session.answer(_json(shown), lambda: said if out is not None else text.rstrip("\n"))


COMMANDS = (results,)


def _marked(readme: Path) -> str:
    """The text of the file, before anything is computed. Raises UsageError if the tables have no place in it."""
    from pipelines.results.page import between_marks

    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{readme}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{readme}: is not UTF-8 text (byte {error.start})") from error
    if between_marks(text, README_MARK, "") is None:
        raise UsageError(f"{readme}: has no <!-- {README_MARK} --> followed by <!-- /{README_MARK} -->")
    return text


def _json(shown: Any) -> Any:
    return {
        found.recipe: [
            {
                "title": table.title,
                "rows": [
                    {"label": row.label, "model": row.model, "average": asdict(row.average)} for row in table.rows
                ],
                "claims": [asdict(claim) | {"verdict": claim.verdict} for claim in table.claims],
            }
            for table in tables
        ]
        for found, tables in shown
    }
