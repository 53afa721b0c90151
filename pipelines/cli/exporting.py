"""`bam export`: a model for transformers and all that reads its folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from pipelines.wiring import ExportedFolder


@click.command(
    cls=Command,
    examples=(
        "bam export train.bam exported",
        "bam export train.btx exported --to mixtral --dtype bf16",
    ),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to",
    default="auto",
    show_default=True,
    metavar="auto|bam|CLASS",
    help="A class of transformers by its model_type, as mixtral; `bam` brings its own code; `auto`: a class if one "
    "equals the model.",
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp64"]), help="Of the weights. [as stored]")
@click.option(
    "--chat-template",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A Jinja file. [the one that the seed came with]",
)
@click.option("--force", is_flag=True, help="Move aside what is in DIR.")
@with_session
def export(
    session: Session,
    ref: str,
    folder: Path,
    to: str,
    dtype: str | None,
    chat_template: Path | None,
    force: bool,
) -> None:
    """Write the model REF to DIR, for transformers and what reads its folders.

    AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True) opens it without bam; export.json says where every
    tensor went."""
    from pipelines import wiring

    found = wiring.export(ref, folder, session.settings(), to=to, dtype=dtype, chat_template=chat_template, force=force)
    report = found.report
    value = {
        "model": found.model,
        "folder": str(found.folder),
        "size_bytes": found.size_bytes,
        **{name: report[name] for name in ("to", "class", "reason", "refused", "notes", "dtype")},
        "tensors": len(report["tensors"]),
        "tokenizer": found.has_tokenizer,
        "chat_template": found.has_chat_template,
        "kept": str(found.kept) if found.kept is not None else None,
    }
    session.answer(value, lambda: _words(found))


def _words(found: ExportedFolder) -> str:
    report = found.report
    trust = ", trust_remote_code=True" if report["to"] == "bam" else ""
    ours = {entry["tensor"] for made in report["tensors"].values() for entry in made["from"]} | set(report["left_out"])
    lines = [
        f"{found.folder}: {found.model} as {report['class']}, {text.size(found.size_bytes)} in {report['dtype']}",
        *_why(report["to"], report["reason"], report["refused"]),
        f"  all {len(ours)} tensors of the model are in {len(report['tensors'])} of the export, by digest: export.json",
        *(f"  note: {note}" for note in report["notes"]),
        *([] if found.has_tokenizer else ["  without a tokenizer: the model has none"]),
        *([f"  what was there is now {found.kept}"] if found.kept is not None else []),
        f"  AutoModelForCausalLM.from_pretrained({str(found.folder)!r}{trust})",
    ]
    return "\n".join(lines)


def _why(to: str, reason: str, refused: dict[str, dict[str, str]]) -> list[str]:
    if to != "bam" or not refused:
        return [f"  {reason}"]
    return [
        "  with its own code, since no class of transformers is the same model:",
        *(f"    {name}: {why['field']} {why['value']}: {why['reason']}" for name, why in refused.items()),
    ]


COMMANDS = (export,)
