"""What identifies a stage's result: a hash over everything that defines it and nothing else.

Invariant: equal meaning, equal key. The order of a mapping's entries, tuple or list, and `1` or `1.0`
(numbers that are equal) make no difference; any other change of any leaf does. A value without a stable
form raises instead of being stringified, so that two runs can never share a key by accident or miss it by
chance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from bam_core.errors import BamError, UsageError, nearest
from bam_core.graph.stage import Pipeline, Stage

KEY_SCHEMA = 1
"""Raised when the payload's form changes; every key changes with it."""

KEY12 = 12
"""Hex digits of a key in paths and messages: 48 bits, so no collision to expect among a stage's artifacts."""

CHANGES_NAMED = 3


class UnstableValue(BamError):
    """A value in a stage's configuration that has no stable written form."""


def canonical_json(value: Any) -> str:
    """Write `value` as the one JSON text that all its equals have. Raises UnstableValue, naming the path."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def stage_payload(stage: Stage, input_keys: Mapping[str, str]) -> dict[str, Any]:
    """All that defines the stage's result, as plain JSON. input_keys: role -> key of what fills it."""
    assert set(input_keys) == set(stage.inputs), f"{stage.name}: {sorted(input_keys)} != {sorted(stage.inputs)}"
    payload = {
        "schema": KEY_SCHEMA,
        "stage": stage.name,
        "function": stage.function,
        "version": stage.version,
        "config": stage.config,
        "inputs": input_keys,
    }
    plain: dict[str, Any] = _plain(payload)
    return plain


def stage_key(payload: Mapping[str, Any]) -> str:
    """Hash a payload: sha256, 64 hex digits."""
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()


def key12(key: str) -> str:
    return key[:KEY12]


Overrides = Mapping[tuple[str, str], str]
"""(stage, role) -> key of what stands in for what the pipeline would make (`--input role=REF`)."""


def input_keys(stage: Stage, keys: Mapping[str, str], overrides: Overrides) -> dict[str, str]:
    """Role -> key of what fills it, overrides first."""
    return {
        role: overrides[stage.name, role] if (stage.name, role) in overrides else keys[parent]
        for role, parent in stage.inputs.items()
    }


def pipeline_keys(pipeline: Pipeline, overrides: Overrides | None = None) -> dict[str, str]:
    """Every stage's key. Raises UsageError for an override of a stage or role that does not exist."""
    overrides = overrides or {}
    for name, role in overrides:
        roles = pipeline[name].inputs
        if role not in roles:
            raise UsageError(f"stage {name!r} has no input {role!r}: {nearest(role, roles)}")
    keys: dict[str, str] = {}
    for stage in pipeline:
        keys[stage.name] = stage_key(stage_payload(stage, input_keys(stage, keys, overrides)))
    return keys


@dataclass(frozen=True)
class Change:
    """One leaf in which two payloads differ. `Change.ABSENT` stands for the side that lacks it."""

    path: tuple[str, ...]
    old: Any
    new: Any

    ABSENT = object()

    @property
    def cause(self) -> str:
        """`config`, `data` (a source's content), `input` or `code`."""
        match self.path:
            case ("config", *_, "digest"):
                return "data"
            case ("config" | "inputs", *_):
                return {"config": "config", "inputs": "input"}[self.path[0]]
            case _:
                return "code"

    def __str__(self) -> str:
        """`phase.lr 0.001 -> 0.002`; values too long to read are left out."""
        area, *rest = self.path
        name = {"config": ".".join(rest), "inputs": f"input {'.'.join(rest)}"}.get(area, ".".join(self.path))
        if self.old is Change.ABSENT:
            return f"{name} added" + _short(": {}", self.new)
        if self.new is Change.ABSENT:
            return f"{name} removed" + _short(" (was {})", self.old)
        return f"{name} " + (_short("{} -> {}", self.old, self.new) or "changed")


def payload_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The leaves in which two payloads differ: code first, then configuration, data and inputs."""
    order = ("code", "config", "data", "input")
    return sorted(_changes(old, new, ()), key=lambda change: (order.index(change.cause), change.path))


def describe_changes(changes: list[Change]) -> str:
    """The first few changes in words."""
    named = ", ".join(map(str, changes[:CHANGES_NAMED]))
    more = len(changes) - CHANGES_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _plain(value: Any, path: str = "") -> Any:
    """The value made of dict, list, str, int, float, bool and None only; a whole float becomes its int."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float() if isfinite(value):
            return int(value) if value.is_integer() else float(value)
        case Mapping():
            for name in value:
                if not isinstance(name, str):
                    raise UnstableValue(f"{path or 'value'}: the key {name!r} is not a string")
            return {str(name): _plain(item, f"{path}.{name}" if path else name) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise UnstableValue(
        f"{path or 'value'}: {value!r} ({type(value).__name__}) has no stable form; "
        "use strings, finite numbers, booleans, null, lists and mappings"
    )


def _changes(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _changes(old.get(name, Change.ABSENT), new.get(name, Change.ABSENT), (*path, name))
    elif old is Change.ABSENT or new is Change.ABSENT or canonical_json(old) != canonical_json(new):
        yield Change(path, old, new)


def _short(form: str, *values: Any) -> str:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return form.format(*texts) if all(len(text) <= 24 and text.isprintable() for text in texts) else ""
