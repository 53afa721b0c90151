"""`report`: one page that a person reads, and its tables and figures as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.graph.lineage import lineage
from bam_core.graph.stage import kind_of
from bam_core.protocols import StageContext
from pipelines.report import ReportInputs, build_report


def run(context: StageContext) -> Mapping[str, Any]:
    models = context.config["models"]
    evaluate = context.records["evaluate"]
    graph = lineage(context.history(), evaluate.key, "up").to_json()
    made = {node["key"] for node in graph["nodes"]}
    for role, judge in context.records.items():  # those of other seeds: what they cost is told, not drawn
        if kind_of(role) == "evaluate" and judge != evaluate:
            made |= {node["key"] for node in lineage(context.history(), judge.key, "up").to_json()["nodes"]}
    if "routing" in context.records:
        made.add(context.records["routing"].key)
    costs = [
        {
            "stage": record.stage,
            "seconds": record.seconds,
            "tokens": record.metrics.get("train_tokens"),
            "train_flops": record.metrics.get("train_flops"),
            "params": record.metrics.get("params_total"),
        }
        for record in context.history()
        if record.key in made
    ]
    inputs = ReportInputs.read(
        context.config["recipe"],
        evaluate=context.inputs["evaluate"],
        models={name: context.inputs[name] for name in models},
        costs=costs,
        lineage=graph,
        domains=context.config["domains"],
        routed=context.inputs.get("routing"),
        overlap=context.inputs.get("overlap"),
        other_seeds=[
            folder for role, folder in context.inputs.items() if kind_of(role) == "evaluate" and role != "evaluate"
        ],
        baselines=context.config["baselines"],
        searches={role: folder for role, folder in context.inputs.items() if role.startswith("tune.")},
    )
    return build_report(inputs, context.out)
