"""`bam import-config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from bam_core.errors import UsageError
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command


@click.command(
    "import-config",
    cls=Command,
    examples=("bam import-config moe.yaml -o mixture.yaml",),
)
@click.argument("config", metavar="MERGEKIT.yaml", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", metavar="RECIPE.yaml", type=click.Path(path_type=Path), help="[default: NAME.recipe.yaml here]"
)
@click.option("--replace", is_flag=True, help="Write over a recipe that is there.")
@with_session
def import_config(session: Session, config: Path, out: Path | None, replace: bool) -> None:
    """Write the recipe that does what a configuration of mergekit-moe does.

    Its prompts become files beside the recipe, which the routers are fitted on. What has no equal is said in the
    recipe, at its place, and here. docs/from-mergekit.md has the two side by side."""
    from pipelines.mergekit.config import read_moe_config
    from pipelines.mergekit.recipe import VARIANT, convert, write_files
    from pipelines.recipe_text import plain_name

    found = read_moe_config(config)
    out = out if out is not None else Path(f"{plain_name(config.stem)}.recipe.yaml")
    name = plain_name(out.name.removesuffix(".recipe.yaml").removesuffix(out.suffix))
    made = convert(found, name, (out.parent / f"{name}.prompts").as_posix(), config.name)
    _refuse_to_replace([out, *map(Path, made.files)], replace)
    try:
        write_files(made.files)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(made.text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error
    value = {"recipe": str(out), "prompts": list(made.files), "experts": len(found.experts), "notes": list(made.notes)}
    session.answer(value, lambda: _words(out, made.files, made.notes, VARIANT))


def _refuse_to_replace(paths: Sequence[Path], replace: bool) -> None:
    if not replace and (there := [str(path) for path in paths if path.exists()]):
        raise UsageError(f"{', '.join(there)}: there already; --replace writes over it, -o RECIPE.yaml elsewhere")


def _words(out: Path, files: Mapping[str, object], notes: Sequence[str], variant: str) -> str:
    lines = [f"{out}" + (f", and prompts in {Path(next(iter(files))).parent}/" if files else "")]
    lines += [f"  - {note}" for note in notes]
    return "\n".join([*lines, f"Next: bam plan {out}; bam run {out} --until mix.{variant}"])


COMMANDS = (import_config,)
