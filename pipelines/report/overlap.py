"""How much of what was evaluated on is in what was trained on, as the stage `overlap` counted it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from pipelines.report import formats
from pipelines.report.formats import clean
from pipelines.report.inputs import Json, ReportInputs
from pipelines.report.tables import Column, Table


def _share(value: Any) -> str:
    return formats.number(value, lambda x: f"{100 * x:.1f}%")


def overlap_table(inputs: ReportInputs) -> Table:
    """A row for each domain and each task."""
    columns = (
        Column("held_out", "held out"),
        Column("documents", "documents", formats.count),
        Column("duplicates", "copies", formats.count),
        Column("contaminated", "contaminated", formats.count),
        Column("mean_share", "mean share", _share),
        Column("most_in", "mostly in"),
        Column("most_in_share", "share there", _share),
    )
    return Table("overlap", columns, tuple(_row(name, its) for name, its in _all(inputs)))


def overlap_caveats(inputs: ReportInputs) -> Iterator[Markup]:
    """Of what is contaminated beyond the limit, which the recipe then allowed."""
    most = (inputs.overlap or {}).get("limits", {}).get("max_contaminated", 1)
    for name, its in _all(inputs):
        if its["contaminated"] > most * its["documents"]:
            text = "{} of the {} held-out documents of {} are in training text to a large part: see {}."
            where = Markup('<a href="#overlap">Overlap</a>')
            yield Markup(text).format(its["contaminated"], its["documents"], clean(name), where)


def _all(inputs: ReportInputs) -> Iterator[tuple[str, Json]]:
    found = inputs.overlap or {}
    yield from found.get("domains", {}).items()
    yield from ((f"task {name}", its) for name, its in found.get("tasks", {}).items())


def _row(name: str, its: Json) -> dict[str, Any]:
    shares: Mapping[str, float] = its["by_training"]
    most = max(shares, key=lambda domain: shares[domain], default=None)
    found = {key: its[key] for key in ("documents", "duplicates", "contaminated", "mean_share")}
    where = {"most_in": most, "most_in_share": shares[most]} if most is not None and shares[most] > 0 else {}
    return {"held_out": name} | found | where
