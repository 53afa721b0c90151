"""`bam check`: whether models can be mixed, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from bam_core.upcycle.fit import Fit
    from bam_core.upcycle.vocabulary import Rule

MISFIT = 1
"""The exit status where they cannot be mixed; 2 is bad usage."""
MARKS = {"fits": "", "note": "note: ", "misfit": "DOES NOT FIT: "}
COLOURS = {"fits": None, "note": "yellow", "misfit": "red"}


@click.command(
    cls=Command,
    examples=(
        "bam check ORG/BASE ORG/BASE-code ./lora-law",
        "bam check seed expert.law --no-weights",
    ),
)
@click.argument("models", nargs=-1, required=True, metavar="SEED EXPERT [EXPERT ...]", shell_complete=completing.models)
@click.option(
    "--vocabulary",
    type=click.Choice(["refuse", "union", "seed"]),
    default="refuse",
    show_default=True,
    help="What models with other tokens get in common, as the recipe's `vocabulary`.",
)
@click.option("--weights/--no-weights", default=True, help="Read the weights, for their distance from the seed's.")
@with_session
def check(session: Session, models: tuple[str, ...], vocabulary: Rule, weights: bool) -> int:
    """Can these be mixed? Each EXPERT is held against SEED, the model that all were trained from.

    A model is a folder of Hugging Face's or ours, an id of the hub, a folder of a LoRA adapter of SEED, or a reference
    of the store. Exit status: 0 they fit, 1 they do not, 2 bad usage."""
    from pipelines.wiring.fitting import check_fit

    found = check_fit(models, vocabulary, session.settings(), weights=weights)
    session.answer(found.to_json(), lambda: fit_text(found))
    return 0 if found.fits else MISFIT


def fit_text(found: Fit) -> str:
    """The lines of each model, the distances of their weights, and what a mixture of all would be."""
    rows = []
    for name, lines in found.models.items():
        shown = f"{name} (seed)" if name == found.seed else name
        for number, line in enumerate(lines):
            words = click.style(MARKS[line.verdict] + line.words, fg=COLOURS[line.verdict])
            rows.append([shown if number == 0 else "", line.aspect, words])
    parts = [text.table(["model", "what", "found"], rows)]
    if found.distances:
        parts.append(_distances(found))
    if found.sizes:
        parts.append(_sizes(found))
    misfits = [name for name, lines in found.models.items() if any(line.verdict == "misfit" for line in lines)]
    verdict = f"they do not fit: {', '.join(misfits)}" if misfits else "they can be mixed"
    return "\n\n".join([*parts, click.style(verdict, bold=True)])


def _distances(found: Fit) -> str:
    groups = [name for name in next(iter(found.distances.values())) if name != "judged"]
    rows = [
        [name, *(f"{each[group].relative:.2g}, {each[group].cosine:.3f}" for group in groups)]
        for name, each in found.distances.items()
    ]
    headers = ["from the seed: relative, cosine", *groups]
    return text.table(headers, rows, right=range(1, len(headers)))


def _sizes(found: Fit) -> str:
    from bam_core.upcycle.fit import MIXTURES

    rows = [
        [
            MIXTURES[name],
            text.count(sizes.params_total),
            text.count(sizes.params_active),
            text.size(sizes.weight_bytes),
            text.size(sizes.to_mix_bytes),
            text.size(sizes.cache_bytes_per_token),
        ]
        for name, sizes in found.sizes.items()
    ]
    headers = ["a mixture of all", "parameters", "active", "weights in bf16", "memory to mix", "cache/token"]
    return text.table(headers, rows, right=range(1, len(headers)))


COMMANDS = (check,)
