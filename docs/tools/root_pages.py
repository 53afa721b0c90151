"""Pages of the site that stand at the root of the repository: CONTRIBUTING.md and the like, with their links mended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {f"project/{name.lower()}": f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")}
"""Page -> its text. What lies in docs/project is for who reads the sources."""
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^()\s#]+)")


def read_from_the_root(app: Any, page: str, source: list[str]) -> None:
    if page in PAGES:
        source[0] = _LINK.sub(lambda link: f"]({seen_from_the_site(link[1])}", (ROOT / PAGES[page]).read_text())


def seen_from_the_site(link: str) -> str:
    """A link of the root, as it is from docs/project; a folder of documents by its index."""
    if f"project/{link.removesuffix('.md').lower()}" in PAGES:
        return link.lower()
    index = f"{link.rstrip('/')}/index.md"
    link = index if (ROOT / index).is_file() else link
    return f"../{link.removeprefix('docs/')}" if link.startswith("docs/") else f"../../{link}"
