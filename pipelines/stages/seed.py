"""`seed`: the dense model that every expert branches from, trained from scratch on the recipe's seed mixture, or on
from a model that is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.protocols import StageContext
from pipelines.stages.training import run_training


def run(context: StageContext) -> Mapping[str, Any]:
    if "from" in context.config:
        return run_training(context, {"from": context.config["from"]})
    start = {"init_seed": context.config["init_seed"], "model": context.config["model"]}
    return run_training(context, start)
