"""Text that anybody wrote, made safe for a card: for YAML front matter, for Markdown, and for the HTML made of it.

Invariant: whatever the text, it stays on one line in the cell or paragraph where it was put and is read there as text.
YAML is written by hand, since the core imports no YAML library: a string that is not plain is quoted as in JSON, which
YAML reads alike once characters that it does not allow are gone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from math import isfinite

_BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NOT_IN_YAML = frozenset("\ufeff\ufffe\uffff")
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<!\S)#")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_./+][A-Za-z0-9]+)*")
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def one_line(value: object) -> str:
    """The text without line breaks, control characters and what turns the direction of writing."""
    shown = "".join(map(_shown, str(value)))
    return " ".join(shown.split())


def _shown(character: str) -> str:
    if unicodedata.category(character) == "Cs" or character in _NOT_IN_YAML:
        return "\ufffd"
    return " " if unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in _BIDI else character


def escaped(value: object) -> str:
    """Markdown that shows this text."""
    line = re.sub(r"[&<>]", lambda found: _ENTITIES[found[0]], one_line(value))
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", line)


def code(value: object) -> str:
    """A code span that shows this text; empty for an empty one."""
    line = one_line(value)
    if "\\|" in line:  # in a table no code span can show that
        return escaped(line)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def code_block(lines: Sequence[str], language: str = "") -> str:
    """A fenced block; a line in it is shown as it is."""
    shown = [one_line(line) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *shown, fence])


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table of cells that are Markdown already; `right` are the columns of numbers."""
    line = ["---:" if column in right else "---" for column in range(len(headers))]
    return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in (headers, line, *rows))


def pairs(rows: Mapping[str, str]) -> str:
    """A table of two columns without headers: names, and values that are Markdown already."""
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _cell(markdown: str) -> str:
    """A bar ends a cell, in a code span too."""
    return re.sub(r"(?<!\\)\|", r"\\|", markdown)


def front_matter(data: Mapping[str, object]) -> str:
    """The YAML block at the top of a card."""
    return "\n".join(["---", *_yaml(data), "---"])


def _yaml(value: object) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for name, item in value.items() for line in _entry(f"{_scalar(name)}:", item)]
    if isinstance(value, list | tuple) and value:
        items = [_yaml(item) for item in value]
        return [f"{'- ' if number == 0 else '  '}{line}" for item in items for number, line in enumerate(item)]
    return [_scalar(value)]


def _entry(head: str, item: object) -> list[str]:
    lines = _yaml(item)
    if not isinstance(item, Mapping | list | tuple) or not item:
        return [f"{head} {lines[0]}"]
    return [head, *((f"  {line}" for line in lines) if isinstance(item, Mapping) else lines)]


def _scalar(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        assert isfinite(value), f"no figure for a card: {value}"
        digits, e, power = repr(value).partition("e")
        return f"{digits}.0e{power}" if e and "." not in digits else repr(value)  # YAML 1.1 takes 1e-05 for text
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping | list | tuple):
        return "{}" if isinstance(value, Mapping) else "[]"
    line = one_line(value)
    is_plain = _PLAIN.fullmatch(line) and line.lower() not in _YAML_WORDS
    return line if is_plain else json.dumps(line, ensure_ascii=False)
