"""Claims as tables of margins: a row for each setting, a column for each model that another is claimed to be below.

Tables of one title become one, whichever recipes they are of: how a margin depends on what the recipes differ in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.report import formats
from pipelines.report.formats import is_number
from pipelines.results.markdown import grid, margin
from pipelines.results.tables import Evaluated, ShownTable

Shown = Sequence[tuple[Evaluated, Sequence[ShownTable]]]

HOW = """\
The average perplexity of each model over that of the column's, less 1, with its interval, corrected for all claims of
the recipe; bold where that is clear of zero.
"""


def heading_of(table: ShownTable) -> str:
    source = f" ({table.source})" if table.source else ""
    return formats.clean(table.title + source).replace("\n", " ")


def margins(shown: Shown) -> Iterator[str]:
    tables = [(found, table) for found, of_recipe in shown for table in of_recipe if table.is_margins]
    for title in dict.fromkeys(table.title for _, table in tables):
        yield _section([(found, table) for found, table in tables if table.title == title])


def _section(parts: Sequence[tuple[Evaluated, ShownTable]]) -> str:
    columns = list(dict.fromkeys(claim.below for _, table in parts for claim in table.claims))
    setting = next((table.setting[0] for _, table in parts if table.setting), None)
    rows = [row for found, table in parts for row in _rows(found, table, columns, has_setting=setting is not None)]
    first = ["model", *([f"`{setting}`"] if setting else [])]
    head = [*first, *(f"against {column}" for column in columns), "recipe, seeds"]
    shown = grid(head, [*rows, *_paper(parts, columns, first)])
    return "\n".join([f"## {heading_of(parts[0][1])}\n", HOW, shown])


def _rows(found: Evaluated, table: ShownTable, columns: Sequence[str], *, has_setting: bool) -> Iterator[list[str]]:
    made = f"`{found.recipe}`, {len(found.seeds)}"
    for model in dict.fromkeys(claim.model for claim in table.claims):
        cells = {claim.below: margin(claim.comparison) for claim in table.claims if claim.model == model}
        setting = [_value(table)] if has_setting else []
        yield [model, *setting, *(cells.get(column, "") for column in columns), made]


def _value(table: ShownTable) -> str:
    value = table.setting[1] if table.setting else ""
    return formats.count(value) if is_number(value) else str(value)


def _paper(
    parts: Sequence[tuple[Evaluated, ShownTable]], columns: Sequence[str], first: Sequence[str]
) -> Iterator[list[str]]:
    """What the paper has for each column, where it prints it."""
    printed = {c.below: c.paper for _, table in parts for c in table.claims if c.paper is not None}
    if printed:
        cells = [formats.gain(printed[column]) if column in printed else "" for column in columns]
        yield ["the paper", *[""] * (len(first) - 1), *cells, ""]
