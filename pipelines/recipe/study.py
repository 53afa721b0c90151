"""The section `study`: which rows a table of results has, what a paper prints for them, and which claims are tested.

    study:
      table5:
        title: Equal parameters and FLOPs
        source: BAM, Table 5
        rows:
          bam: {label: BAM, paper: {general: 24.06, code: 3.44, law: 6.04, math: 5.31}}
          btx_top3: {label: BTX top-3 of 6, paper: {general: 24.13, code: 3.55, law: 6.23, math: 5.48}}
        claims: [{model: bam, below: btx_top3}]

A row is a variant, a stage, or a list of variants of which the best counts: `btx_top3|btx_top3_renorm`. None of it
enters a key: it says how results are shown, not what they are.

With `kind: margins` the claims are shown as a table, a column for each row that another is claimed to be below. Such
tables of several recipes under one title become one, so that `setting`, a key of the recipe, tells its rows apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from bam_core.errors import Problem, nearest
from pipelines.recipe.base import Named, Part, maybe
from pipelines.recipe.document import join
from pipelines.recipe.promotion import model_of
from pipelines.recipe.values import Number, Text

if TYPE_CHECKING:
    from pipelines.recipe.schema import Recipe

AVERAGE = "average"
"""Beside the domains' names in `paper`: what the paper prints as the average."""
BEST_OF = "|"


class Row(Part):
    """label: as shown. paper: domain -> the perplexity that the paper prints."""

    label: Text | None = None
    paper: Named[Number] = Field(default={})


class Claim(Part):
    """The average perplexity of `model` is below that of `below`."""

    model: Text
    below: Text


class StudyTable(Part):
    """source: the table of a paper of whose shape this one is. rows: in the order in which they are shown.

    setting: a key of the recipe, whose value is shown beside margins.
    """

    title: Text
    kind: Literal["table", "margins"] = "table"
    setting: Text | None = None
    source: Text | None = None
    rows: Named[Row]
    claims: list[Claim] = Field(default=[])


def models_of(name: str, scored: Collection[str]) -> list[str | None]:
    """The stages that a row's name stands for, None for a part of it that is not known."""
    return [model_of(part.strip(), scored) for part in name.split(BEST_OF)]


def value_at(recipe: Recipe, key: str) -> Any:
    """What a recipe says at `phases.expert.tokens`. Raises KeyError for what is no key of it."""
    found: Any = recipe.model_dump()
    for part in key.split("."):
        if not isinstance(found, dict):
            raise KeyError(key)
        found = found[part]
    return found


def study_problems(recipe: Recipe, scored: Collection[str]) -> Iterator[Problem]:
    """Everything wrong with `study` of a recipe that may have holes. scored: the models that are evaluated."""
    for name, part in (recipe.study or {}).items():
        here = join("study", name)
        if (table := maybe(part)) is None:
            continue
        if not table.rows:
            yield Problem(f"{here}.rows", {}, "must have at least one row, a variant or a stage")
        yield from _kind(recipe, table, here)
        for row, said in (table.rows or {}).items():
            yield from _known(recipe, row, scored, f"{here}.rows")
            yield from _paper(recipe, said, join(f"{here}.rows", row))
        for number, claim in enumerate(table.claims or ()):
            for side in ("model", "below"):
                if getattr(claim, side, None) is not None:
                    yield from _row_of(table, getattr(claim, side), f"{here}.claims.{number}.{side}")


def _kind(recipe: Recipe, table: StudyTable, here: str) -> Iterator[Problem]:
    if table.kind == "margins" and not table.claims:
        yield Problem(f"{here}.claims", [], "must have at least one claim: margins are those of the claims")
    if table.setting is None:
        return
    if table.kind != "margins":
        yield Problem(f"{here}.setting", table.setting, "is for tables with `kind: margins`")
    try:
        value_at(recipe, table.setting)
    except KeyError:
        reason = "is no key of this recipe, for example phases.expert.tokens"
        yield Problem(f"{here}.setting", table.setting, reason)


def _known(recipe: Recipe, row: str, scored: Collection[str], here: str) -> Iterator[Problem]:
    if maybe(recipe.variants) is None or maybe(recipe.domains) is None:
        return
    for part, model in zip(row.split(BEST_OF), models_of(row, scored), strict=True):
        if model is None:
            known = [*recipe.variants, *scored]
            yield Problem(here, part, "is neither a variant nor a model that is evaluated", nearest(part, known))


def _row_of(table: StudyTable, name: str, here: str) -> Iterator[Problem]:
    if name not in (table.rows or {}):
        yield Problem(here, name, "is no row of this table", nearest(name, table.rows or {}))


def _paper(recipe: Recipe, row: Row | None, here: str) -> Iterator[Problem]:
    known = [*(recipe.domains or {}), AVERAGE]
    for column, value in (row.paper if row is not None and row.paper else {}).items():
        if recipe.domains is not None and column not in known:
            yield Problem(f"{here}.paper", column, "is neither a domain nor `average`", nearest(column, known))
        if value is not None and not (isfinite(value) and value > 0):
            yield Problem(join(f"{here}.paper", column), value, "must be a perplexity, above 0")
