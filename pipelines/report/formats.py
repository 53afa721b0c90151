"""Numbers and names as a person reads them. The CSV tables keep the inputs' own digits instead."""

from __future__ import annotations

import re
import unicodedata
from math import isfinite, isinf
from typing import Any, TypeGuard

DASH = MISSING = "\u2013"
MINUS = "\u2212"
TIMES = "\u00d7"
_COUNT_UNITS = ("", "k", "M", "B", "T")
_FLOP_UNITS = ("", "k", "M", "G", "T", "P", "E")
_BIDI_CONTROLS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a finite number (a bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def number(value: Any, show_finite: Any) -> str:
    """`show_finite(value)`, or what to print when the value is absent, not a number or infinite."""
    if is_number(value):
        return str(show_finite(value)).replace("-", MINUS)
    if isinstance(value, float):
        return ("∞" if value > 0 else f"{MINUS}∞") if isinf(value) else "NaN"
    return MISSING


def perplexity(value: Any) -> str:
    """Two decimals, as in the papers; whole numbers from a thousand up."""
    return number(value, lambda x: f"{x:.2f}" if abs(x) < 1000 else f"{x:,.0f}" if abs(x) < 1e7 else f"{x:.2e}")


def bits(value: Any) -> str:
    return number(value, lambda x: f"{x:.3f}")


def percent(value: Any) -> str:
    """A fraction of 1: `42%`."""
    return number(value, lambda x: f"{100 * x:.0f}%")


def gain(value: Any) -> str:
    """A relative change, which is 0 for none: `+3.1%`; from ten times as much on, times it."""
    if is_number(value) and value >= 9:
        return f"{TIMES}{short(1 + value)}"
    return change(1 + value, 1) if is_number(value) else number(value, str)


def short(value: Any) -> str:
    """Two decimals, or three digits where it is large."""
    return number(value, lambda x: f"{x:.2f}" if abs(x) < 10 else f"{x:.3g}")


def setting(value: Any) -> str:
    """A number of a recipe, as a person would write it there."""
    return number(value, lambda x: f"{x:g}")


def tiny(value: Any) -> str:
    return number(value, lambda x: f"{x:.1e}" if x else "0")


def count(value: Any) -> str:
    """Parameters or tokens: `663M`, `1.05M`, `512`."""
    return number(value, lambda x: _scaled(x, _COUNT_UNITS))


def flops(value: Any) -> str:
    """FLOPs with decimal prefixes: `48.3M`, `12.1T`."""
    return number(value, lambda x: _scaled(x, _FLOP_UNITS))


def tick(value: float) -> str:
    """An axis label: as short as the value allows."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.10g}".replace("-", MINUS)


def duration(value: Any) -> str:
    """Seconds as `0.4 s`, `42 s`, `3 min 05 s`, `2 h 07 min`."""
    return number(value, _duration)


def change(value: float, reference: float) -> str:
    """How far `value` is from `reference`, in percent with a sign: `−9.5%`."""
    percent = f"{100 * (value / reference - 1):+.1f}%"
    return {"+0.0%": "0.0%", "-0.0%": "0.0%"}.get(percent, percent).replace("-", MINUS)


def exact(value: Any) -> str:
    """All digits, for a tooltip; empty where the short form already says it all."""
    return f"{value:,}" if is_number(value) and abs(value) >= 1000 else ""


def order(value: Any) -> str:
    """A number as JavaScript reads it, all digits; empty for what is none."""
    if is_number(value):
        return repr(value)
    return ("Infinity" if value > 0 else "-Infinity") if isinstance(value, float) and isinf(value) else ""


def clean(name: Any) -> str:
    """A name without characters that XML forbids or that reorder the text around them."""
    text = str(name)
    if text.isascii() and text.isprintable():  # nearly all are
        return text
    return "".join("\ufffd" if _is_unsafe(char) else char for char in text)


def file_name(name: Any) -> str:
    """A name that is one safe path component on every file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(name)).lstrip(".")[:100] or "_"


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or char in _BIDI_CONTROLS or char in "\ufffe\uffff"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three significant digits and a unit."""
    step = 0
    scaled = float(value)
    while abs(scaled) >= 999.5 and step < len(units) - 1:
        scaled /= 1000
        step += 1
    if step == 0 and scaled == int(scaled):
        return f"{int(scaled)}"
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{digits}f}{units[step]}"


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
