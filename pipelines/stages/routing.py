"""`routing`: what the routers of every trained mixture do with held-out text, and what each expert is for.

It leaves `routing.parquet` (a sample of tokens, a row for each router that saw one), `routing_summary.json` (figures of
that sample) and `knock_out.json` (each domain's perplexity with one expert masked). All mixtures are asked about the
same packed rows: `evaluate` scores whole documents, so the perplexities here are not quite those there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from bam_core.checkpoint import load_model
from bam_core.data.shards import ShardedRows
from bam_core.evaluate.knock_out import BRANCHES, knock_out
from bam_core.evaluate.perplexity import spread_indices
from bam_core.evaluate.routing_sample import SCHEMA, sample_routing, tables
from bam_core.evaluate.routing_summary import summarise
from bam_core.nn.lm import LM
from bam_core.protocols import StageContext
from bam_core.train.loop import DTYPES

TABLE_FILE, SUMMARY_FILE, KNOCK_OUT_FILE = "routing.parquet", "routing_summary.json", "knock_out.json"
Chosen = Mapping[str, NDArray[np.int64]]


def run(context: StageContext) -> Mapping[str, Any]:
    torch.set_num_threads(context.resources.cpus)
    config = context.config
    rows = {domain: ShardedRows(context.inputs[f"data.{domain}"] / "valid") for domain in config["domains"]}
    sampled_from = _chosen(rows, max(config["tokens"], config["knock_out_tokens"]))
    scored = _chosen(rows, config["knock_out_tokens"])
    summary: dict[str, Any] = {}
    matrices: dict[str, Any] = {}
    n_rows = 0
    with pq.ParquetWriter(context.out / TABLE_FILE, SCHEMA, compression="zstd") as table:
        for number, name in enumerate(config["models"], 1):
            model = load_model(context.inputs[name], dtype=DTYPES[config["dtype"]], device=context.resources.device)
            summary[name], n_model_rows = _sample(name, model, rows, sampled_from, config["tokens"], table)
            n_rows += n_model_rows
            if config["knock_out_tokens"]:
                order: dict[str, list[str]] = {branch: list(model.config.expert_labels(branch)) for branch in BRANCHES}
                order["both"] = list(model.config.experts)
                matrices[name] = {"experts": order} | knock_out(model, rows, scored)
            context.log(number, {"total_steps": len(config["models"])})
    _write(context.out / SUMMARY_FILE, {"models": summary})
    _write(context.out / KNOCK_OUT_FILE, {"models": matrices})
    return {"n_rows": n_rows, **_metrics(summary)}


def _chosen(rows: Mapping[str, ShardedRows], tokens: int) -> Chosen:
    """Rows of each domain for about so many tokens, spread over the held-out text; at least one."""
    return {d: spread_indices(len(found), max(1, tokens // (found.row_len - 1))) for d, found in rows.items()}


def _sample(
    name: str, model: LM, rows: Mapping[str, ShardedRows], chosen: Chosen, tokens: int, table: pq.ParquetWriter
) -> tuple[dict[str, Any], int]:
    """The summary of one mixture, and how many rows it added to the table."""
    samples, n_rows = {}, 0
    for domain, its_rows in rows.items():
        samples[domain] = sample_routing(model, its_rows, chosen[domain], domain, tokens)
        for part in tables(name, model.config, domain, samples[domain]):
            table.write_table(part)
            n_rows += part.num_rows
    return summarise(model.config, samples), n_rows


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Mean over layers of what each router's choice tells of the domain, from 0 to 1."""
    found = {}
    for name, model in summary.items():
        for branch in BRANCHES:
            layers = [layer["mutual_information_frac"] for layer in model[branch] or () if layer]
            if layers:
                found[f"mutual_information_frac.{branch}.{name}"] = sum(layers) / len(layers)
    return found


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
