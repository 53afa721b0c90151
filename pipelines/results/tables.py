"""From scores per document to the rows and claims of a study's tables. No I/O.

A claim compares average perplexities by `bam_core.evaluate.significance`; all claims of one recipe are one family, so
that its tables do not each get a chance of their own to find something by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bam_core.evaluate.resample import OF_DOMAIN, DocumentScores, figure_over_seeds
from bam_core.evaluate.significance import Comparison, Estimate, Verdict, compare_all, estimate, verdict
from pipelines.recipe.study import AVERAGE, Row, StudyTable, models_of

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """What a recipe's evaluations say. figures: model -> its entry of `perplexity.json`, of the first seed.

    made: what the page says of where the numbers come from, in order: words -> values. settings: key of the recipe ->
    its value, of those that tables of margins name.
    """

    recipe: str
    seeds: tuple[int, ...]
    domains: tuple[str, ...]
    scores: DocumentScores
    figures: Mapping[str, Json]
    made: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownRow:
    """model: the stage whose numbers these are. paper: column -> the paper's number. chosen_of: among how many."""

    label: str
    model: str
    perplexity: Mapping[str, float]
    average: Estimate
    figures: Json
    paper: Mapping[str, float]
    chosen_of: int = 1


@dataclass(frozen=True)
class ShownClaim:
    """paper: its difference of the means over the columns that it prints for both; None where there are none."""

    model: str
    below: str
    comparison: Comparison
    paper: float | None

    @property
    def verdict(self) -> Verdict:
        return verdict(self.comparison, "below")


@dataclass(frozen=True)
class ShownTable:
    """setting: a key of the recipe and its value, for a table of margins."""

    title: str
    source: str | None
    rows: tuple[ShownRow, ...]
    claims: tuple[ShownClaim, ...]
    is_margins: bool = False
    setting: tuple[str, Any] | None = None


def study_tables(tables: Mapping[str, StudyTable], found: Evaluated) -> list[ShownTable]:
    """Every table with its rows, and its claims as tested. Raises InvalidInput for a model that was not scored."""
    rows = {name: {row: _row(row, said, found) for row, said in table.rows.items()} for name, table in tables.items()}
    asked = [(name, claim) for name, table in tables.items() for claim in table.claims]
    pairs = [(rows[name][claim.model].model, rows[name][claim.below].model) for name, claim in asked]
    distinct = list(dict.fromkeys(pairs))
    tested = dict(zip(distinct, compare_all(found.scores, distinct), strict=True))
    shown = []
    for name, table in tables.items():
        claims = tuple(
            _claim(rows[name][claim.model], rows[name][claim.below], tested[pair])
            for (its, claim), pair in zip(asked, pairs, strict=True)
            if its == name
        )
        setting = (table.setting, found.settings[table.setting]) if table.setting else None
        its_rows, is_margins = tuple(rows[name].values()), table.kind == "margins"
        shown.append(ShownTable(table.title, table.source, its_rows, claims, is_margins, setting))
    return shown


def _row(name: str, said: Row, found: Evaluated) -> ShownRow:
    """The best of several models counts: that with the least average perplexity."""
    models = [model for model in models_of(name, found.figures) if model is not None]
    best, average = min(((model, estimate(found.scores, model)) for model in models), key=lambda pair: pair[1].value)
    return ShownRow(
        label=said.label or name,
        model=best,
        perplexity={domain: figure_over_seeds(found.scores, best, OF_DOMAIN + domain) for domain in found.domains},
        average=average,
        figures=found.figures[best],
        paper=dict(said.paper),
        chosen_of=len(models),
    )


def _claim(row: ShownRow, below: ShownRow, comparison: Comparison) -> ShownClaim:
    return ShownClaim(row.label, below.label, comparison, paper_difference(row.paper, below.paper))


def paper_difference(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Relative difference of the means over what is printed for both; of the printed averages if nothing else is."""
    columns: Sequence[str] = [name for name in one if name in other and name != AVERAGE]
    if not columns:
        columns = [AVERAGE] if AVERAGE in one and AVERAGE in other else []
    if not columns:
        return None
    return sum(one[name] for name in columns) / sum(other[name] for name in columns) - 1
