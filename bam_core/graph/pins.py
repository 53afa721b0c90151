"""A person's or the registry's wish that an artifact stays: `pins/<name>.json`. `bam gc` keeps it and its ancestors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bam_core.errors import ArtifactDamaged

PIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Pin:
    """name: of the pin, not of the artifact. key: whole. why: for people. created: seconds since the epoch."""

    name: str
    stage: str
    key: str
    why: str
    created: float

    @property
    def registered(self) -> str | None:
        """`MODEL version 3`, if the model registry has made it (its `why` is JSON); else None."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            why = json.loads(self.why)
            aliases = f" ({', '.join(map(str, why['aliases']))})" if why.get("aliases") else ""
            return f"{why['model']} version {why['version']}{aliases}"
        return None

    @property
    def words(self) -> str:
        """Why it is there, for people."""
        return f"registered as {self.registered}" if self.registered else self.why

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "key": self.key, "why": self.why, "created": self.created}

    @classmethod
    def from_json(cls, name: str, data: Any, where: str) -> Pin:
        """Raises ArtifactDamaged, naming `where`."""
        if not isinstance(data, Mapping) or not all(isinstance(data.get(text), str) for text in ("stage", "key")):
            raise ArtifactDamaged(f"{where}: a pin is an object with the texts `stage` and `key`")
        try:
            return cls(name, data["stage"], data["key"], str(data.get("why", "")), float(data.get("created", 0.0)))
        except (TypeError, ValueError) as error:
            raise ArtifactDamaged(f"{where}: not a pin of this version of bam ({error})") from error


def pin_name(*parts: str) -> str:
    """`("registry", "my model", "3")` -> a name that a file can have; other parts give another one."""
    text = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", text).lstrip(".")
    if name == text and len(name) <= 180:
        return name
    return f"{name[:180]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")
