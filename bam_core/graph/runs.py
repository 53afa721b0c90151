"""What one `bam run` asked for and used: `runs/<run>.json`, written when it starts and again when it ends.

No decision of a plan reads it: it says which artifacts belong together and in whose name, for `bam gc` and for MLflow's
view. Invariant: nothing in it is executed, and it names no path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bam_core.errors import ArtifactDamaged

SCHEMA = 1
RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
RunStatus = Literal["running", "done", "failed", "interrupted"]
NodeId = tuple[str, str]


@dataclass(frozen=True)
class RunStage:
    """action: of the plan. inputs: role -> (stage, key) of what fills it."""

    key: str
    action: str
    inputs: Mapping[str, NodeId]


@dataclass(frozen=True)
class Run:
    """name: of the run. pipeline: the recipe's name. recipe: whole, secrets hidden. stages: all that were planned.

    started, ended: seconds since the epoch; ended is None while it is under way, or for ever if its driver was killed.
    """

    name: str
    pipeline: str
    status: RunStatus
    started: float
    ended: float | None
    recipe: Mapping[str, Any]
    stages: Mapping[str, RunStage]
    provenance: Mapping[str, Any]

    def artifacts(self) -> list[NodeId]:
        return [(name, stage.key) for name, stage in self.stages.items()]

    def to_json(self) -> dict[str, Any]:
        stages = {
            name: {
                "key": stage.key,
                "action": stage.action,
                "inputs": {role: {"stage": parent, "key": key} for role, (parent, key) in stage.inputs.items()},
            }
            for name, stage in self.stages.items()
        }
        return {"schema": SCHEMA, **vars(self), "stages": stages}

    @classmethod
    def from_json(cls, data: Any, where: str) -> Run:
        """Raises ArtifactDamaged, naming `where`."""
        try:
            if data["schema"] != SCHEMA:
                raise ArtifactDamaged(f"{where}: schema {data['schema']!r}; this version of bam reads {SCHEMA}")
            stages = {
                name: RunStage(
                    stage["key"],
                    stage["action"],
                    {role: (parent["stage"], parent["key"]) for role, parent in stage["inputs"].items()},
                )
                for name, stage in data["stages"].items()
            }
            return cls(
                name=data["name"],
                pipeline=data["pipeline"],
                status=data["status"],
                started=float(data["started"]),
                ended=None if data["ended"] is None else float(data["ended"]),
                recipe=dict(data["recipe"]),
                stages=stages,
                provenance=dict(data["provenance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactDamaged(f"{where}: not a run of this version of bam ({error!r})") from error
