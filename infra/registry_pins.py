"""What a store keeps of MLflow's model registry: a pin for each version, so that `bam gc` keeps it with MLflow away.

    pins/registry-<model>-<version>.json, its `why`: {"model", "version", "digest", "aliases"} as JSON

Files decide here too: `bam lineage sync` registers again what a pin names and MLflow has lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bam_core.graph.pins import Pin, pin_name
from infra.pin_files import PinFiles

REGISTRY = "registry"


@dataclass(frozen=True)
class Promoted:
    """One version of a registered model, and the artifact that it is. created: seconds since the epoch."""

    model: str
    version: int
    stage: str
    key: str
    digest: str
    created: float
    aliases: tuple[str, ...] = ()

    @property
    def pin_name(self) -> str:
        """Safe whatever the model's name is, and another one for another model."""
        return pin_name(REGISTRY, self.model, str(self.version))

    def write(self, pins: PinFiles) -> None:
        why = {"model": self.model, "version": self.version, "digest": self.digest, "aliases": list(self.aliases)}
        words = json.dumps(why, sort_keys=True, ensure_ascii=False)
        pins.write(Pin(self.pin_name, self.stage, self.key, words, self.created))


def promoted(pins: PinFiles) -> list[Promoted]:
    """What pins say was registered, by model and version. What was pinned by hand, or is damaged, is passed over."""
    found = [made for pin in pins.all() if (made := _promoted(pin)) is not None]
    return sorted(found, key=lambda made: (made.model, made.version))


def note_aliases(pins: PinFiles, model: str, aliases: Mapping[str, str]) -> None:
    """Write to this model's pins which aliases each version has now. aliases: alias -> version."""
    for made in promoted(pins):
        now = tuple(sorted(alias for alias, version in aliases.items() if version == str(made.version)))
        if made.model == model and now != made.aliases:
            replace(made, aliases=now).write(pins)


def _promoted(pin: Pin) -> Promoted | None:
    if not pin.name.startswith(f"{REGISTRY}-"):
        return None
    try:
        why = json.loads(pin.why)
        aliases = tuple(str(alias) for alias in why["aliases"])
        made = Promoted(
            str(why["model"]), int(why["version"]), pin.stage, pin.key, str(why["digest"]), pin.created, aliases
        )
    except (ValueError, KeyError, TypeError):
        return None
    return made if made.pin_name == pin.name else None
