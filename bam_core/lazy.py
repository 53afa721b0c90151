"""Names of a package that are imported when they are first asked for, so that importing the package costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    space: dict[str, Any], where: Mapping[str, tuple[str, str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`. space: its globals. where: name -> module and the name there."""

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {space['__name__']!r} has no attribute {name!r}")
        module, attribute = where[name]
        space[name] = value = getattr(import_module(module), attribute)
        return value

    return get, lambda: sorted({*space, *where})
