"""What Sphinx needs to make pages of our docstrings: plain text with names in backticks, and no reStructuredText."""

from __future__ import annotations

import re
from typing import Any

import bam
import bam_core

PUBLIC = {"bam": bam.__all__, "bam_core": bam_core.__all__}
_CODE = re.compile(r"`+([^`]+)`+")
_MARKUP = re.compile(r"([\\*|]|(?<=\w)_(?!\w))")


def as_rst(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """The lines of a docstring, in place: code as code, indented paragraphs as they are, nothing else as markup."""
    made: list[str] = []
    is_block = False
    for line in [] if is_made_by_python(lines) else lines:
        starts = not made or not made[-1].strip()
        if line.startswith("    ") and (is_block or starts):
            made += [line] if is_block else ["::", "", line]
            is_block = True
        elif line.strip():
            made += ([""] if is_block and not starts else []) + [_escaped(line.strip())]
            is_block = False
        else:
            made.append("")
    lines[:] = made


def is_made_by_python(lines: list[str]) -> bool:
    """The docstring of a dataclass or of `object`, where nobody wrote one."""
    first = lines[0] if lines else ""
    return bool(re.fullmatch(r"\w+\(.*\)", first)) or first.startswith("Initialize self.")


def _escaped(line: str) -> str:
    parts = _CODE.split(line)
    return "".join(f"``{part}``" if i % 2 else _MARKUP.sub(r"\\\1", part) for i, part in enumerate(parts))


def skip_names_of_the_core(app: Any, what: str, name: str, of: Any, skip: bool, options: Any) -> bool | None:
    """In `bam`, what `bam_core` has too, under this name or its own: it is described there."""
    is_page_of_bam = what == "module" and app.env.current_document.docname.endswith("api-bam")
    return True if is_page_of_bam and {name, getattr(of, "__name__", name)} & {*bam_core.__all__} else None


def link_public_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """`bam.pipeline.Pipeline` in an annotation is `bam.Pipeline` in the pages."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") != "py":
        return None
    for package, names in PUBLIC.items():
        if name in names and (not module or module.partition(".")[0] in (package, "bam_core")):
            domain, here = env.domains.python_domain, node["refdoc"]
            found = domain.resolve_xref(env, here, app.builder, "obj", f"{package}.{name}", node, content)
            if found is not None:
                return found
    return None
