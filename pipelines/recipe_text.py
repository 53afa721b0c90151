"""Pieces of a recipe that is written by a program: scalars, mappings, comments, names. Pure.

Invariant: the recipe's own reader gives back what was written, whatever text it is: `true`, `.5` and `1_000` come back
as text, and so does a path with quotes, colons or control characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bam_core.errors import InvalidInput
from bam_core.graph.words import printable
from pipelines.recipe.document import parse

WIDTH = 110
_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./~-]*", re.ASCII)


def scalar(text: str) -> str:
    """Text as YAML: plain where it comes back as the same text, else in double quotes."""
    return text if _PLAIN.fullmatch(text) and _comes_back(text) else _quoted(text)


def value(found: Any) -> str:
    """A plain value as YAML on one line."""
    if isinstance(found, Mapping):
        return "{" + ", ".join(f"{scalar(str(key))}: {value(one)}" for key, one in found.items()) + "}"
    if isinstance(found, Sequence) and not isinstance(found, str):
        return "[" + ", ".join(map(value, found)) + "]"
    return scalar(found) if isinstance(found, str) else json.dumps(found)


def comment(text: str, indent: str = "", width: int = WIDTH) -> Iterator[str]:
    """Lines of a comment, wrapped at words."""
    line = f"{indent}#"
    for word in map(printable, text.split()):
        if len(line) + 1 + len(word) > width and line != f"{indent}#":
            yield line
            line = f"{indent}#"
        line += f" {word}"
    yield line


def plain_name(text: str) -> str:
    """What a recipe or domain may be called: of a path or an id of the hub its last part."""
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9_-]+", "-", last.lower()).strip("-_")[:48] or "model"


def _comes_back(text: str) -> bool:
    try:
        found, _ = parse(f"{{a: {text}}}", "")
    except InvalidInput:
        return False
    return bool(found == {"a": text})


def _quoted(text: str) -> str:
    """JSON's quotes, but for characters that YAML takes as an escape only."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escaped(char) for char in shown)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
