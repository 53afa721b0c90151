"""One file per stage kind. Each is `run(context) -> metrics`: read inputs, call the core, write files under `out`.

A kind's version is part of its artifacts' keys: raise it when the same configuration would now give another result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bam_core.graph.stage import Stage, kind_of
from bam_core.protocols import StageFunction


@dataclass(frozen=True)
class StageKind:
    """module: where `run` is, imported only where the stage runs. trains: uses a worker group of its own."""

    module: str
    version: int
    trains: bool = False

    def function(self) -> StageFunction:
        function: StageFunction = import_module(f"pipelines.stages.{self.module}").run
        return function


KINDS: dict[str, StageKind] = {
    "discover": StageKind("discover", 1),
    "tokenizer": StageKind("tokenizer", 1),
    "data": StageKind("data", 1),
    "overlap": StageKind("overlap", 1),
    "import": StageKind("importing", 1),
    "imported": StageKind("imported", 1),
    "seed": StageKind("seed", 1, trains=True),
    "expert": StageKind("expert", 1, trains=True),
    "adopt": StageKind("adopt", 1),
    "tune": StageKind("tune", 1),
    "mix": StageKind("mix", 2),
    "edit": StageKind("edit", 2),
    "train": StageKind("train", 1, trains=True),
    "dense": StageKind("dense", 1, trains=True),
    "distil": StageKind("distil", 1, trains=True),
    "export": StageKind("export", 1),
    "evaluate": StageKind("evaluate", 3),
    "routing": StageKind("routing", 1),
    "report": StageKind("report", 4),
}


def new_stage(name: str, config: Mapping[str, Any], inputs: Mapping[str, str], runtime: Mapping[str, Any]) -> Stage:
    """A stage of the kind that its name says, in that kind's version."""
    function = kind_of(name)
    return Stage(name, function, KINDS[function].version, config, inputs, runtime)
