"""What a store holds, as far as it decides what stays: the words that `reach` and whoever reads a store share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bam_core.graph.key import key12
from bam_core.graph.pins import Pin
from bam_core.graph.record import Record
from bam_core.graph.runs import Run

Node = tuple[str, str]
"""(stage, first 12 of the key): an artifact's folder."""
RecordState = Literal["whole", "damaged", "unreadable", "none"]
"""damaged: a readable record of outputs that are not all there."""
COLLECTOR = "bam gc"
"""The last words of a collector's lease owner. What it removes is made from nothing that is not known."""


@dataclass(frozen=True)
class Policy:
    """keep_last: runs of each recipe and stage. keep_runs: names. min_age_s: what is younger stays."""

    keep_last: int = 1
    keep_runs: tuple[str, ...] = ()
    min_age_s: float = 3600.0


@dataclass(frozen=True)
class Artifact:
    """What one artifact's folder holds. size_bytes: of all in it.

    changed: when it was made; without a record, when a file of it last changed. inputs: of its record. lease: who
    holds a live one.
    """

    size_bytes: int
    changed: float
    record: RecordState = "whole"
    inputs: tuple[Node, ...] = ()
    lease: str | None = None


@dataclass(frozen=True)
class Leftover:
    """What a stage that ended, or was killed, has left beside its artifact.

    kind: checkpoints (of a training), scratch (half-written outputs) or lease (of an owner that is gone).
    """

    kind: Literal["checkpoints", "scratch", "lease"]
    node: Node
    size_bytes: int
    changed: float


@dataclass(frozen=True)
class Contents:
    """All of a store that decides. runs: the newest last. unreadable: files of runs and pins that cannot be read."""

    artifacts: Mapping[Node, Artifact]
    runs: Sequence[Run] = ()
    pins: Sequence[Pin] = ()
    leftovers: Sequence[Leftover] = ()
    unreadable: Sequence[str] = ()


@dataclass(frozen=True)
class Going:
    """Something that nothing needs. node: of an artifact or a leftover. run: the name of a run's record."""

    kind: Literal["artifact", "checkpoints", "scratch", "lease", "run"]
    node: Node | None
    run: str | None
    size_bytes: int
    changed: float
    why: str

    @property
    def identity(self) -> tuple[str, Node | None, str | None]:
        """The same thing, however its size and age are told."""
        return self.kind, self.node, self.run

    @property
    def name(self) -> str:
        if self.node is None:
            return f"run {self.run}"
        return ref(self.node) if self.kind == "artifact" else f"{self.kind} of {ref(self.node)}"


@dataclass(frozen=True)
class Reach:
    """stays: of every artifact that is there and stays, why. goes: children before what they were made from.

    blocked: why nothing may go, if so. notes: what else a person should know.
    """

    stays: Mapping[Node, tuple[str, ...]]
    goes: tuple[Going, ...]
    blocked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def run_nodes(run: Run) -> list[Node]:
    return [node_of(stage, key) for stage, key in run.artifacts()]


def inputs_of(record: Record) -> tuple[Node, ...]:
    """What it was made from here. Of an adopted expert, the copy is ours and whole: its origin need not stay."""
    return tuple(node_of(given.stage, given.key) for given in record.inputs.values())


def node_of(stage: str, key: str) -> Node:
    return stage, key12(key)


def ref(node: Node) -> str:
    return f"{node[0]}@{node[1]}"


def is_collected(lease: str | None) -> bool:
    """Whether the lease is of a collector, which removes what it is on."""
    return lease is not None and lease.endswith(COLLECTOR)
