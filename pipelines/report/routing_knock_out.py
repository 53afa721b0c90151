"""What each expert is for: how much worse each domain gets with that expert masked. A map per branch, and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log1p
from typing import Any

from markupsafe import Markup

from pipelines.report.findings import code, listed
from pipelines.report.formats import MINUS, MISSING, clean, is_number
from pipelines.report.heatmaps import LEFT, cell, heads, own, row_name, size
from pipelines.report.inputs import Json, ReportInputs, in_order, is_of
from pipelines.report.svg import CHAR, Panel, element, equally_wide, row_of, shortened
from pipelines.report.tables import Column, Table

SECTIONS = {
    "attention": "attention expert masked",
    "ffn": "FFN expert masked",
    "both": "both branches masked",
}
"""Part of `knock_out.json` -> what a panel of it shows."""
CAPTION = "change of perplexity with one expert masked, in percent"
FULL = 1.0
"""The shade is full from this change on, +100%, or from the largest one of the mixture if that is more."""
SLIGHT = 0.01
"""A domain that gets less than this much worse is not called hurt."""


@dataclass(frozen=True)
class KnockOut:
    """One mixture's maps. intact: the perplexities that the changes are from."""

    model: str
    panels: tuple[Panel, ...]
    intact: str

    def figure(self) -> Panel:
        return row_of(self.panels, title=f"{self.model}, {CAPTION}")


def knock_outs(inputs: ReportInputs) -> list[KnockOut]:
    """Every mixture whose experts were masked, in the order of the models."""
    found = []
    for model, matrix in _matrices(inputs).items():
        domains = _domains(matrix, inputs.domain_names)
        largest = max([FULL, *(change for _, _, _, change in _changes(matrix) if is_number(change))])
        panels = tuple(
            _panel(f"{model}, {title}", title, matrix[section], domains, largest)
            for section, title in SECTIONS.items()
            if matrix.get(section)
        )
        if panels:
            intact = ", ".join(f"{clean(d)} {matrix['intact'][d]['perplexity']:.2f}" for d in domains)
            found.append(KnockOut(model, equally_wide(panels), intact))
    return found


def knock_out_findings(inputs: ReportInputs) -> list[Markup]:
    """Per mixture and branch: whom each expert's absence hurts most."""
    found = []
    for model, matrix in _matrices(inputs).items():
        for section, part in (("attention", "attention expert"), ("ffn", "FFN expert")):
            if matrix.get(section):
                found.append(Markup("{}: {}.").format(code(model), _hurts(matrix[section], part)))
    return found


def _hurts(rows: Json, part: str) -> Markup:
    """`masking law's FFN expert hurts law most: +35%; general's hurts code (+3%) more than general (+1%)`."""
    first, clauses = f"'s {part}", []
    for expert, row in rows.items():
        changes = {domain: cell["change"] for domain, cell in row.items() if is_number(cell["change"])}
        worst = max(changes, key=changes.__getitem__, default=None)
        of = Markup("{}{}").format(clean(expert), first)
        if worst is None or changes[worst] < SLIGHT:
            clauses.append(Markup("{} hurts no domain by a percent").format(of))
        else:
            mine = next((domain for domain in changes if is_of(expert, domain)), None)
            text = Markup("{} hurts {} most: {}").format(of, clean(worst), change(changes[worst]))
            also = Markup(" ({} by {})").format(clean(mine), change(changes[mine])) if mine not in (None, worst) else ""
            clauses.append(text + also)
        first = "'s"
    return Markup("masking ") + listed(clauses)


def knock_out_table(inputs: ReportInputs) -> Table:
    """Every cell of every matrix."""
    keys = ("model", "branch", "expert", "domain", "perplexity", "intact_perplexity", "change")
    rows = []
    for model, matrix in _matrices(inputs).items():
        for section in SECTIONS:
            for expert, row in (matrix.get(section) or {}).items():
                for domain in _domains(matrix, inputs.domain_names):
                    where = {"model": model, "branch": section, "expert": expert, "domain": domain}
                    intact = matrix["intact"][domain]["perplexity"]
                    rows.append(where | dict(row[domain]) | {"intact_perplexity": intact})
    return Table("knock_out", tuple(Column(key, key) for key in keys), tuple(rows))


def change(value: Any) -> str:
    """`+35%`, `\u22122%`, and from tenfold on `\u00d712`."""
    if not is_number(value):
        return MISSING
    if value >= 9.5:
        return f"\u00d7{value + 1:.3g}" if value < 1e6 else f"\u00d7{value + 1:.0e}"
    return {"+0%": "0%", "-0%": "0%"}.get(text := f"{100 * value:+.0f}%", text).replace("-", MINUS)


def _matrices(inputs: ReportInputs) -> dict[str, Json]:
    found: Mapping[str, Json] = ((inputs.routed or {}).get("knock_out") or {}).get("models", {})
    return {model: _in_stacking_order(found[model]) for model in in_order(found, inputs.domain_names)}


def _in_stacking_order(matrix: Json) -> Json:
    """The rows as the experts are stacked: a file sorts them by name."""
    rows = {section: matrix[section] for section in SECTIONS if matrix.get(section)}
    order = {section: [label for label in matrix["experts"][section] if label in rows[section]] for section in rows}
    return dict(matrix) | {section: {label: rows[section][label] for label in order[section]} for section in rows}


def _domains(matrix: Json, order: Sequence[str]) -> list[str]:
    return [domain for domain in order if domain in matrix["intact"]] + [d for d in matrix["intact"] if d not in order]


def _changes(matrix: Json) -> Iterator[tuple[str, str, str, Any]]:
    for section in SECTIONS:
        for expert, row in (matrix.get(section) or {}).items():
            yield from ((section, expert, domain, cell["change"]) for domain, cell in row.items())


def _panel(what: str, title: str, rows: Json, domains: Sequence[str], largest: float) -> Panel:
    """A row for each masked expert, a column for each domain, the expert's own outlined."""
    wide = min(110.0, max(CHAR * len(expert) for expert in rows) + 10)
    width, height = size(len(rows), len(domains))
    drawn = [*heads(domains)]
    for place, (expert, row) in enumerate(rows.items()):
        drawn.append(row_name(place, shortened(expert, wide)))
        for column, domain in enumerate(domains):
            value = row[domain]["change"]
            told = f"{expert} masked, {domain}: {change(value)}, perplexity {row[domain]['perplexity']:.4g}"
            shade = log1p(max(0.0, value)) / log1p(largest) if is_number(value) else None
            drawn += cell(place, column, shade, change(value), told)
            if is_of(expert, domain):
                drawn.append(own(place, column))
    shift = wide - LEFT + 8
    heading = element("text", shortened(title, width + shift), class_="title", x=0, y=14)
    body = element("g", *drawn, transform=f"translate({shift:.1f} 0)")
    return Panel(max(width + shift, CHAR * len(title)), height, f"{what}. {_in_words(rows)}", (heading, body))


def _in_words(rows: Json) -> str:
    """The worst domain of each row, for those who do not see the drawing."""
    parts = []
    for expert, row in rows.items():
        domain = max(row, key=lambda domain: row[domain]["change"])
        parts.append(f"{expert}: {domain} {change(row[domain]['change'])}")
    return "Worst for each: " + ", ".join(parts) + "."
