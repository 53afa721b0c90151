"""`expert.<domain>`: a copy of the seed, trained on one domain (BAM, section 5.2: with some general text mixed in).

Or of a model that is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.protocols import StageContext
from pipelines.stages.training import run_training


def run(context: StageContext) -> Mapping[str, Any]:
    return run_training(context, {"from": context.config.get("from", "seed")})
