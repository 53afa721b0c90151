"""Numbers as people write them in a recipe: `2M`, `100k`, `1.5B`, `2e-3`, `4096`.

YAML reads `2M` as text and `2.0e+6` as a float; both mean a count here. A truth value is never a number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

MAX_COUNT = 2**63 - 1
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT = re.compile(r"([+-]?\d[\d_]{0,400}(?:\.\d{0,400})?(?:[eE][+-]?\d{1,3})?)([kMBT]?)")
_COUNT_EXPECTED = "must be a whole number, such as 4096, 100k or 2M"


def parse_count(value: Any) -> int:
    """A whole number from an int, a float without fraction, or text with k, M, B or T. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(_COUNT_EXPECTED)
    match = _COUNT.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(_COUNT_EXPECTED)
    number = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2]]
    if number != number.to_integral_value():
        raise ValueError(_COUNT_EXPECTED)
    if abs(number) > MAX_COUNT:
        raise ValueError(f"must be at most {MAX_COUNT}")
    return int(number)


def parse_number(value: Any) -> float:
    """A number from an int, a float or text such as `2e-3`. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number, such as 0.1 or 2e-3")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a number, such as 0.1 or 2e-3") from error


def parse_workers(value: Any) -> tuple[int, int]:
    """Fewest and most processes of a worker group, from a count or a list of the two. Raises ValueError."""
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError("must be a whole number, or [fewest, most]")
        return parse_count(value[0]), parse_count(value[1])
    return (parse_count(value),) * 2


_COUNT_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9][0-9_.]*(e[0-9]+)?[kMBT]?$"}]
}
Count = Annotated[
    int,
    BeforeValidator(parse_count),
    WithJsonSchema(_COUNT_SCHEMA),
]
"""A whole number; its range is checked with what it counts."""

Workers = Annotated[
    tuple[int, int],
    BeforeValidator(parse_workers),
    WithJsonSchema({"anyOf": [_COUNT_SCHEMA, {"type": "array", "items": _COUNT_SCHEMA, "minItems": 2, "maxItems": 2}]}),
]
"""(fewest, most) processes of a worker group: equal unless it is elastic."""


def parse_share(value: Any) -> tuple[int, int]:
    """Which of how many parts, from a list of the two. Raises ValueError."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be [i, n], the i-th of n parts, such as [1, 2]")
    return parse_count(value[0]), parse_count(value[1])


PartOf = Annotated[
    tuple[int, int],
    BeforeValidator(parse_share),
    WithJsonSchema({"type": "array", "items": _COUNT_SCHEMA, "minItems": 2, "maxItems": 2}),
]
"""(i, n): the i-th of n parts, from 1."""

Number = Annotated[
    float,
    BeforeValidator(parse_number),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[0-9.]+e[+-]?[0-9]+$"}]}),
]

Text = Annotated[str, Field(min_length=1)]
Dtype = Literal["bf16", "fp32", "fp64"]
