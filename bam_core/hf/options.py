"""A public config.json, field by field, with every problem kept until the end.

What a field means when it is left out is what the family's class of `transformers` says, since that is what wrote the
weights. A field that no family reads has no effect there, and none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from bam_core.errors import Problem

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Their names of activations, and ours."""
MISSING = object()


class Options:
    """config.json and the class's defaults. problems: what was wrong with the fields that were asked for."""

    def __init__(self, data: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.data = data
        self.defaults = defaults
        self.problems: list[Problem] = []

    def get(self, name: str) -> Any:
        """The value; null is null also where the default is not."""
        return self.data[name] if name in self.data else self.defaults.get(name)

    def refuse(self, name: str, value: Any, reason: str, remedy: str = "") -> None:
        self.problems.append(Problem(f"config.json.{name}", value, reason, remedy))

    def whole(self, name: str, default: int | None = None) -> int:
        """A size. default: what null stands for."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(name, value, "must be a whole number of at least 1")
            return 1
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
            self.refuse(name, value, "must be a positive number")
            return 1.0
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            self.refuse(name, value, "must be true or false")
        return bool(value)

    def optional(self, name: str) -> float | None:
        return None if self.get(name) is None else self.number(name)

    def activation(self, name: str) -> str:
        value = self.get(name)
        if value not in ACTIVATIONS:
            self.refuse(name, value, f"is no activation that a block here has; those: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS.get(value, "silu") if isinstance(value, str) else "silu"

    def only(self, name: str, wanted: Any, reason: str) -> None:
        """Refuse every other value of a field, null aside."""
        value = self.get(name)
        if value is not None and value != wanted:
            self.refuse(name, value, reason)

    def layer_types(self, n_layers: int) -> list[str] | None:
        """`sliding_attention` or `full_attention` of each layer, if the config says so."""
        types = self.get("layer_types")
        if types is None:
            return None
        known = ("sliding_attention", "full_attention")
        if not isinstance(types, list) or len(types) != n_layers or any(kind not in known for kind in types):
            self.refuse("layer_types", types, f"must be a list of {n_layers}, each {' or '.join(known)}")
            return None
        return types
