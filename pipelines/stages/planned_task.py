"""A task file that the recipe names, as it was when the run was planned. No torch: not all that read one compute."""

from __future__ import annotations

import hashlib

from bam_core.errors import BamError
from bam_core.evaluate.task_files import Task, read_task
from bam_core.protocols import StageContext


def planned_task(context: StageContext, digest: str) -> Task:
    """The task of a file that the recipe names. Raises BamError if it is not the one that was planned with."""
    path = context.runtime["tasks"][digest]["path"]
    data = context.sources.read_file(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise BamError(f"the task file {path} changed since the plan, or differs here; run again")
    return read_task(data, path)
