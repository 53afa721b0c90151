"""Ages, sizes and numbers as people type them: `30m`, `2d`, `1.5GiB`, `0.7`."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

import click

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Age(click.ParamType[float]):
    """Seconds as a float."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _NUMBER.fullmatch(str(value).strip())
        if found is None or found[2].lower() not in _SECONDS:
            self.fail(f"{value!r}: a number and s, m, h, d or w, such as 30m, 2d or 0", param, ctx)
        return float(found[1]) * _SECONDS[found[2].lower()]


class Size(click.ParamType[int]):
    """Bytes; K, M, G and T are powers of 1024, with or without `iB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _NUMBER.fullmatch(str(value).strip())
        unit = "" if found is None else re.sub(r"(?<=.)i?b$", "", found[2].lower())
        if found is None or unit not in _BYTES:
            self.fail(f"{value!r}: a number and K, M, G or T, such as 100M or 1.5GiB", param, ctx)
        return int(float(found[1]) * 1024 ** _BYTES[unit])


class IntRange(click.IntRange):
    """As click's; what is no number at all is told in plain words."""

    name = "integer"


class FloatRange(click.FloatRange):
    """As click's, of finite numbers."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = super().convert(value, param, ctx)
        if not isfinite(found):  # NaN is in every range
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


AGE, SIZE = Age(), Size()
