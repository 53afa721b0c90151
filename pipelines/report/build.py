"""From the inputs to files: `report.html`, `tables/*.csv`, `figures/*.svg`. Equal inputs give equal bytes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.report import formats
from pipelines.report.comparisons import compare_models, with_intervals
from pipelines.report.curves import READING, training_panels
from pipelines.report.data_path import data_path_panels, data_path_table
from pipelines.report.findings import ensemble_words, find, ranking, routing_findings
from pipelines.report.formats import clean, file_name, is_number
from pipelines.report.heatmaps import HeatMap, heat_maps
from pipelines.report.inputs import ReportInputs, group
from pipelines.report.lineage_svg import lineage_panel
from pipelines.report.overlap import overlap_table
from pipelines.report.pages import render
from pipelines.report.routed import routed
from pipelines.report.step0 import DISTANCE, StepZero, steps_zero, summary_table, warnings_of
from pipelines.report.step0 import data_tables as step0_tables
from pipelines.report.svg import Panel, row_of
from pipelines.report.tables import (
    bits_per_byte_table,
    costs_table,
    data_tables,
    metrics_table,
    mixes_table,
    perplexity_table,
    searches_table,
)
from pipelines.report.tasks_table import long_table, task_tables, tasks_words


def build_report(inputs: ReportInputs, out: Path) -> Mapping[str, float]:
    """Write the report into the folder `out` (made if absent). Returns the report's own metrics."""
    compared = compare_models(inputs)
    shown = {
        "perplexity": with_intervals(perplexity_table(inputs), compared),
        "comparisons": compared.table,
        "bits_per_byte": bits_per_byte_table(inputs),
        "costs": costs_table(inputs),
        "mixes": mixes_table(inputs),
        "metrics": metrics_table(inputs),
        "searches": searches_table(inputs),
        "step0_summary": summary_table(inputs),
        "overlap": overlap_table(inputs),
    }
    curves, maps, lineage = training_panels(inputs), heat_maps(inputs), lineage_panel(inputs.lineage)
    starts = steps_zero(inputs)
    experts, paths = routed(inputs), data_path_panels(inputs)
    for table in (
        *shown.values(),
        *data_tables(inputs),
        *step0_tables(inputs),
        *experts.tables,
        long_table(inputs),
        data_path_table(inputs),
    ):
        if table.rows:
            _write(out / "tables" / f"{table.name}.csv", table.csv())
    others = [
        *compared.panels.items(),
        *experts.figures(),
        *((f"data-{file_name(model)}", panel) for model, panel in paths.items()),
    ]
    for name, panel in _figures(curves, maps, starts, others, lineage).items():
        _write(out / "figures" / f"{name}.svg", panel.standalone())
    html = render(
        "report.html.j2",
        name=clean(inputs.name),
        domains=[clean(domain) for domain in inputs.domain_names],
        findings=find(inputs, compared.caveats),
        compared=compared,
        tables=shown,
        n_scored=_n_scored(inputs),
        seeds=inputs.seeds,
        scoring=inputs.scoring,
        overlap=inputs.overlap,
        curves=curves,
        reading=READING,
        data_paths=list(paths.values()),
        maps=maps,
        starts=starts,
        step0_warnings=warnings_of(starts),
        ensemble=ensemble_words(inputs),
        routing_findings=routing_findings(inputs),
        experts=experts,
        task_tables=task_tables(inputs),
        tasks_words=tasks_words(inputs),
        lineage=lineage,
        costs=_costs(inputs),
        reproduce=_reproduce(inputs),
    )
    _write(out / "report.html", html)
    return _metrics(inputs)


def _figures(
    curves: Mapping[str, Panel],
    maps: Sequence[HeatMap],
    starts: Sequence[StepZero],
    others: Sequence[tuple[str, Panel]],
    lineage: Panel | None,
) -> dict[str, Panel]:
    """File name without suffix -> drawing. Names that fall together once made safe are numbered."""
    named = [(f"routing-{file_name(item.model)}-{item.router}", item.figure()) for item in maps]
    for start in starts:
        if start.distance:
            title = f"{start.model}: {DISTANCE}"
            named.append((f"step0-{file_name(start.model)}", row_of([start.distance], title=title)))
    figures = dict(curves)
    for base, panel in [*named, *others]:
        wanted, number = base, 1
        while wanted in figures:
            number += 1
            wanted = f"{base}-{number}"
        figures[wanted] = panel
    return figures | ({"lineage": lineage} if lineage else {})


def _n_scored(inputs: ReportInputs) -> dict[str, str]:
    """Domain -> tokens scored, for domains in which every model was scored on as many."""
    found = {}
    for domain in inputs.domain_names:
        counts = {model.get("domains", {}).get(domain, {}).get("tokens") for model in inputs.models.values()}
        if len(counts) == 1 and is_number(count := counts.pop()):
            found[clean(domain)] = formats.count(count)
    return found


def _costs(inputs: ReportInputs) -> dict[str, Any]:
    """Totals, and each stage's share of the time in percent (for the bars)."""
    seconds = [cost["seconds"] if is_number(cost.get("seconds")) else 0.0 for cost in inputs.costs]
    flops = [cost["train_flops"] for cost in inputs.costs if is_number(cost.get("train_flops"))]
    longest = max(seconds, default=0.0)
    return {
        "seconds": formats.duration(sum(seconds)),
        "flops": formats.flops(sum(flops)) if flops else "",
        "bars": [f"{100 * s / longest:.1f}" if longest > 0 else "0" for s in seconds],
    }


def _reproduce(inputs: ReportInputs) -> dict[str, Any]:
    """The commands, and what code and packages made the artifacts of the lineage."""
    nodes = (inputs.lineage or {}).get("nodes", ())
    commits: dict[str, bool] = {}
    packages: dict[str, set[str]] = {}
    for node in nodes:
        if node.get("git_commit"):
            commit = clean(node["git_commit"])
            commits[commit] = commits.get(commit, False) or bool(node.get("dirty"))
        for package, version in (node.get("packages") or {}).items():
            packages.setdefault(clean(package), set()).add(clean(version))
    best = next(iter(ranking(inputs)), None)
    if best and group(best) == "ensemble":  # no stage made it: it is in the evaluation
        best = "evaluate"
    key = next((str(node.get("key")) for node in nodes if node["stage"] == best), "")
    reference = shlex.quote(clean(f"{best}@{key[:12]}" if key else best)) if best else ""
    return {
        "recipe": shlex.quote(clean(inputs.name)),
        "reference": reference,
        "commits": commits,
        "packages": {name: sorted(versions) for name, versions in sorted(packages.items())},
    }


def _metrics(inputs: ReportInputs) -> dict[str, float]:
    ranked = ranking(inputs)
    metrics = {"n_models": float(len(inputs.models)), "n_domains": float(len(inputs.domain_names))}
    if ranked:
        metrics["best_average_perplexity"] = float(inputs.models[ranked[0]]["average_perplexity"])
    return metrics


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
