"""A stage says what is built from what; a pipeline is its stages in an order in which they can run.

`config` is all that defines the result and enters the key. `runtime` (paths, worker counts, devices) never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bam_core.errors import UsageError, nearest


@dataclass(frozen=True)
class Resources:
    """What one worker group asks for. `workers` processes with `cpus` and `gpus` each.

    A stage that trains through a `Trainer` coordinates with no CPU of its own; every other stage computes in place.
    max_workers: an elastic group has from `workers` to this many, as room comes and goes.
    placement: on as few nodes as will do (`pack`), or on as many as there are (`spread`).
    """

    workers: int = 1
    cpus: int = 1
    gpus: int = 0
    trains: bool = False
    max_workers: int | None = None
    placement: Literal["pack", "spread"] = "pack"


@dataclass(frozen=True)
class Stage:
    """name: as in `bam plan`, e.g. `expert.law`. function: the row of the table of stage kinds, e.g. `expert`.

    version: raised when the function's meaning changes. inputs: role -> name of the stage that fills it; a role reads
    like `seed`, `data.law`, `expert.law`.
    """

    name: str
    function: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()


@dataclass(frozen=True)
class Pipeline:
    """Stages in topological order. Raises UsageError on a cycle, an unknown input or a name used twice."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise UsageError(f"stage {stage.name!r} is defined twice")
            for role, parent in stage.inputs.items():
                if parent not in seen:
                    raise UsageError(f"stage {stage.name!r}, input {role!r}: no earlier stage is named {parent!r}")
            seen.add(stage.name)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __getitem__(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UsageError(f"no stage named {name!r}: {nearest(name, (stage.name for stage in self.stages))}")

    def __contains__(self, name: str) -> bool:
        return any(stage.name == name for stage in self.stages)
