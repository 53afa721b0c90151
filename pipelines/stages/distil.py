"""`distil.<name>`: a trained mixture with cheaper attention, which learns from the one that it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.protocols import StageContext
from pipelines.stages.inputs import TEACHER
from pipelines.stages.training import run_training


def run(context: StageContext) -> Mapping[str, Any]:
    start = {"from": TEACHER, "sparser": dict(context.config["attention"])}
    return run_training(context, start, distil=context.config["distil"])
