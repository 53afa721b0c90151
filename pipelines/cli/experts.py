"""`bam expert add | remove | extract`, `bam blame`: what a mixture is made of, changed and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bam_core.errors import INTERRUPTED
from bam_core.graph.key import key12
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command, Commands
from pipelines.cli.units import IntRange

if TYPE_CHECKING:
    from pipelines.runner import Display
    from pipelines.wiring import Edited, Extracted, Settings

STATUS = {"done": 0, "failed": 1, "interrupted": INTERRUPTED}

_new = click.option("--as", "new", metavar="NEW", help="The new artifact's name: edit.NEW.")
_tokens = click.option(
    "--tokens",
    type=IntRange(min=1),
    default=16_384,
    show_default=True,
    help="Held-out tokens per domain, in whole documents, to measure before and after on.",
)


@click.group(
    "expert",
    cls=Commands,
    examples=("bam expert add train.bam --from expert.math --name math", "bam expert remove train.bam law"),
)
def expert() -> None:
    """Add an expert to a mixture, remove one, or get one back as a dense model."""


@expert.command(
    examples=("bam expert add train.bam --from expert.math --name math --as with-math",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--from", "expert_ref", metavar="EXPERT_REF", required=True, help="The dense model, such as expert.math.")
@click.option("--name", required=True, help="What the expert is called in the mixture.")
@_new
@click.option(
    "--router-row",
    type=click.Choice(["zeros", "mean"]),
    default="zeros",
    show_default=True,
    help="What its row of each router starts from: nothing, or the mean of the others.",
)
@_tokens
@with_session
def add(session: Session, ref: str, expert_ref: str, name: str, new: str | None, router_row: str, tokens: int) -> int:
    """Make a mixture with one expert more than REF has.

    What it says stays the same until it is trained: `bam stage train.X RECIPE --input mix=edit.NEW`."""
    from pipelines import wiring

    def make(settings: Settings, display: Display) -> Edited:
        return wiring.add_expert(
            ref, expert_ref, name, settings, display, new=new, router_row=router_row, tokens=tokens
        )

    return _edit(session, make)


@expert.command(
    examples=("bam expert remove train.bam law --as without-law",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("name")
@_new
@_tokens
@with_session
def remove(session: Session, ref: str, name: str, new: str | None, tokens: int) -> int:
    """Make a mixture without the expert NAME of REF, and say what that costs."""
    from pipelines import wiring

    def make(settings: Settings, display: Display) -> Edited:
        return wiring.remove_expert(ref, name, settings, display, new=new, tokens=tokens)

    return _edit(session, make)


@expert.command(
    examples=("bam expert extract train.bam law law-alone",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--shared",
    type=click.Choice(["parent", "mixture"]),
    help="Whose norms and embeddings. [the dense parent's before training, the mixture's after]",
)
@with_session
def extract(session: Session, ref: str, name: str, folder: Path, shared: Literal["parent", "mixture"] | None) -> None:
    """Write the expert NAME of REF into DIR as a dense model.

    Before training it is the dense parent, bit by bit. DIR must not exist."""
    from pipelines import wiring

    made = wiring.extract_expert(ref, name, folder, session.settings(), shared=shared)
    value = asdict(made) | {"folder": str(made.folder), "expert": name}
    session.answer(value, lambda: _extracted_text(made, name))


@click.command(
    cls=Command,
    examples=("bam blame train.bam 'blocks.1.attn.w_q[law]'",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("tensor", metavar="TENSOR[EXPERT]")
@with_session
def blame(session: Session, ref: str, tensor: str) -> None:
    """What made a tensor of REF, back to its first random numbers.

    For one expert's part of a tensor: 'blocks.1.attn.w_q[law]', by name or number."""
    from pipelines import wiring

    found = wiring.blame(ref, tensor, session.settings())
    from bam_core.graph.blame import to_json, to_text

    session.answer(to_json(found), lambda: to_text(found))


COMMANDS = (expert, blame)


def _edit(session: Session, make: Callable[[Settings, Display], Edited]) -> int:
    from pipelines.cli.display import open_display

    display = open_display(session.progress_stream())
    try:
        edited = make(session.settings(), display)
    finally:
        display.close()
    [stage] = edited.result.stages
    value = {"status": edited.result.status, **asdict(stage), "edit": edited.report}
    report = edited.report
    if report is not None:
        session.answer(value, lambda: f"\n{edited_text(report)}\n\n{stage.stage}@{key12(stage.key)}: {stage.artifact}")
    else:
        session.answer(value, lambda: f"{stage.stage}: {edited.result.status}")
        if stage.error:
            click.echo(f"bam: {stage.error}", err=True)
    return STATUS[edited.result.status]


def edited_text(report: Mapping[str, Any]) -> str:
    """Perplexity per domain before and after, and the largest change of a logit."""
    before, after = report["perplexity"]["before"], report["perplexity"]["after"]
    rows = [[domain, f"{before[domain]:.2f}", f"{after[domain]:.2f}"] for domain in before]
    if before:
        means = [sum(found.values()) / len(found) for found in (before, after)]
        rows.append(["average", *(f"{mean:.2f}" for mean in means)])
    experts = ", ".join(report["experts"]["after"])
    parts = [text.table(["perplexity", "before", "after"], rows, right=(1, 2))] if rows else []
    if not rows:
        parts.append("no held-out text of its lineage is in the store, so no perplexity")
    parts.append(f"experts: {experts}; largest change of a logit: {report['logit_difference']:.3g}")
    return "\n".join(parts)


def _extracted_text(made: Extracted, name: str) -> str:
    origins = list(made.taken.values())
    from_parent = sum(origin.startswith("parent") for origin in origins)
    parts = [f"{len(origins) - from_parent} tensors of {made.source}"]
    parts += [f"{from_parent} of {made.parent}"] if from_parent else []
    lines = [f"{made.folder}: expert {name}, {' and '.join(parts)}"]
    whose = made.parent if made.shared == "parent" else f"{made.source}, merged over its experts"
    lines.append(f"norms, embeddings and all else that is shared: {whose}")
    lines += [f"trained elsewhere, as {made.origin}"] if made.origin else []
    lines += [f"{tensor}: {origin}" for tensor, origin in made.taken.items() if ": " in origin]
    return "\n".join(lines)
