"""A stage says what is built from what; a pipeline is its stages in an order in which they can run.

`config` is all that defines the result and enters the key. `runtime` (paths, worker counts, devices) never does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from bam_core.errors import UsageError, nearest

NAMED = frozenset(
    {"discover", "data", "import", "imported", "expert", "adopted", "tune", "mix", "train", "distil", "edit", "export"}
)
"""Kinds of which a pipeline has several stages, each with a name of its own after the kind: `expert.law`.

All others have one, and no name: so `expert.s1` is the expert of a domain s1, and `seed.s1` the seed of seed number 1.
"""
_SEED = re.compile(r"s(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class StageName:
    """What the name of a stage says: `kind`, `kind.name` or either with `.s<seed>` after it.

    name: the stage's own, None for a kind without one. seed: of the recipe's `seeds`; None for the first of them, and
    for what depends on none. Any other text is read as far as it goes, and `str` gives it back as it was.
    """

    kind: str
    name: str | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, text: str) -> StageName:
        kind, dot, rest = text.partition(".")
        if not dot:
            return cls(kind)
        if kind not in NAMED:
            found = _SEED.fullmatch(rest)
            return cls(kind, None, int(found[1])) if found else cls(kind, rest)
        name, dot, last = rest.rpartition(".")
        found = _SEED.fullmatch(last) if dot and name else None
        return cls(kind, name, int(found[1])) if found else cls(kind, rest)

    @property
    def plain(self) -> str:
        """Without the seed: the role that such a stage has in others, and the name of the first seed's."""
        return self.kind if self.name is None else f"{self.kind}.{self.name}"

    def of_seed(self, seed: int) -> StageName:
        return replace(self, seed=seed)

    def __str__(self) -> str:
        return self.plain if self.seed is None else f"{self.plain}.s{self.seed}"


def kind_of(stage: str) -> str:
    """The kind that a stage's name begins with."""
    return stage.partition(".")[0]


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

    @property
    def device(self) -> str:
        """Where torch computes, of a stage that has a GPU and of one that has none."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True)
class Stage:
    """name: as in `bam plan`, e.g. `expert.law`; see `StageName`. function: row of the table of stage kinds: `expert`.

    version: raised when the function's meaning changes. inputs: role -> name of the stage that fills it; a role reads
    like `seed`, `data.law`, `expert.law`, whatever the seed is. checks: stages that, where they run too, must have
    ended well before this one starts, though it reads nothing of them: no part of a key.
    """

    name: str
    function: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()
    checks: tuple[str, ...] = ()


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
            for check in stage.checks:
                if check not in seen:
                    raise UsageError(f"stage {stage.name!r}: no earlier stage is named {check!r}, which checks it")
            seen.add(stage.name)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __getitem__(self, name: str) -> Stage:
        if name not in self._named:
            raise UsageError(f"no stage named {name!r}: {nearest(name, self._named)}")
        return self._named[name]

    def __contains__(self, name: str) -> bool:
        return name in self._named

    @cached_property
    def _named(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.stages}
