"""Writes the pages of docs/reference that follow from code: `python docs/tools/write.py`, or with --check, compares."""

from __future__ import annotations

import sys
from pathlib import Path

import commands
import recipe_keys

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES = {"recipe-keys.md": recipe_keys.page, "commands.md": commands.page}


def main(check: bool) -> int:
    stale = []
    for name, page in PAGES.items():
        file, text = REFERENCE / name, page()
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.write_text(text, encoding="utf-8")
    words = "not what the code says; run `python docs/tools/write.py`" if check else "written"
    for name in stale:
        print(f"docs/reference/{name}: {words}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
