"""Tables and claims as the results page has them."""

from __future__ import annotations

from collections.abc import Sequence

from bam_core.evaluate.significance import Comparison
from pipelines.report import formats
from pipelines.results.tables import ShownClaim

CLAIM_HEAD = ("claimed lower", "than", "paper", "here", "verdict")


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], n_text: int = 1) -> str:
    """The first columns are text, the others are numbers, which stand to the right."""
    lines = [head, ["---"] * n_text + ["---:"] * (len(head) - n_text), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines) + "\n"


def margin(its: Comparison) -> str:
    """The difference and its corrected interval; bold where it is clear of zero."""
    shown = formats.gain(its.difference)
    shown = f"**{shown}**" if its.is_distinguishable else shown
    return f"{shown} [{formats.gain(its.corrected_low)}, {formats.gain(its.corrected_high)}]"


def claim_row(claim: ShownClaim) -> list[str]:
    paper = "" if claim.paper is None else formats.gain(claim.paper)
    return [claim.model, claim.below, paper, margin(claim.comparison), claim.verdict]


def _escaped(cell: str) -> str:
    return formats.clean(cell).replace("|", "\\|").replace("\n", " ")
