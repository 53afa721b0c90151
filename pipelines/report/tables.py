"""The report's tables. One definition gives both the CSV (the inputs' own digits) and the page (rounded)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report import formats
from pipelines.report.formats import clean, is_number
from pipelines.report.inputs import Json, ReportInputs, expert_labels, group, in_order


@dataclass(frozen=True)
class Column:
    """key: its name in the CSV. show: value -> text on the page; None for text as it is.

    best: mark the lowest value. csv_only: left out of the page. prose: words that may take several lines.
    """

    key: str
    title: str
    show: Callable[[Any], str] | None = None
    best: bool = False
    csv_only: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Cell:
    """order: of a number, what the page's script sorts by; empty for none."""

    text: str
    exact: str
    is_number: bool
    is_best: bool
    order: str = ""


@dataclass(frozen=True)
class Row:
    cells: tuple[Cell, ...]
    starts_group: bool


@dataclass(frozen=True)
class Table:
    """rows: values by column key; an absent key is an empty CSV field and a dash on the page."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Json, ...]

    @property
    def page_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if not column.csv_only)

    def csv(self) -> str:
        """RFC 4180 with `\\n`. Numbers in the shortest form that reads back as the same number."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([_csv_value(column.key) for column in self.columns])
        for row in self.rows:
            writer.writerow([_csv_value(row.get(column.key)) for column in self.columns])
        return out.getvalue()

    def shown(self) -> list[Row]:
        """What the page shows, row by row. The lowest finite value of a `best` column is marked, ties all."""
        lowest = {column.key: self._lowest(column.key) for column in self.columns if column.best}
        rows, previous = [], None
        for row in self.rows:
            kind = group(str(row.get("model", "")))
            cells = tuple(_cell(column, row.get(column.key), lowest.get(column.key)) for column in self.page_columns)
            rows.append(Row(cells, previous not in (None, kind)))
            previous = kind
        return rows

    def _lowest(self, key: str) -> float | None:
        return min((row[key] for row in self.rows if is_number(row.get(key))), default=None)


def perplexity_table(inputs: ReportInputs) -> Table:
    """The paper's Table 1, with what each model costs beside it (its Table 5)."""
    domains = [Column(f"perplexity.{name}", name, formats.perplexity, best=True) for name in inputs.domain_names]
    figures = [
        Column("average_perplexity", "average", formats.perplexity, best=True),
        Column("token_average_perplexity", "by token", formats.perplexity, csv_only=True),
        Column("forgetting", "forgetting", formats.gain, csv_only=True),
        Column("params_total", "params", formats.count),
        Column("params_active", "active", formats.count),
        Column("flops_per_token", "FLOPs/token", formats.flops),
        Column("train_tokens", "train tokens", formats.count),
        Column("train_flops", "train FLOPs", formats.flops, csv_only=True),
        Column("lineage_tokens", "tokens in all", formats.count, csv_only=True),
        Column("lineage_flops", "FLOPs in all", formats.flops),
    ]
    rows = [
        {"model": name} | _by_domain(model, "perplexity") | {c.key: model.get(c.key) for c in figures}
        for name, model in inputs.models.items()
    ]
    found = [column for column in figures if any(row.get(column.key) is not None for row in rows)]
    return Table("perplexity", (Column("model", "model"), *domains, *found), tuple(rows))


def bits_per_byte_table(inputs: ReportInputs) -> Table:
    domains = [Column(f"bits_per_byte.{name}", name, formats.bits, best=True) for name in inputs.domain_names]
    totals = [
        Column("token_average_perplexity", "perplexity by token", formats.perplexity, best=True),
        Column("forgetting", "forgetting", formats.gain),
    ]
    rows = [
        {"model": name} | _by_domain(model, "bits_per_byte") | {c.key: model.get(c.key) for c in totals}
        for name, model in inputs.models.items()
    ]
    found = [column for column in totals if any(row.get(column.key) is not None for row in rows)]
    return Table("bits_per_byte", (Column("model", "model"), *domains, *found), tuple(rows))


def costs_table(inputs: ReportInputs) -> Table:
    columns = (
        Column("stage", "stage"),
        Column("seconds", "time", formats.duration),
        Column("tokens", "tokens", formats.count),
        Column("tokens_per_s", "tokens/s", formats.count),
        Column("train_flops", "train FLOPs", formats.flops),
        Column("params", "params", formats.count),
    )
    rows = [dict(cost) | {"tokens_per_s": _ratio(cost.get("tokens"), cost.get("seconds"))} for cost in inputs.costs]
    return Table("costs", columns, tuple(rows))


def metrics_table(inputs: ReportInputs) -> Table:
    """What metrics of plug-ins say, a row for each metric and model."""
    of_domains = (Column(name, name, formats.short) for name in inputs.domain_names)
    columns = (Column("metric", "metric"), Column("model", "model"), *of_domains)
    models: Mapping[str, Json] = (inputs.metrics or {}).get("models", {})
    found = {model: models[model] for model in in_order(models, inputs.domain_names)}
    names = sorted({name for metrics in found.values() for name in metrics})
    rows = [
        {"metric": name, "model": model} | dict(metrics[name])
        for name in names
        for model, metrics in found.items()
        if name in metrics
    ]
    return Table("metrics", columns, tuple(rows))


