"""`mix.<variant>`: the untrained mixture, made from the dense experts by the variant's rules (BAM, section 4.2).

First the mixture is calibrated on some training rows of every domain (`upcycle.calibrate`), then it is written tensor
by tensor, then read back and compared with the experts. `mix.json` says of each tensor what it was made from, with
digests, and what holds at step 0; the card says it for people. Nothing holds more than `costs.mixing_bytes`, which is
logged before the start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.card import Mixed, model_card
from bam_core.checkpoint import CARD, read_config, read_digests, write_model
from bam_core.config import ModelConfig
from bam_core.data.shards import ShardedRows
from bam_core.evaluate.perplexity import spread_indices
from bam_core.nn.costs import mixing_bytes, params_active, params_total
from bam_core.protocols import StageContext
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.calibrate import Calibration, calibrate
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.variants import (
    Variant,
    common_config,
    mixture_config,
    rules_for,
    variant_sources,
    with_gains,
)
from bam_core.upcycle.walk import ReopenedTensors
from pipelines.stages.cards import MIX_FILE, carrying, subject_of

MIN_SHARD_BYTES = 64_000_000


def run(context: StageContext) -> Mapping[str, Any]:
    torch.set_num_threads(context.resources.cpus)
    config = context.config
    variant = Variant.from_json(config["variant"])
    stages = dict(config["experts"])  # expert -> the stage that made it, in stacking order
    stages = {expert: stages[expert] for expert in variant_sources(variant, tuple(stages))}
    folders = {expert: context.inputs[stage] for expert, stage in stages.items()}
    dense = common_config({expert: read_config(folder) for expert, folder in folders.items()})
    target = mixture_config(dense, list(folders), variant)
    context.log(0, {"memory_estimate_bytes": mixing_bytes(target)})
    sources = {expert: ReopenedTensors(folder) for expert, folder in folders.items()}
    rows = {domain: _rows(context, domain) for domain in config["domains"]}
    found = calibrate(target, rules_for(variant, target), sources, variant, rows, config["seed"])
    target = with_gains(target, found.gains) if found.gains else target
    tensors = _write(context, variant, target, folders, found)
    made = receipt(context.out, folders, made=tensors)
    step0 = found.report | {"warnings": [*variant.warnings(tuple(folders)), *found.report["warnings"]]}
    mix = {"variant": variant.to_json(), "experts": stages, "tensors": tensors, "receipt": made | {"step0": step0}}
    (context.out / MIX_FILE).write_text(json.dumps(mix, indent=1, allow_nan=False) + "\n")
    card = model_card(subject_of(context, target, mixed=Mixed.of(context.stage, mix)))
    (context.out / CARD).write_text(card, encoding="utf-8")
    return _metrics(context, target, mix["receipt"])


def _rows(context: StageContext, domain: str) -> Tensor:
    """Training rows spread evenly over a domain: half of them fit routers, so there are two if the domain has two."""
    stored = ShardedRows(context.inputs[f"data.{domain}"] / "train")
    n_rows = max(2, context.config["calibration_tokens"] // (stored.row_len - 1))
    return torch.from_numpy(stored[spread_indices(len(stored), n_rows)])


def _write(
    context: StageContext,
    variant: Variant,
    target: ModelConfig,
    folders: Mapping[str, Path],
    found: Calibration,
) -> dict[str, Any]:
    """Write the model folder. Returns what each tensor was made from."""
    tensors: dict[str, Any] = {}
    sources = {expert: ReopenedTensors(folder) for expert, folder in folders.items()}
    # Inputs are as recorded, or the stage would not run: what they say of their own tensors need not be summed again.
    digests = {expert: read_digests(folder) for expert, folder in folders.items()}
    seed = context.config["seed"]
    write_model(
        context.out,
        target,
        upcycle(target, rules_for(variant, target), sources, seed, tensors, found.fitted, digests),
        tokenizer=next(iter(folders.values())) / "tokenizer.json",
        card=None,  # it tells what holds of the mixture as written
        provenance={"stage": context.stage, "key": context.key, **carrying(subject_of(context, target).texts)},
        max_shard_bytes=shard_bytes(next(iter(sources.values()))),
        made=tensors,
    )
    return tensors


def shard_bytes(dense: ReopenedTensors) -> int:
    """A shard is held while it fills: no more than one of the dense tensors that `mixing_bytes` counts, if large."""
    return max(MIN_SHARD_BYTES, max(4 * prod(dense.shape(name)) for name in dense.names()))


def _metrics(context: StageContext, target: ModelConfig, made: Mapping[str, Any]) -> dict[str, Any]:
    models = [record.metrics for role, record in context.records.items() if not role.startswith("data.")]
    perplexity = made["step0"]["perplexity"]["mixture"]["average"]
    accuracy = made["step0"].get("shared", {}).get("accuracy")
    return {
        "params_total": params_total(target),
        "params_active": params_active(target),
        "worst_expert_difference": max(
            expert["max_abs_diff"] for part in ("experts", "shared") for expert in made.get(part, {}).values()
        ),
        **({} if perplexity is None else {"step0_perplexity": perplexity}),
        **({"shared_router_accuracy": accuracy} if accuracy is not None else {}),
        "lineage_tokens": sum(metrics["train_tokens"] for metrics in models),
        "lineage_flops": sum(metrics["train_flops"] for metrics in models),
    }
