"""`pins/<name>.json` of a store: what stays because somebody said so (`bam_core.graph.pins`)."""

from __future__ import annotations

import contextlib
import json

from bam_core.errors import ArtifactDamaged, UsageError
from bam_core.graph.pins import PIN_NAME, Pin
from infra.storage import Storage

FOLDER = "pins"


class PinFiles:
    """The pins of one store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write(self, pin: Pin) -> None:
        """Again under the same name, it replaces what was written."""
        self._storage.write_atomic(_path(pin.name), json.dumps(pin.to_json(), indent=1, sort_keys=True).encode())

    def get(self, name: str) -> Pin | None:
        """The pin of this name. Raises ArtifactDamaged if it cannot be read as one."""
        data = self._storage.read(_path(name))
        return None if data is None else _parsed(data, f"{name}.json")

    def all(self) -> list[Pin]:
        """Every readable pin, by name."""
        names = sorted(name for name in self._storage.sizes(FOLDER) if name.endswith(".json") and "/" not in name)
        read = self._storage.read_many([f"{FOLDER}/{name}" for name in names])
        pins = []
        for name, data in zip(names, read, strict=True):
            with contextlib.suppress(ArtifactDamaged):
                if data is not None:
                    pins.append(_parsed(data, name))
        return pins

    def remove(self, name: str) -> bool:
        """Whether there was one."""
        is_there = self._storage.read(_path(name)) is not None
        self._storage.remove(_path(name))
        return is_there


def _path(name: str) -> str:
    """Raises UsageError for a name that leaves the folder or that no file can have."""
    if not PIN_NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a pin's name: at most 200 letters, digits, '-', '_', '.', no '.' first")
    return f"{FOLDER}/{name}.json"


def _parsed(data: bytes, file: str) -> Pin:
    name = file.removesuffix(".json")
    if not PIN_NAME.fullmatch(name):
        raise ArtifactDamaged(f"{FOLDER}/{file}: its name is no pin's")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ArtifactDamaged(f"{FOLDER}/{file}: not JSON ({error})") from error
    return Pin.from_json(name, content, f"{FOLDER}/{file}")
