"""What the configs share: checks of single fields, and a value's JSON without what is at its default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from math import isfinite
from typing import Any

from bam_core import plugins
from bam_core.errors import Problem, nearest


def choice(path: str, value: object, allowed: tuple[str, ...]) -> Iterator[Problem]:
    if value not in allowed:
        yield Problem(path, value, f"must be one of {', '.join(allowed)}", nearest(str(value), allowed))


def choice_or_plugin(path: str, value: object, allowed: tuple[str, ...], group: str) -> Iterator[Problem]:
    """As `choice`, or the name of a plug-in of this group that is installed."""
    if isinstance(value, str) and plugins.is_plugin_name(value):
        yield from plugins.problems(path, group, value)
    else:
        yield from choice(path, value, allowed)


def positive_ints(config: object, names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield Problem(name, value, "must be a whole number of at least 1")


def booleans(config: object, names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            yield Problem(name, getattr(config, name), "must be true or false")


def is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0


def identity(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default, nested ones likewise.

    Two configs that mean the same have the same identity, also after a field was added to their class. A changed
    default changes the meaning of old identities: raise the version of the stages that read them.
    """
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        if field.default_factory is not MISSING and value == field.default_factory():
            continue
        found[field.name] = identity(value) if is_dataclass(value) else asdict_value(value)
    return found


def asdict_value(value: Any) -> Any:
    """A field's value as `asdict` would give it."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
