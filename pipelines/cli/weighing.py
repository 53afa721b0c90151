"""`bam pareto`: what cheaper attention costs in perplexity, and saves in FLOPs, cache and time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bam_core.errors import UsageError
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.scoring import dtype_
from pipelines.cli.units import FloatRange, IntRange

if TYPE_CHECKING:
    from pipelines.wiring import Weighed


@click.command(
    cls=Command,
    examples=(
        "bam pareto train.bam --out pareto",
        "bam pareto train.bam distil.small --tokens 50000 --rounds 0",
    ),
)
@click.argument("names", nargs=-1, required=True, metavar="REF...", shell_complete=completing.artifacts)
@click.option(
    "--tokens",
    type=IntRange(min=1),
    default=20_000,
    show_default=True,
    metavar="N",
    help="Held-out tokens of each domain.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=FloatRange(0, 1, min_open=True),
    multiple=True,
    metavar="G",
    help="Leave out experts with a gate below G. [0.05 to 0.3, as far as one in the number of experts]",
)
@click.option(
    "--rounds",
    type=IntRange(min=0),
    default=5,
    show_default=True,
    metavar="N",
    help="Of measuring speed, in turns; 0 for none.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write pareto.json, pareto.csv and pareto.svg here.",
)
@dtype_
@with_session
def pareto(
    session: Session,
    names: Sequence[str],
    tokens: int,
    thresholds: Sequence[float],
    rounds: int,
    out: Path | None,
    dtype: str | None,
) -> None:
    """What the attention of the mixture REF costs and is worth: as it is, and made cheaper without training.

    Further REFs, such as those that a recipe's `distil` made, are rows as they are. Scored on held-out text of the
    first one's domains. Optimal (*): no other row is as good in all and better in something."""
    from pipelines import wiring

    found = wiring.weigh(
        names,
        session.settings(),
        tokens=tokens,
        thresholds=tuple(thresholds) or None,
        rounds=rounds,
        dtype=dtype,
        say=lambda what: click.echo(what, err=True),
    )
    if out is not None:
        _write(found, out)
    session.answer(found.to_json(), lambda: pareto_text(found))


def _write(found: Weighed, out: Path) -> None:
    from pipelines.report.pareto import pareto_csv, pareto_panel

    value = found.to_json()
    files = {
        "pareto.json": json.dumps(value, indent=1) + "\n",
        "pareto.csv": pareto_csv(value["rows"]),
        "pareto.svg": pareto_panel(value["rows"]).standalone(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror or error}") from error


def pareto_text(found: Weighed) -> str:
    """A row for each form; speed as the median, and from the slowest round to the fastest."""
    domains = list(found.rows[0].perplexity)
    timed = any(row.rates for row in found.rows)
    headers = ["", "form", *domains, "average", "experts", "FLOPs/token", "cache/token"]
    headers += ["tokens/s", "from", "to"] if timed else []
    rows = []
    for row, best in zip(found.rows, found.optimal, strict=True):
        cells = ["*" if best else "", click.style(row.name, bold=best)]
        cells += [f"{row.perplexity[domain]:.2f}" for domain in domains]
        cells += [f"{row.average:.2f}", "" if row.experts is None else f"{row.experts:.2f}"]
        cells += [text.count(row.flops), text.size(row.cache_bytes)]
        speeds = (row.rate, min(row.rates, default=None), max(row.rates, default=None))
        cells += ["" if speed is None else f"{speed:.0f}" for speed in speeds] if timed else []
        rows.append(cells)
    return text.table(headers, rows, right=range(2, len(headers)))


COMMANDS = (pareto,)
