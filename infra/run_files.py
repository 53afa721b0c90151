"""`runs/<run>.json` of a store: what each `bam run` asked for and used (`bam_core.graph.runs`)."""

from __future__ import annotations

import contextlib
import json

from bam_core.errors import ArtifactDamaged
from bam_core.graph.runs import RUN_NAME, Run
from infra.storage import Storage

FOLDER = "runs"


class RunFiles:
    """The runs on record in one store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write(self, run: Run) -> None:
        """Again for the same run, it replaces what was written. The order of stages and domains is kept."""
        self._storage.write_atomic(_path(run.name), json.dumps(run.to_json(), indent=1).encode())

    def read(self, name: str) -> Run | None:
        """The run of this name, if there is one and it can be read."""
        if not RUN_NAME.fullmatch(name):
            return None
        return _readable(self._storage.read(_path(name)), f"{name}.json")

    def all(self) -> list[Run]:
        """Every readable run, the one that started last at the end."""
        names = [name for name in self._storage.sizes(FOLDER) if name.endswith(".json") and "/" not in name]
        read = self._storage.read_many([f"{FOLDER}/{name}" for name in names])
        runs = [run for name, data in zip(names, read, strict=True) if (run := _readable(data, name)) is not None]
        return sorted(runs, key=lambda run: (run.started, run.name))

    def remove(self, name: str) -> None:
        self._storage.remove(_path(name))


def _path(name: str) -> str:
    assert RUN_NAME.fullmatch(name), f"no run is named {name!r}"
    return f"{FOLDER}/{name}.json"


def _readable(data: bytes | None, file: str) -> Run | None:
    """The run in `file`, if it is one and belongs there."""
    with contextlib.suppress(ArtifactDamaged, ValueError):
        run = None if data is None else Run.from_json(json.loads(data), file)
        if run is not None and file == f"{run.name}.json" and RUN_NAME.fullmatch(run.name):
            return run
    return None
