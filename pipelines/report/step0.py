"""What each mixture was at step 0, before any training: `receipt.step0` of its `mix.json`, measured as it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipelines.report import formats
from pipelines.report.findings import code, listed
from pipelines.report.formats import clean, is_number
from pipelines.report.heatmaps import LEFT, cell, heads, row_name, size
from pipelines.report.inputs import Json, ReportInputs, in_order
from pipelines.report.svg import Panel, element
from pipelines.report.tables import Column, Table

DISTANCE = "distance of the residual stream from the domain's own expert"

LAYER_COLUMNS = (
    Column("attention_gate_sum", "attention gate sum", formats.bits),
    Column("attention_accuracy", "attention accuracy", formats.percent),
    Column("attention_condition", "attention condition", formats.short),
    Column("ffn_gate_sum", "FFN gate sum", formats.bits, csv_only=True),
    Column("ffn_shrink", "FFN shrink", formats.bits),
    Column("ffn_accuracy", "FFN accuracy", formats.percent),
    Column("ffn_condition", "FFN condition", formats.short),
)


@dataclass(frozen=True)
class StepZero:
    """One mixture's. perplexity: of the dense models and the mixture; layers: a row each; distance: None if unknown."""

    model: str
    perplexity: Table
    layers: Table
    distance: Panel | None
    warnings: tuple[str, ...]


def steps_zero(inputs: ReportInputs) -> list[StepZero]:
    return [_step_zero(model, report, inputs.domain_names) for model, report in _reports(inputs).items()]


def warnings_of(starts: Sequence[StepZero]) -> list[Markup]:
    """Each warning once, with the mixtures that have it."""
    models: dict[str, list[str]] = {}
    for start in starts:
        for warning in start.warnings:
            models.setdefault(f"{clean(warning).rstrip('.')}.", []).append(start.model)
    return [Markup("{}: {}").format(listed([code(name) for name in names]), text) for text, names in models.items()]


def summary_table(inputs: ReportInputs) -> Table:
    """A row per mixture: its average perplexity beside its seed's, and the means over its layers."""
    columns: tuple[Column, ...] = (
        Column("model", "mixture"),
        Column("average", "average perplexity", formats.perplexity, best=True),
        Column("seed", "of the seed", formats.perplexity),
        Column("attention_accuracy", "attention accuracy", formats.percent),
        Column("ffn_accuracy", "FFN accuracy", formats.percent),
        Column("ffn_shrink", "FFN shrink", formats.bits),
        Column("distance", "distance after the last layer", formats.short),
    )
    rows = tuple(_summary(*item) for item in _reports(inputs).items())
    if any(row["shared_accuracy"] is not None for row in rows):
        columns += (Column("shared_accuracy", "accuracy of the shared router", formats.percent),)
    return Table("step0_summary", columns, rows)


def data_tables(inputs: ReportInputs) -> Iterable[Table]:
    """All figures of all mixtures, as CSV."""
    found = steps_zero(inputs)
    for name, first in (("step0", "layer"), ("step0_perplexity", "of")):
        tables = {item.model: item.layers if name == "step0" else item.perplexity for item in found}
        columns = {column.key: column for table in tables.values() for column in table.columns}
        rows = [{"model": model} | dict(row) for model, table in tables.items() for row in table.rows]
        others = [column for key, column in columns.items() if key != first]
        yield Table(name, (Column("model", "model"), Column(first, first), *others), tuple(rows))


def _reports(inputs: ReportInputs) -> dict[str, Json]:
    reports = {model: inputs.mixes[model].get("receipt", {}).get("step0") for model in in_order(inputs.mixes)}
    return {model: report for model, report in reports.items() if report}


def _step_zero(model: str, report: Json, order: Sequence[str]) -> StepZero:
    domains = _domains(report, order)
    layers = [_layer(layer, found, domains) for layer, found in enumerate(report.get("layers", ()))]
    columns = [*LAYER_COLUMNS, *(Column(f"distance.{d}", d, formats.short, csv_only=True) for d in domains)]
    known = [column for column in columns if any(row.get(column.key) is not None for row in layers)]
    return StepZero(
        model,
        _perplexity(report, domains),
        Table("step0", (Column("layer", "layer"), *known), tuple(layers)),
        _panel(model, layers, domains),
        tuple(report.get("warnings", ())),
    )


def _domains(report: Json, order: Sequence[str]) -> list[str]:
    found = dict.fromkeys(report.get("tokens_per_domain", ()))
    for layer in report.get("layers", ()):
        found.update(dict.fromkeys(layer.get("distance") or ()))
    return [domain for domain in order if domain in found] + [domain for domain in found if domain not in order]


def _layer(layer: int, found: Json, domains: Sequence[str]) -> dict[str, Any]:
    distance: Mapping[str, Any] = found.get("distance") or {}
    figures = {column.key: found.get(column.key) for column in LAYER_COLUMNS}
    return {"layer": str(layer)} | figures | {f"distance.{domain}": distance.get(domain) for domain in domains}


def _perplexity(report: Json, domains: Sequence[str]) -> Table:
    """The dense models in stacking order, then the mixture."""
    figures = [Column(f"perplexity.{domain}", domain, formats.perplexity, best=True) for domain in domains]
    rows = []
    for name, found in report.get("perplexity", {}).items():
        shown = f"{name} (seed)" if name == report.get("seed") else name
        scores = {f"perplexity.{domain}": found.get(domain) for domain in domains}
        rows.append({"of": shown} | scores | {"average": found.get("average")})
    average = Column("average", "average", formats.perplexity, best=True)
    return Table("step0_perplexity", (Column("of", "model"), *figures, average), tuple(rows))


def _panel(model: str, layers: Sequence[Json], domains: Sequence[str]) -> Panel | None:
    """A row per layer, a column per domain; the shade is full from 1 on, where it is as far as the vector is long."""
    shown = [domain for domain in domains if any(is_number(row[f"distance.{domain}"]) for row in layers)]
    if not shown:
        return None
    children = [element("text", "distance", class_="title", x=LEFT, y=14), *heads(shown)]
    for place, row in enumerate(layers):
        children.append(row_name(place, row["layer"]))
        for column, domain in enumerate(shown):
            value = row[f"distance.{domain}"]
            told = f"{domain}, layer {row['layer']}: {value}"
            children += cell(place, column, value, formats.short(value), told)
    width, height = size(len(layers), len(shown))
    last = ", ".join(f"{domain} {formats.short(layers[-1][f'distance.{domain}'])}" for domain in shown)
    return Panel(width, height, f"{model}: {DISTANCE}. After the last layer: {last}.", tuple(children))


def _summary(model: str, report: Json) -> Json:
    perplexity, layers = report.get("perplexity", {}), report.get("layers", ())
    last = (layers[-1].get("distance") or {}) if layers else {}
    means = {key: _mean(layer.get(key) for layer in layers) for key in _MEANS}
    return {
        "model": model,
        "average": perplexity.get("mixture", {}).get("average"),
        "seed": perplexity.get(report.get("seed"), {}).get("average"),
        "distance": _mean(last.values()),
        "shared_accuracy": (report.get("shared") or {}).get("accuracy"),
        **means,
    }


_MEANS = ("attention_accuracy", "ffn_accuracy", "ffn_shrink")


def _mean(values: Iterable[Any]) -> float | None:
    finite = [value for value in values if is_number(value)]
    return sum(finite) / len(finite) if finite else None
