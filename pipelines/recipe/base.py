"""What every group of keys is: frozen, and patient with mistakes.

A wrong value must not hide the next one. So unknown keys are kept (`extra="allow"`) and reported by `checks.py`, and
under `LENIENT` a wrong value becomes None, a hole that the checks step over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, WrapValidator, field_validator

LENIENT = "lenient"
TAG = "kind:"
"""Begins the names by which pydantic tells members of a union apart: no key of a recipe has a colon."""
IMPORT: Literal["import"] = "import"
"""The key that says where something is that need not be made."""


def _or_hole(value: Any, handler: Any, info: ValidationInfo) -> Any:
    try:
        return handler(value)
    except ValidationError:
        if info.context == LENIENT:
            return None
        raise


T = TypeVar("T")
Named = dict[str, Annotated[T, WrapValidator(_or_hole)]]
"""Names to parts; one wrong part leaves the others standing."""
Listed = list[Annotated[T, WrapValidator(_or_hole)]]
"""Parts in an order, likewise."""


def maybe(value: T) -> T | None:
    """The value, or the hole that is there in its place: no field's type says that there may be one."""
    return value


class Part(BaseModel):
    """A frozen group of keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        allow_inf_nan=True,
        json_schema_extra={"additionalProperties": False},
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _leave_a_hole(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        return _or_hole(value, handler, info)

    def to_dict(self) -> dict[str, Any]:
        """The keys of this part and their values; unknown keys left out."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def is_import(value: Any, part: type[Part]) -> bool:
    """Whether a value under a key, or what it became, says where something is that need not be made."""
    return IMPORT in value if isinstance(value, Mapping) else isinstance(value, part)
