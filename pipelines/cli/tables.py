"""A plan, its models and what they reached, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from bam_core.graph.key import key12
from pipelines.cli import text

if TYPE_CHECKING:
    from pipelines.wiring import Plan


def plan_text(made: Plan) -> str:
    """The stages with action and reason, then the models with what they cost."""
    rows = [
        [decision.stage, key12(decision.key), text.styled(decision.action), decision.reason]
        for decision in made.decisions
    ]
    actions = [decision.action for decision in made.decisions]
    counts = ", ".join(f"{actions.count(name)} {name}" for name in dict.fromkeys(actions))
    parts = [text.table(["stage", "key", "action", "reason"], rows), f"{len(rows)} stages: {counts}"]
    if made.models:
        parts.insert(1, _models_text(made.models))
    return "\n\n".join(parts)


_MODEL_COLUMNS = {
    "params_total": "parameters",
    "params_active": "active",
    "flops_per_token": "FLOPs/token",
    "train_tokens": "tokens",
    "train_flops": "training FLOPs",
    "training_bytes": "memory",
    "cache_bytes_per_token": "cache/token",
}


def _models_text(models: Mapping[str, Mapping[str, Any]]) -> str:
    columns = [name for name in _MODEL_COLUMNS if any(name in model for model in models.values())]
    rows = []
    for name, model in models.items():
        cells = [
            "" if model.get(column) is None else (text.size if "bytes" in column else text.count)(model[column])
            for column in columns
        ]
        rows.append([name, *cells])
    headers = ["model", *(_MODEL_COLUMNS[column] for column in columns)]
    return text.table(headers, rows, right=range(1, len(headers)))


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
