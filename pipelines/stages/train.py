"""`train.<variant>`: the mixture, trained on all domains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.protocols import StageContext
from pipelines.stages.training import run_training


def run(context: StageContext) -> Mapping[str, Any]:
    return run_training(context, {"from": "mix"})
