"""`evaluate`: every model on the same held-out documents of every domain; where each mixture sends what; its tasks.

The branch-train-merge ensemble (`ensemble` in perplexity.json) is no stage's model: it is computed here, from what the
experts made of each document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bam_core.checkpoint import load_model
from bam_core.config import ModelConfig
from bam_core.data.shards import ShardedRows
from bam_core.data.tokenize import Tokenizer
from bam_core.evaluate.documents import Chosen, Documents, choose
from bam_core.evaluate.ensemble import ensemble_scored
from bam_core.evaluate.metric import Judged, measure
from bam_core.evaluate.perplexity import DomainScore, average_perplexity, token_average_nll
from bam_core.evaluate.routing import RoutingSums
from bam_core.evaluate.strided import Scored, score_documents
from bam_core.graph.record import Record
from bam_core.nn.costs import flops_per_token, params_active, params_total
from bam_core.nn.lm import LM
from bam_core.protocols import StageContext
from bam_core.train.loop import DTYPES
from pipelines.stages.downstream import score_tasks

ENSEMBLE, SEED = "ensemble", "seed"
TOKENIZER_FILE = "tokenizer.json"
METRICS_FILE = "metrics.json"
"""Only where a recipe asks for metrics of plug-ins."""


def run(context: StageContext) -> Mapping[str, Any]:
    torch.set_num_threads(context.resources.cpus)
    config = context.config
    tokenizer = context.inputs["tokenizer"] / TOKENIZER_FILE
    texts = _documents(context, Tokenizer.load(tokenizer).token_bytes)
    scored: dict[str, Mapping[str, Scored]] = {}
    models: dict[str, Any] = {}
    routing: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for number, name in enumerate(config["models"]):
        model = load_model(context.inputs[name], dtype=DTYPES[config["dtype"]], device=context.resources.device)
        scoring = {"context": model.config.max_seq_len, "stride": config["stride"]}  # one for all: of one seed
        scored[name] = {domain: score_documents(model, chosen, config["stride"]) for domain, chosen in texts.items()}
        models[name] = _figures(context, name, model.config, scored[name])
        if model.config.is_mixture:
            sums = {domain: found.routing for domain, found in scored[name].items() if found.routing}
            routing[name] = routing_entry(model.config, sums)
        if found := score_tasks(context, name, model, tokenizer):
            tasks[name] = found
        if asked := config.get("metrics"):
            metrics[name] = _metrics(asked, model, texts, scored[name])
        context.log(number + 1, {"total_steps": len(config["models"])})
    if experts := config.get("ensemble"):
        assert set(experts) <= set(scored), f"the ensemble's experts must be evaluated: {set(experts) - set(scored)}"
        scored[ENSEMBLE] = {domain: ensemble_scored([scored[expert][domain] for expert in experts]) for domain in texts}
        models[ENSEMBLE] = _ensemble_figures(context, experts, scored[ENSEMBLE], models)
    for figures in models.values():
        figures["forgetting"] = _forgetting(figures, models.get(SEED), config["domains"][0])
    _write(context.out / "perplexity.json", {"models": models, "scoring": scoring})
    _write(context.out / "routing.json", {"models": routing})
    _write(context.out / "tasks.json", {"models": tasks})
    if metrics:
        _write(context.out / METRICS_FILE, {"models": metrics})
    pq.write_table(_by_document(scored), context.out / "documents.parquet")
    return {f"average_perplexity.{name}": figures["average_perplexity"] for name, figures in models.items()}


def _metrics(
    names: Sequence[str], model: LM, texts: Mapping[str, Chosen], scored: Mapping[str, Scored]
) -> dict[str, dict[str, float]]:
    """Metric of a plug-in -> domain -> what it says of the model."""
    return {
        name: {domain: measure(name, Judged(model, domain, texts[domain], scored[domain])) for domain in texts}
        for name in names
    }


def _documents(context: StageContext, token_bytes: np.ndarray[Any, np.dtype[np.int32]]) -> dict[str, Chosen]:
    """Domain -> the held-out documents that every model is scored on."""
    rows = {domain: ShardedRows(context.inputs[f"data.{domain}"] / "valid") for domain in context.config["domains"]}
    asked = context.config["tokens"], tuple(context.config.get("part", (1, 1)))
    return {domain: choose(Documents.of(its_rows, token_bytes), *asked) for domain, its_rows in rows.items()}


def _by_document(scored: Mapping[str, Mapping[str, Scored]]) -> pa.Table:
    """A row for each model, domain and document. document: its number in the domain's held-out text. nll: in nats."""
    parts = [
        pa.table(
            {
                "model": pa.array([name] * len(found.nll), pa.string()),
                "domain": pa.array([domain] * len(found.nll), pa.string()),
                "document": pa.array(found.numbers, pa.int64()),
                "nll": pa.array(found.nll, pa.float64()),
                "tokens": pa.array(found.tokens, pa.int64()),
                "n_bytes": pa.array(found.n_bytes, pa.int64()),
            }
        )
        for name, domains in scored.items()
        for domain, found in domains.items()
    ]
    return pa.concat_tables(parts).combine_chunks()


