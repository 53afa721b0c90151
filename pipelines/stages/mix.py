"""`mix.<variant>`: the untrained mixture, made from the dense experts by the variant's rules (BAM, section 4.2).

`mix.json` says of each tensor what it was made from, with digests, and what holds at step 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bam_core.checkpoint import model_card, open_tensors, read_config, write_model
from bam_core.nn.costs import params_active, params_total
from bam_core.protocols import StageContext
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.variants import Variant, common_config, mixture_config, rules_for


def run(context: StageContext) -> Mapping[str, Any]:
    variant = Variant.from_json(context.config["variant"])
    stages = dict(context.config["experts"])  # expert -> the stage that made it, in stacking order
    folders = {expert: context.inputs[stage] for expert, stage in stages.items()}
    dense = common_config({expert: read_config(folder) for expert, folder in folders.items()})
    target = mixture_config(dense, list(folders), variant)
    rules = rules_for(variant, dense.residual, dense.tie_embeddings)
    sources = {expert: open_tensors(folder) for expert, folder in folders.items()}
    tensors: dict[str, Any] = {}
    write_model(
        context.out,
        target,
        upcycle(target, rules, sources, context.config["seed"], tensors),
        tokenizer=next(iter(folders.values())) / "tokenizer.json",
        card=model_card(
            name=context.stage,
            what=f"The mixture {variant.name!r} as initialised from its experts, untrained.",
            config=target,
            parents={role: (record.stage, record.key) for role, record in context.records.items()},
            facts={"experts": ", ".join(folders), "key": context.key},
        ),
        provenance={"stage": context.stage, "key": context.key},
    )
    at_start = receipt(context.out, folders)
    mix = {"variant": variant.to_json(), "experts": stages, "tensors": tensors, "receipt": at_start}
    (context.out / "mix.json").write_text(json.dumps(mix, indent=1) + "\n")
    made = [record.metrics for record in context.records.values()]
    return {
        "params_total": params_total(target),
        "params_active": params_active(target),
        "worst_expert_difference": max(expert["max_abs_diff"] for expert in at_start["experts"].values()),
        "lineage_tokens": sum(metrics["train_tokens"] for metrics in made),
        "lineage_flops": sum(metrics["train_flops"] for metrics in made),
    }
