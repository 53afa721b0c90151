"""One document laid over another, and where each value of the result was said. Pure: no file is read.

Mappings are merged key by key, in the order of the lower one with new keys after it. Anything else replaces what was
there, as do a mapping of another `kind` and one of `ONE_VALUE`; null takes a key away.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.recipe.document import join

ONE_VALUE = re.compile(
    r"phases\.[^.]+\.data|dense\.data|distil\.[^.]+\.data|(variants\.[^.]+\.)?(train\.data|merge\.weights)|tune\.[^.]+\.search\..+"
)
"""Mappings that say one thing together, such as shares that sum to 1."""
EXCLUSIVE = (("seed", "seeds"),)
"""Top-level keys of which a recipe has one: the one that was said in the place that counts more."""


@dataclass
class Layered:
    """A document that was laid together. origins: dotted key path -> the place that said it last, with all in it."""

    document: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Mapping[str, Any], place: str) -> Layered:
        return cls(unshared(document), {join("", key): place for key in document})

    def lay(self, over: Mapping[str, Any], place: str, whole: Collection[str] = ()) -> None:
        """Lay `over` on the document. whole: key paths that are not merged but replaced."""
        last_said(self.document, over.keys())
        self._lay(self.document, over, "", place, whole)

    def _lay(
        self, lower: dict[str, Any], over: Mapping[str, Any], path: str, place: str, whole: Collection[str]
    ) -> None:
        for key, value in over.items():
            here = join(path, key)
            inner = lower.get(key)
            is_whole = here in whole or ONE_VALUE.fullmatch(here)
            if isinstance(value, Mapping) and isinstance(inner, dict) and not is_whole and _same_kind(inner, value):
                self._lay(inner, value, here, place, whole)
                continue
            self.tell(here, place, had_parts=isinstance(inner, dict))
            if value is None:
                lower.pop(key, None)
            else:
                lower[key] = _without_nulls(value)

    def tell(self, path: str, place: str, *, had_parts: bool = True) -> None:
        """That the value at this key path, with all in it, was said at a place, whatever was said before."""
        if had_parts:
            self.origins = {there: known for there, known in self.origins.items() if not is_under(there, path)}
        self.origins[path] = place

    def said_in(self, path: str) -> str | None:
        """Where the value at the path, or what it is part of, was said."""
        over = [there for there in self.origins if is_under(path, there)]
        return self.origins[max(over, key=len)] if over else None


def laid(lower: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `lower`."""
    result = Layered(unshared(lower))
    result.lay(over, "")
    return result.document


def last_said(document: dict[str, Any], said: Collection[str]) -> None:
    """Take away what excludes a key that is now said."""
    for pair in EXCLUSIVE:
        for one, other in (pair, pair[::-1]):
            if one in said and other not in said:
                document.pop(other, None)


def is_under(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}.")


def unshared(value: Any) -> Any:
    """A copy in which nothing is shared: an override of one use of a YAML alias must not reach the other."""
    if isinstance(value, Mapping):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value


def _same_kind(lower: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Keys of another kind of source or tokenizer mean nothing to the new one."""
    return "kind" not in over or lower.get("kind") == over["kind"]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return unshared(value)
