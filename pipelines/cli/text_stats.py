"""What became of a domain's text, for people: `stats.json` of `data.<domain>` as a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.cli import text

STATS_FILE = "stats.json"


def stats_text(stats: Mapping[str, Any], width: int | None = None) -> str:
    """Each step with what it left out and why, and the two parts that the text became."""
    rows = []
    for step in stats.get("steps", ()):
        dropped = [f"{reason} {text.number(count)}" for reason, count in step["dropped"].items() if count]
        dropped += [f"stopped by {step['stopped_by']}"] if "stopped_by" in step else []
        rows.append([step["name"], ", ".join(dropped) or "-", text.number(step["kept"])])
    if not rows:
        copies = int(stats.get("duplicates_dropped", 0))
        rows.append(["copies", f"copies {text.number(copies)}" if copies else "-", ""])
    for part in ("train", "valid"):
        its = stats.get(part, {})
        size = f"{text.size(its['bytes'])}, {text.number(its['tokens'])} tokens" if its else "-"
        rows.append([part, size, text.number(its["documents"]) if its else "-"])
    return text.table(["step", "left out", "documents"], rows, right=(2,), width=width)