def searches_table(inputs: ReportInputs) -> Table:
    """What each search found, a row for each key, and how its trials ended."""
    columns = (
        Column("search", "search"),
        Column("key", "key"),
        Column("value", "best", formats.setting),
        Column("space", "searched"),
        Column("loss", "held-out loss", formats.bits),
        Column("trials", "trials", formats.count),
        Column("stopped", "stopped", formats.count),
        Column("diverged", "diverged", formats.count),
    )
    rows = []
    for name, search in inputs.searches.items():
        best, tried = search["best"], search["trials"]["trials"]
        ended = Counter(trial["status"] for trial in tried)
        figures = {"trials": len(tried), "stopped": ended["stopped"], "diverged": ended["diverged"]}
        for key, value in best["values"].items():
            space = _space(search["trials"]["space"][key])
            rows.append({"search": name, "key": key, "value": value, "space": space, "loss": best["loss"]} | figures)
    return Table("searches", columns, tuple(rows))


def _space(space: Json) -> str:
    [(kind, values)] = space.items()
    if kind == "choice":
        return ", ".join(f"{value:g}" for value in values)
    return f"{values[0]:g} to {values[1]:g}{', logarithmic' if kind == 'log_uniform' else ''}"


def mixes_table(inputs: ReportInputs) -> Table:
    """How many tensors of each untrained mixture were stacked, averaged, copied or new, and its receipt."""
    counts = {name: _ops(inputs.mixes[name]) for name in in_order(inputs.mixes)}
    order = dict.fromkeys(("stack", "mean", "copy", "fresh", *(op for ops in counts.values() for op in ops)))
    columns = [
        *(Column(op, op, formats.count) for op in order if any(op in ops for ops in counts.values())),
        Column("max_abs_diff", "difference", formats.tiny),
    ]
    rows = [
        {"model": name} | ops | {"max_abs_diff": _difference(inputs.mixes[name])} for name, ops in counts.items() if ops
    ]
    found = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return Table("mixes", (Column("model", "mixture"), *found), tuple(rows))


def _ops(mix: Json) -> dict[str, int]:
    return dict(Counter(str(tensor["op"]) for tensor in mix.get("tensors", {}).values()))


def _difference(mix: Json) -> float | None:
    """The worst expert's difference from its dense model."""
    experts = mix.get("receipt", {}).get("experts", {}).values()
    return max((expert["max_abs_diff"] for expert in experts), default=None)


def data_tables(inputs: ReportInputs) -> Iterable[Table]:
    """The long tables that are only written as CSV: every figure behind the drawings."""
    yield _long("evaluation", ("model", "domain", "perplexity", "nll", "tokens", "bits_per_byte"), _scores(inputs))
    fields = ("step", "tokens", "loss", "lr", "grad_norm", "load_balancing_loss", "z_loss")
    histories = [(name, inputs.training[name]) for name in in_order(inputs.training, inputs.domain_names)]
    yield _long("training", ("model", *fields), [{"model": name} | dict(row) for name, h in histories for row in h])
    routers = ("model", "domain", "router", "layer", "expert", "mean_gate", "fraction", "entropy")
    yield _long("routing", routers, _routing_rows(inputs))
    ends = ("from_stage", "from_key", "role", "to_stage", "to_key")
    yield _long("lineage", ends, _edges(inputs))


def _long(name: str, keys: Sequence[str], rows: Iterable[Json]) -> Table:
    return Table(name, tuple(Column(key, key) for key in keys), tuple(rows))


def _by_domain(model: Json, figure: str) -> dict[str, Any]:
    return {f"{figure}.{name}": score.get(figure) for name, score in model.get("domains", {}).items()}


def _scores(inputs: ReportInputs) -> Iterable[Json]:
    for name, model in inputs.models.items():
        for domain in inputs.domain_names:
            if domain in model.get("domains", {}):
                yield {"model": name, "domain": domain} | dict(model["domains"][domain])


def _routing_rows(inputs: ReportInputs) -> Iterable[Json]:
    """One row per layer and expert; the entropy is that of the layer's router."""
    models: Mapping[str, Json] = (inputs.routing or {}).get("models", {})
    for model in in_order(models, inputs.domain_names):
        for domain, routers in models[model].get("domains", {}).items():
            for router, shown in routers.items():
                where = {"model": model, "domain": domain, "router": router}
                experts = expert_labels(models[model], router)
                yield from (where | row for row in _router_rows(experts, shown or {}))


def _router_rows(experts: Sequence[str], shown: Json) -> Iterable[dict[str, Any]]:
    """Of the layers that have experts."""
    routed = [(layer, gates) for layer, gates in enumerate(shown.get("mean_gate", ())) if gates is not None]
    for layer, gates in routed:
        entropy = shown["entropy"][layer] if "entropy" in shown else None
        for place, expert in enumerate(experts):
            fraction = shown["fraction"][layer][place] if "fraction" in shown else None
            yield {
                "layer": layer,
                "expert": expert,
                "mean_gate": gates[place],
                "fraction": fraction,
                "entropy": entropy,
            }


def _edges(inputs: ReportInputs) -> Iterable[Json]:
    for edge in (inputs.lineage or {}).get("edges", ()):
        start, end = edge["from"], edge["to"]
        yield {
            "from_stage": start["stage"],
            "from_key": start.get("key"),
            "role": edge.get("role"),
            "to_stage": end["stage"],
            "to_key": end.get("key"),
        }


def _cell(column: Column, value: Any, lowest: float | None) -> Cell:
    if column.show is None:
        return Cell(formats.MISSING if value is None else clean(value), "", False, False)
    is_best = column.best and is_number(value) and value == lowest
    return Cell(column.show(value), formats.exact(value), True, is_best, formats.order(value))


def _csv_value(value: Any) -> Any:
    """A field as written: text that a spreadsheet would run as a formula gets a leading apostrophe."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        text = clean(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return "" if value is None else value


def _ratio(amount: Any, seconds: Any) -> float | None:
    return amount / seconds if is_number(amount) and is_number(seconds) and amount and seconds > 0 else None
