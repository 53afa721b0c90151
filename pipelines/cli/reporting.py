"""`bam report A B`: two runs compared on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bam_core.graph.key import Change
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.writing import write_text

if TYPE_CHECKING:
    from pipelines.report.pair import Chances, Pair


@click.command(
    "report",
    cls=Command,
    examples=(
        "bam report tiny-20261101-101500-0a1b2c tiny-20261102-093000-3d4e5f",
        "bam report tiny-20261101-101500-0a1b2c tiny-20261102-093000-3d4e5f --out compared.html",
    ),
)
@click.argument("left", metavar="A", shell_complete=completing.runs)
@click.argument("right", metavar="B", shell_complete=completing.runs)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page here.  [report-A-B.html, with the last part of each name]",
)
@with_session
def report(session: Session, left: str, right: str, out: Path | None) -> None:
    """Compare the runs A and B (`bam runs` lists them) on one page.

    Recipes, perplexities, training curves, times and tokens. A run that is not finished is compared as far as it went.
    The report of one run is an artifact of it: `bam get report:report.html`."""
    from pipelines.report.pair import chances, pair_page
    from pipelines.report.pair.words import caveats, headline
    from pipelines.wiring.pairing import pair_runs

    pair = pair_runs(left, right, session.settings())
    chance = chances(pair)
    file = out or Path(f"report-{_end_of(left)}-{_end_of(right)}.html")
    write_text(file, pair_page(pair, chance))
    notes = [line.striptags() for line in (headline(pair), *caveats(pair, chance))]
    session.answer(_value(pair, chance, file, notes[1:]), lambda: _text(pair, file, notes))


COMMANDS = (report,)


def _end_of(run: str) -> str:
    """What tells it from the other runs of its recipe."""
    return run.rpartition("-")[2]


def _text(pair: Pair, file: Path, notes: list[str]) -> str:
    changes = len(pair.changes)
    recipes = f"{changes} key{'' if changes == 1 else 's'} of their recipes differ{'s' if changes == 1 else ''}"
    words = f"{notes[0]} {recipes if changes else 'Their recipes are equal'}."
    return "\n".join(
        [f"A: {pair.a.name}", f"B: {pair.b.name}", *map(text.prose, (words, *notes[1:])), f"the page: {file}"]
    )


def _value(pair: Pair, chance: Chances, file: Path, notes: list[str]) -> dict[str, Any]:
    from pipelines.report.formats import is_number
    from pipelines.report.pair.runs import difference

    def finite(value: Any) -> Any:
        return value if is_number(value) else None

    models = []
    for model in pair.evaluated:
        a, b = pair.average(pair.a, model), pair.average(pair.b, model)
        word = chance.found[model].word if model in chance.found else None
        same = pair.is_one_model(model)
        scores = {"a": finite(a), "b": finite(b), "difference": difference(a, b)}
        models.append({"model": model, **scores, "word": word, "same_artifact": same})
    return {
        "file": str(file),
        "a": pair.a.name,
        "b": pair.b.name,
        "recipe": [{"key": ".".join(change.path), **_sides(change)} for change in pair.changes],
        "models": models,
        "only_a": pair.only(pair.a),
        "only_b": pair.only(pair.b),
        "notes": notes,
    }


def _sides(change: Change) -> dict[str, Any]:
    """Without the side that lacks the key."""
    both = {"a": change.old, "b": change.new}
    return {side: value for side, value in both.items() if value is not Change.ABSENT}
