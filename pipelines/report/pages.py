"""How pages are made: the templates, what all of them know, and the one script, which sorts tables.

A page runs no other script than this: its policy names the script's digest, so what a name smuggles in does nothing.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.report.formats import clean
from pipelines.report.inputs import group
from pipelines.report.svg import TEMPLATES, style_sheet

WIDEST_PHONE = 400
"""A heat map wider than this, in px, scrolls on a phone: shrunk to fit it would be too small to read."""
FEW_DRAWINGS, FEW_ROWS = 8, 40
"""What has more is folded, so that a study of two dozen variants is no longer than one can scroll."""
SHORT_TABLE = 20
"""Rows of a table that is printed on one page."""


def render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(values)


def breakable(name: str) -> Markup:
    """A dotted name that may go on in another line after each dot."""
    return Markup("").join(Markup("{}<wbr>").format(part) for part in re.findall(r"[^.]*\.|[^.]+", name))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"clean": clean, "breakable": breakable}
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    made.globals |= {
        "is_trained": lambda heat_map: group(heat_map.model) != "mix",
        "widest_phone": WIDEST_PHONE,
        "few_drawings": FEW_DRAWINGS,
        "few_rows": FEW_ROWS,
        "short_table": SHORT_TABLE,
        "style": Markup(style_sheet()),
        "script": Markup(script),
        "script_digest": b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return made
