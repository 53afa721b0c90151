"""`bam results`: the tables of a study from what is in the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bam_core.errors import UsageError
from pipelines.cli import options as shared
from pipelines.cli.app import Session, with_session

README_MARK = "results"


@click.command("results")
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True)
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
    shown = wiring.study_results(loaded, session.settings())
    text = page(shown)
    if readme is not None:
        changed = between_marks(readme.read_text(), README_MARK, summary(shown))
        if changed is None:
            raise UsageError(f"{readme}: has no <!-- {README_MARK} --> followed by <!-- /{README_MARK} -->")
        readme.write_text(changed)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    tables = [table for _, of_recipe in shown for table in of_recipe]
    said = f"{len(tables)} tables and {sum(len(table.claims) for table in tables)} claims in {out}"
    session.answer(_json(shown), lambda: said if out is not None else text.rstrip("\n"))


COMMANDS = (results,)


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
