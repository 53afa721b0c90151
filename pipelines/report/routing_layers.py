"""What a mixture's routers know, layer by layer: of the domain, of each other, and how they share out the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipelines.report import formats
from pipelines.report.findings import code
from pipelines.report.formats import clean, is_number
from pipelines.report.heatmaps import LEFT, cell, column_name, heads, row_name, size
from pipelines.report.inputs import Json, ReportInputs, expert_labels, in_order
from pipelines.report.svg import CHAR, Panel, element, equally_wide, row_of
from pipelines.report.tables import Column, Table

BRANCHES = {"attention": "attention router", "ffn": "FFN router"}
FIGURES = (
    ("mutual_information_frac", "told"),
    ("soft_mutual_information_frac", "soft"),
    ("own_domain_frac", "own"),
    ("purity", "purity"),
    ("entropy", "entropy"),
)
"""Figure of a router -> the head of its column; each from 0 to 1."""
CAPTION = "what its routers tell of the domain, and each expert's load"


@dataclass(frozen=True)
class Layers:
    """One mixture's maps: figures and loads of each router, agreement of the two."""

    model: str
    panels: tuple[Panel, ...]
    agrees: bool

    def figure(self) -> Panel:
        return row_of(self.panels, title=f"{self.model}, {CAPTION}")


def routing_layers(inputs: ReportInputs) -> list[Layers]:
    """Every mixture whose routing was sampled, in the order of the models."""
    found = []
    for model, summary in _summaries(inputs).items():
        panels: list[Panel] = []
        for branch, name in BRANCHES.items():
            layers = {layer: row for layer, row in enumerate(summary.get(branch) or ()) if row}
            if layers:
                panels += [_figures(model, name, layers), _loads(model, name, expert_labels(summary, branch), layers)]
        agreement = {layer: row for layer, row in enumerate(summary.get("agreement") or ()) if row}
        if agreement:
            panels.append(_agreement(model, agreement))
        if panels:
            found.append(Layers(model, equally_wide(panels), bool(agreement)))
    return found


def layer_findings(inputs: ReportInputs) -> list[Markup]:
    """Per mixture: how much its routers know of the domain, and how often they agree."""
    found = []
    for model, summary in _summaries(inputs).items():
        told = {name: _mean(summary.get(branch), "mutual_information_frac") for branch, name in BRANCHES.items()}
        parts = [f"{100 * value:.0f}% ({name})" for name, value in told.items() if value is not None]
        if not parts:
            continue
        text = f"the first choice tells {' and '.join(parts)} of what it could of a token's domain (mean over layers)"
        alike = _mean(summary.get("agreement"), "frac")
        if alike is not None:
            text += f"; the two choose the same expert for {100 * alike:.0f}% of tokens"
        found.append(Markup("{}: {}.").format(code(model), text))
    return found


def collapse_findings(inputs: ReportInputs) -> list[Markup]:
    """Every alarm of a training, at most six of each."""
    found = []
    for model, alarms in inputs.collapses.items():
        shown = [_alarm(alarm) for alarm in alarms[:6]]
        more = f" (and {len(alarms) - 6} more)" if len(alarms) > 6 else ""
        text = Markup("{}: in training, experts had almost no work for long: {}{}.")
        found.append(text.format(code(model), ", ".join(shown), more))
    return found


def _alarm(alarm: Json) -> str:
    until = "to the end" if alarm["until"] is None else f"to step {alarm['until']}"
    expert = f"{clean(alarm['branch'])} {clean(alarm['expert'])} in layer {alarm['layer']}"
    return f"{expert} from step {alarm['since']} {until}"


def layers_table(inputs: ReportInputs) -> Table:
    """A row for each router, with the agreement of the layer's two."""
    keys = ("mutual_information", "soft_mutual_information", *(key for key, _ in FIGURES))
    columns = ("model", "branch", "layer", *keys, "load_max", "load_min", "load_variation", "agreement", "kappa")
    rows = []
    for model, summary in _summaries(inputs).items():
        for branch in BRANCHES:
            for layer, row in enumerate(summary.get(branch) or ()):
                if row:
                    alike = (summary.get("agreement") or {layer: None})[layer] or {}
                    where = {"model": model, "branch": branch, "layer": layer}
                    rows.append(where | dict(row) | {"agreement": alike.get("frac"), "kappa": alike.get("kappa")})
    return Table("routing_layers", tuple(Column(key, key) for key in columns), tuple(rows))


def _summaries(inputs: ReportInputs) -> dict[str, Json]:
    found: Mapping[str, Json] = ((inputs.routed or {}).get("summary") or {}).get("models", {})
    return {model: found[model] for model in in_order(found, inputs.domain_names)}


def _figures(model: str, router: str, layers: Mapping[int, Json]) -> Panel:
    shown = [(key, head) for key, head in FIGURES if any(is_number(row.get(key)) for row in layers.values())]
    values = {layer: [row.get(key) for key, _ in shown] for layer, row in layers.items()}
    means = ", ".join(f"{head} {formats.short(_mean(list(layers.values()), key))}" for key, head in shown)
    return _map(router, [head for _, head in shown], values, f"{model}, {router}. Mean over layers: {means}.")


def _loads(model: str, router: str, experts: Sequence[str], layers: Mapping[int, Json]) -> Panel:
    values = {layer: row["load"] for layer, row in layers.items()}
    low, high = (pick(value for row in values.values() for value in row) for pick in (min, max))
    words = f"{model}, load of each expert under the {router}: from {100 * low:.0f}% to {100 * high:.0f}%."
    return _map(f"load, {router}", [column_name(expert) for expert in experts], values, words)


def _agreement(model: str, layers: Mapping[int, Json]) -> Panel:
    values = {layer: [row["frac"], row["kappa"]] for layer, row in layers.items()}
    mean = formats.percent(_mean(list(layers.values()), "frac"))
    return _map("agreement", ["share", "kappa"], values, f"{model}, the two routers agree on {mean} of tokens.")


def _map(title: str, names: Sequence[str], values: Mapping[int, Sequence[Any]], words: str) -> Panel:
    """A row for each layer, a column for each figure from 0 to 1, in percent."""
    children = [element("text", title, class_="title", x=LEFT, y=14), *heads(names)]
    for place, (layer, row) in enumerate(values.items()):
        children.append(row_name(place, str(layer)))
        for column, value in enumerate(row):
            text = f"{100 * value:.0f}".replace("-", formats.MINUS) if is_number(value) else formats.MISSING
            children += cell(place, column, value, text, f"layer {layer}, {names[column]}: {value}")
    width, height = size(len(values), len(names))
    return Panel(max(width, LEFT + CHAR * len(title)), height, words, tuple(children))


def _mean(rows: Iterable[Any] | None, key: str) -> float | None:
    finite = [row[key] for row in rows or () if row and is_number(row.get(key))]
    return sum(finite) / len(finite) if finite else None
