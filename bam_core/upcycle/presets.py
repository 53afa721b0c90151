"""Variants by name: the rows of `VARIANTS`, and those that plug-ins bring as a mapping of keys.

Imports no torch: a recipe is read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core import plugins
from bam_core.errors import UsageError, nearest
from bam_core.upcycle.variants import VARIANTS, Variant


def named_variant(name: str) -> Variant:
    """A row of VARIANTS, or a plug-in's variant with the defaults of `Variant`. Raises UsageError."""
    if name in VARIANTS:
        return VARIANTS[name]
    if not plugins.is_plugin_name(name):
        raise UsageError(f"no variant {name!r}: {nearest(name, VARIANTS)}")
    return Variant.from_json({"name": name, **variant_keys(name)})


def variant_keys(name: str) -> dict[str, Any]:
    """What a plug-in's variant says, as the keys under `variants.NAME` of a recipe. Raises UsageError."""
    found: Mapping[str, Any] = plugins.load(plugins.VARIANTS, name, _require_keys)
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in found.items()}


def _require_keys(found: Any) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"must be a mapping of the keys of a variant, not {type(found).__name__}")
    if "name" in found:
        raise ValueError("must have no key `name`: the recipe gives it")
    Variant.from_json({"name": "plugin", **found})
