"""Which stages are asked for: set algebra over stage names, the same in whatever order the options are given.

`only` = exactly these; `from_` = these and all that is built from them; `until` = these and all they are
built from. Several options intersect. Names may be shell globs: `expert.*`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bam_core.errors import UsageError, nearest
from bam_core.graph.stage import Pipeline


@dataclass(frozen=True)
class Selection:
    """An empty option does not restrict. force: what runs again even if done, where it is selected."""

    only: tuple[str, ...] = ()
    from_: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    force: tuple[str, ...] = ()

    def stages(self, pipeline: Pipeline) -> frozenset[str]:
        """The selected names. Raises UsageError for a name that means nothing, and when nothing is left."""
        selected = frozenset(stage.name for stage in pipeline)
        if self.only:
            selected &= _named(self.only, "--only", pipeline)
        if self.from_:
            selected &= descendants(pipeline, _named(self.from_, "--from", pipeline))
        if self.until:
            selected &= ancestors(pipeline, _named(self.until, "--until", pipeline))
        if not selected:
            raise UsageError("no stage is in all of --only, --from and --until: they intersect to nothing")
        return selected

    def forced(self, pipeline: Pipeline) -> frozenset[str]:
        """The selected names that must run. Raises UsageError as `stages` does."""
        return _named(self.force, "--force", pipeline) & self.stages(pipeline)


def ancestors(pipeline: Pipeline, names: Iterable[str]) -> frozenset[str]:
    """The names and all they are built from."""
    found = set(names)
    for stage in reversed(pipeline.stages):
        if stage.name in found:
            found |= set(stage.inputs.values())
    return frozenset(found)


def descendants(pipeline: Pipeline, names: Iterable[str]) -> frozenset[str]:
    """The names and all that is built from them."""
    found = set(names)
    for stage in pipeline:
        if found & set(stage.inputs.values()):
            found.add(stage.name)
    return frozenset(found)


def _named(patterns: Iterable[str], option: str, pipeline: Pipeline) -> frozenset[str]:
    known = [stage.name for stage in pipeline]
    named: set[str] = set()
    for pattern in patterns:
        matches = {name for name in known if fnmatchcase(name, pattern)}
        if not matches:
            raise UsageError(
                f"{option} {pattern}: no stage of {pipeline.name!r} has this name; {nearest(pattern, known)}"
            )
        named |= matches
    return frozenset(named)
