"""`evaluate`: every model on the same held-out rows of every domain; where each mixture sends what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bam_core.checkpoint import load_model
from bam_core.data.shards import ShardedRows
from bam_core.evaluate.perplexity import DomainScore, average_perplexity, score
from bam_core.nn.costs import flops_per_token, params_active, params_total
from bam_core.nn.lm import LM
from bam_core.protocols import StageContext
from bam_core.train.loop import DTYPES


def run(context: StageContext) -> Mapping[str, Any]:
    torch.set_num_threads(context.resources.cpus)
    config = context.config
    rows = {domain: ShardedRows(context.inputs[f"data.{domain}"] / "valid") for domain in config["domains"]}
    models: dict[str, Any] = {}
    routing: dict[str, Any] = {}
    for number, name in enumerate(config["models"]):
        model = load_model(context.inputs[name], dtype=DTYPES[config["dtype"]])
        scores, sums = _score_domains(model, rows, config["tokens"])
        models[name] = _figures(context, name, model, scores)
        if sums:
            routing[name] = {
                "layers": model.config.n_layers,
                "experts": list(model.config.experts),
                "domains": sums,
            }
        context.log(number + 1, {"total_steps": len(config["models"])})
    _write(context.out / "perplexity.json", {"models": models})
    _write(context.out / "routing.json", {"models": routing})
    _write(context.out / "tasks.json", {"models": {}})
    return {f"average_perplexity.{name}": figures["average_perplexity"] for name, figures in models.items()}


def _score_domains(
    model: LM, rows: Mapping[str, ShardedRows], max_tokens: int
) -> tuple[dict[str, DomainScore], dict[str, Any]]:
    scores: dict[str, DomainScore] = {}
    routing: dict[str, Any] = {}
    for domain, domain_rows in rows.items():
        scores[domain], sums = score(model, domain_rows, max_tokens)
        if sums is not None:
            routing[domain] = sums.to_json()
    return scores, routing


def _figures(context: StageContext, name: str, model: LM, scores: Mapping[str, DomainScore]) -> dict[str, Any]:
    """The contract's entry of one model. train_*: this stage's own training; lineage_*: all training behind it."""
    made = context.records[name].metrics
    return {
        "domains": {domain: score.to_json() for domain, score in scores.items()},
        "average_perplexity": average_perplexity(scores),
        "params_total": params_total(model.config),
        "params_active": params_active(model.config),
        "flops_per_token": flops_per_token(model.config, model.config.max_seq_len),
        "train_tokens": made.get("train_tokens", 0),
        "train_flops": made.get("train_flops", 0),
        "lineage_tokens": made.get("lineage_tokens", 0),
        "lineage_flops": made.get("lineage_flops", 0),
        "seeds": list(context.config["seeds"]),
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
