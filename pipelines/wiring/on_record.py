"""What a run leaves of itself in the store before it starts: what it asks for and uses, so that `bam gc` keeps it."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bam_core.errors import ArtifactDamaged
from bam_core.graph.holdings import is_collected
from bam_core.graph.plan import Decision
from bam_core.graph.runs import Run, RunStage
from infra.provenance import capture
from infra.store import ArtifactStore
from pipelines.recipe import Recipe
from pipelines.wiring.planning import N_TOGETHER, Plan


def run_on_record(name: str, recipe: Recipe, made: Plan) -> Run:
    """The run as it starts."""
    given = {place: (record.stage, record.key) for place, record in made.given.items()}
    stages = {}
    for decision in made.decisions:
        roles = made.pipeline[decision.stage].inputs
        inputs = {role: given.get((decision.stage, role), (stage, made.keys[stage])) for role, stage in roles.items()}
        stages[decision.stage] = RunStage(decision.key, decision.action, inputs)
    return Run(name, recipe.name, "running", time.time(), None, made.recipe, stages, capture(sys.argv))


def is_swept(made: Plan, store: ArtifactStore) -> bool:
    """Whether `bam gc` took something that is to be reused, before this run was on record and kept it."""

    def is_gone(decision: Decision) -> bool:
        lease = store.lease_info(decision.stage, decision.key)
        if lease is not None and is_collected(lease.owner):
            return True
        with suppress(ArtifactDamaged):
            return store.record(decision.stage, decision.key) is None
        return True

    reused = [decision for decision in made.decisions if decision.action == "reuse"]
    with ThreadPoolExecutor(N_TOGETHER) as pool:
        return any(pool.map(is_gone, reused))
