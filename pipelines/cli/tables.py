"""A plan, its models and what they reached, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from bam_core.graph.key import key12
from pipelines.cli import text

if TYPE_CHECKING:
    from pipelines.wiring import Plan


def plan_text(made: Plan) -> str:
    """The stages with action and reason, the models with what they cost, and warnings about the recipe."""
    rows = [
        [decision.stage, key12(decision.key), text.styled(decision.action), decision.reason]
        for decision in made.decisions
    ]
    actions = [decision.action for decision in made.decisions]
    counts = ", ".join(f"{actions.count(name)} {name}" for name in dict.fromkeys(actions))
    parts = [text.table(["stage", "key", "action", "reason"], rows), f"{len(rows)} stages: {counts}"]
    if made.models:
        parts.insert(1, _models_text(made.models) + _seeds_text(made.recipe.get("seeds")))
    if papers := {name: model["paper"] for name, model in made.models.items() if "paper" in model}:
        parts.insert(2, _paper_text(papers))
    if made.searches:
        costs = [
            [name, *(_figure(column, cost[column]) for column in _SEARCH_COLUMNS)]
            for name, cost in made.searches.items()
        ]
        headers = ["search, at most", *_SEARCH_COLUMNS.values()]
        parts.insert(2, text.table(headers, costs, right=range(1, len(headers))))
    if made.data:
        parts.append(_data_text(made.data))
    if made.plugins:
        parts.append("\n".join(f"plug-in: {plugin}" for plugin in made.plugins))
    if made.warnings:
        parts.append("\n".join(_warning(warning) for warning in made.warnings))
    return "\n\n".join(parts)


def _warning(words: str) -> str:
    first, _, rest = text.prose(f"warning: {words}").partition(":")
    return f"{click.style(first, fg='yellow')}:{rest}"


_SEARCH_COLUMNS = {"trials": "trials", "train_tokens": "tokens", "train_flops": "training FLOPs"}
_MODEL_COLUMNS = {
    "params_total": "parameters",
    "params_active": "active",
    "flops_per_token": "FLOPs/token",
    "train_tokens": "tokens",
    "train_flops": "training FLOPs",
    "training_bytes": "memory",
    "mixing_bytes": "to mix",
    "cache_bytes_per_token": "cache/token",
}


def _seeds_text(seeds: Sequence[int] | None) -> str:
    """Each model is in the table once, however many seeds it is made with."""
    if not seeds or len(seeds) < 2:
        return ""
    first, *others = seeds
    stages = ", ".join(f"{seed} as *.s{seed}" for seed in others)
    return f"\n\nall of it with {len(seeds)} seeds: {first} under the plain names, {stages}"


def _data_text(data: Mapping[str, str]) -> str:
    """How shares of the training data change: a line for all stages of which the same is true."""
    stages = {words: ", ".join(name for name, other in data.items() if other == words) for words in data.values()}
    return "\n".join(text.prose(f"data of {names}: {words}") for words, names in stages.items())


def _models_text(models: Mapping[str, Mapping[str, Any]]) -> str:
    columns = [name for name in _MODEL_COLUMNS if any(name in model for model in models.values())]
    rows = []
    for name, model in models.items():
        rows.append([name, *(_figure(column, model.get(column)) for column in columns)])
    headers = ["model", *(_MODEL_COLUMNS[column] for column in columns)]
    return text.table(headers, rows, right=range(1, len(headers)))


def _figure(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column == "train_flops" and value >= 1e15:  # beyond the suffixes that people know
        return f"{value:.3g}"
    return text.size(int(value)) if "bytes" in column else text.count(value)


def _paper_text(papers: Mapping[str, Mapping[str, Any]]) -> str:
    """Trained models of the paper's shape beside its own figures; then its errors."""
    shown = {name: paper for name, paper in papers.items() if name == "seed" or name.startswith("train.")}
    rows = [
        [name, f"{paper['flops_per_token_and_layer']:,}", f"{paper['flops_as_printed']:,}"]
        for name, paper in shown.items()
    ]
    headers = ["by the paper's convention", "FLOPs/token and layer", "with its width of 4098"]
    notes = [f"{name.removeprefix('train.')}: {note}" for name, paper in shown.items() for note in paper["notes"]]
    return "\n".join([text.table(headers, rows, right=(1, 2)), *map(text.prose, notes)])


def perplexity_text(perplexity: Mapping[str, Any]) -> str:
    """Models by domains; the best of each column is bold."""
    models = perplexity["models"]
    domains = list(dict.fromkeys(domain for model in models.values() for domain in model["domains"]))
    values = {
        name: [model["domains"].get(domain, {}).get("perplexity") for domain in domains] + [model["average_perplexity"]]
        for name, model in models.items()
    }
    best = [
        min((row[i] for row in values.values() if row[i] is not None), default=None) for i in range(len(domains) + 1)
    ]
    rows = [
        [
            name,
            *(_cell(value, best[i]) for i, value in enumerate(row)),
            text.count(models[name]["params_active"]),
        ]
        for name, row in values.items()
    ]
    headers = ["perplexity", *domains, "average", "active parameters"]
    return text.table(headers, rows, right=range(1, len(headers)))


def _cell(value: float | None, best: float | None) -> str:
    return "" if value is None else click.style(f"{value:.2f}", bold=value == best)
