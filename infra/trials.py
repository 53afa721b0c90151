"""What is known of a search's trials, one small JSON file each, beside the checkpoints of those under way.

A search that was killed reads it, so that no trial that has ended runs again. Gone with the checkpoints when the stage
has committed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from bam_core.errors import StoreError
from bam_core.protocols import Metrics, TrialEnd
from infra.storage import Storage


def quiet(step: int, metrics: Metrics) -> None:
    """For `log`: the figures of a trial are not those of the search."""


@dataclass(frozen=True)
class Note:
    """losses: at the rungs that were reached. status: None of a trial that has not ended. seconds: spent on it."""

    losses: list[float] = field(default_factory=list)
    status: str | None = None
    seconds: float = 0.0

    def end(self, name: str) -> TrialEnd:
        assert self.status is not None, f"{name} has not ended"
        return TrialEnd(name, self.status, tuple(self.losses), self.seconds)  # type: ignore[arg-type]


class Notes:
    """uri: the folder of the search."""

    def __init__(self, uri: str) -> None:
        self._storage = Storage(uri)
        self._notes: dict[str, Note] = {}

    def of(self, name: str) -> Note:
        if name not in self._notes:
            self._notes[name] = self._read(name)
        return self._notes[name]

    def judged(self, name: str, losses: Sequence[float], seconds: float) -> None:
        """A trial has reached a rung."""
        self._write(name, Note(list(losses), None, seconds))

    def ended(self, name: str, status: str, losses: Sequence[float], seconds: float) -> None:
        """A trial is over: what it has saved goes."""
        self._write(name, Note(list(losses), status, seconds))
        with suppress(StoreError):  # what is left goes with the stage's checkpoints
            self._storage.remove_tree(name)

    def _read(self, name: str) -> Note:
        data = self._storage.read(f"notes/{name}.json")
        return Note() if data is None else replace(Note(), **json.loads(data))

    def _write(self, name: str, note: Note) -> None:
        self._notes[name] = note
        self._storage.write_atomic(f"notes/{name}.json", json.dumps(asdict(note)).encode())
