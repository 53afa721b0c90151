"""Names, numbers and times of a lineage as people read them. Pure; names may come from strangers.

Invariant: no text that leaves here moves a terminal's cursor, changes its colours or reverses what is beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from bam_core.graph.key import key12

_MAY_BE_WIDE = re.compile("[^\\x00-\\x7f│├└─…]")
_LAST_YEAR_S = 253402300799.0  # 9999-12-31T23:59:59Z


def printable(text: str) -> str:
    """`text` on one line; control characters, and those that turn the direction of writing, are replaced."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def width(text: str) -> int:
    """Columns that a terminal gives to `text`."""
    if _MAY_BE_WIDE.search(text) is None:
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if _is_wide(char) else 1 for char in text)


def clip(text: str, columns: int) -> str:
    """`text`, or as much of its start as fits with a `…` after it."""
    if width(text) <= columns:
        return text
    kept, used = [], 1
    for char in text:
        used += width(char)
        if used > columns:
            break
        kept.append(char)
    return "".join(kept) + "…" if columns > 0 else ""


def listed(names: Sequence[str], columns: int) -> str:
    """`a, b and 3 more`: as many names as fit."""
    for kept in range(min(len(names), columns // 3 + 1), 0, -1):
        more = f" and {len(names) - kept} more" if kept < len(names) else ""
        text = ", ".join(names[:kept]) + more
        if width(text) <= columns:
            return text
    return clip(f"{len(names)} artifacts", columns)


def short(node: tuple[str, str]) -> str:
    """`stage@key12`."""
    return printable(f"{node[0]}@{key12(node[1])}")


def count(number: float) -> str:
    """1234567 -> `1.23M`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.9995:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}" if isinstance(number, float) and not number.is_integer() else str(int(number))


def size(n_bytes: int) -> str:
    """1536 -> `1.5 KiB`."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """75.2 -> `1m 15s`; under ten seconds with one decimal."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def when(epoch: float) -> str:
    """`2026-07-27 14:03`, in UTC; empty for what no calendar has."""
    return _utc(epoch).strftime("%Y-%m-%d %H:%M") if _has_date(epoch) else ""


def iso(epoch: float) -> str:
    """RFC 3339 in UTC with milliseconds; the epoch's start for what no calendar has."""
    moment = _utc(epoch if _has_date(epoch) else 0.0)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _has_date(epoch: float) -> bool:
    return 0 <= epoch <= _LAST_YEAR_S


def _utc(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"