def _forgetting(figures: Mapping[str, Any], seed: Mapping[str, Any] | None, general: str) -> float | None:
    """How much of the general domain is lost: its perplexity over the seed's, minus 1."""
    if seed is None:
        return None
    was, now = (float(model["domains"][general]["perplexity"]) for model in (seed, figures))
    return now / was - 1


def lineage_costs(records: Sequence[Record]) -> dict[str, float]:
    """Tokens and FLOPs behind these models together; what several of them branched from counts once."""
    made = {record.key: record.metrics for record in records}
    before: dict[str, Mapping[str, Any]] = {}  # parents that are not among the records -> a child's figures
    for record in records:
        for parent in record.inputs.values():
            if parent.stage.partition(".")[0] not in ("data", "tokenizer", "tune") and parent.key not in made:
                before[parent.key] = record.metrics
    found = {}
    for unit in ("tokens", "flops"):
        own = sum(metrics.get(f"train_{unit}", 0) for metrics in made.values())
        shared = sum(m.get(f"lineage_{unit}", 0) - m.get(f"train_{unit}", 0) for m in before.values())
        found[f"lineage_{unit}"] = own + shared
    return found


def routing_entry(config: ModelConfig, sums: Mapping[str, RoutingSums]) -> dict[str, Any]:
    """The contract's entry of one mixture. experts: the dense models behind it; *_experts: a name for each expert."""
    return {
        "layers": config.n_layers,
        "experts": list(config.experts),
        "attention_experts": list(config.expert_labels("attention")),
        "ffn_experts": list(config.expert_labels("ffn")),
        "ffn_soft_layers": list(config.ffn.soft_layers) if config.ffn else [],
        "domains": {domain: found.to_json() for domain, found in sums.items()},
    }


def _figures(context: StageContext, name: str, model: ModelConfig, scored: Mapping[str, Scored]) -> dict[str, Any]:
    """The contract's entry of one model. train_*: this stage's own training; lineage_*: all training behind it."""
    made = context.records[name].metrics
    return {
        **_scores(context, {domain: found.total for domain, found in scored.items()}),
        "params_total": params_total(model),
        "params_active": params_active(model),
        "flops_per_token": flops_per_token(model, model.max_seq_len),
        "train_tokens": made.get("train_tokens", 0),
        "train_flops": made.get("train_flops", 0),
        "lineage_tokens": made.get("lineage_tokens", 0),
        "lineage_flops": made.get("lineage_flops", 0),
    }


def _ensemble_figures(
    context: StageContext, experts: Sequence[str], scored: Mapping[str, Scored], models: Mapping[str, Any]
) -> dict[str, Any]:
    """The same of the ensemble. Every token runs through all experts; nothing is trained for it."""
    sums = {
        figure: sum(models[expert][figure] for expert in experts)
        for figure in ("params_total", "params_active", "flops_per_token")
    }
    return {
        **_scores(context, {domain: found.total for domain, found in scored.items()}),
        **sums,
        "train_tokens": 0,
        "train_flops": 0,
        **lineage_costs([context.records[expert] for expert in experts]),
        "experts": list(experts),
    }


def _scores(context: StageContext, scores: Mapping[str, DomainScore]) -> dict[str, Any]:
    token_average = token_average_nll(scores)
    return {
        "domains": {domain: score.to_json() for domain, score in scores.items()},
        "average_perplexity": average_perplexity(scores),
        "token_average_nll": token_average,
        "token_average_perplexity": exp(token_average),
        "seeds": list(context.config["seeds"]),
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
