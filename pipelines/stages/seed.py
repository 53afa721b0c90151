"""`seed`: the dense model that every expert branches from, trained from scratch on the recipe's seed mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.protocols import StageContext
from pipelines.stages.training import run_training


def run(context: StageContext) -> Mapping[str, Any]:
    start = {"init_seed": context.config["init_seed"], "model": context.config["model"]}
    return run_training(context, start)
