"""`bam init`: a first recipe for somebody's own text, from flags or from answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import BamError, InvalidInput, Problem, UsageError
from pipelines.cli import asking, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from pipelines.recipe.imports import Checkpoint
    from pipelines.starting.choosing import Chosen
    from pipelines.starting.found import Found
    from pipelines.starting.sizes import SeedModel

SIZES = ("tiny", "small", "medium")
FEWEST = 2


@dataclass
class Answers:
    """What is known so far. domains: NAME -> its texts, as they were found."""

    file: Path | None
    name: str | None
    domains: dict[str, list[Found]] = field(default_factory=dict)
    size: str | None = None
    tokens: int | None = None
    seed: SeedModel | None = None
    checkpoint: Checkpoint | None = None


@click.command(
    cls=Command,
    examples=(
        "bam init",
        "bam init mine.yaml --domain general=texts/general --domain medicine=texts/medicine.jsonl:abstract",
        "bam init mine.yaml --domain general=hf:ORG/NAME --domain law='law/*.txt' --seed-model ./base",
    ),
)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--domain",
    "domains",
    metavar="NAME=PATH[:COLUMN]",
    multiple=True,
    help="A domain and its text; once for each, again for more text of the same.",
)
@click.option("--general", metavar="NAME", help="Which domain is the general one. [`general`, else the first]")
@click.option("--size", type=click.Choice(SIZES), help="Of the model. [tiny]")
@click.option("--tokens", metavar="COUNT", help="To train the seed on, such as 2M. [what suits text and model]")
@click.option("--seed-model", metavar="DIR_OR_HUB_ID", help="Start from this model rather than train a seed.")
@click.option("--name", metavar="NAME", help="Of the pipeline. [as the file]")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: take what is in brackets.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@with_session
def init(
    session: Session,
    file: Path | None,
    domains: tuple[str, ...],
    general: str | None,
    size: str | None,
    tokens: str | None,
    seed_model: str | None,
    name: str | None,
    yes: bool,
    force: bool,
) -> None:
    """Write a recipe for your own text, with a comment for each choice. In a terminal it asks for what is not given.

    PATH is a file, a folder, a glob, a URI, or hf:ORG/NAME (hf:ORG/NAME/SUBSET) of the Hugging Face hub. Text,
    JSON lines and Parquet are told apart by their names; .gz and .zst are unpacked. COLUMN is the field that is the
    text, where there is more than one."""
    answers = _from_flags(file, domains, general, size, tokens, seed_model, name)
    if asking.is_terminal() and not yes and not session.json:
        asking.complete(answers, force)
    _require_enough(answers)
    new_file(str(answers.file), force)
    chosen = _write(answers, force)
    session.answer(_as_json(answers, chosen), lambda: _words(answers, chosen))


def _from_flags(
    file: Path | None,
    domains: Sequence[str],
    general: str | None,
    size: str | None,
    tokens: str | None,
    seed_model: str | None,
    name: str | None,
) -> Answers:
    """Raises InvalidInput with all that is wrong with any of them."""
    answers, problems = Answers(file, name, size=size), list[Problem]()
    if file is not None:
        problems += _file_problems(file)
    for item in domains:
        problems += add_domain(answers, item)
    problems += name_problems(answers)
    problems += make_first(answers, general)
    if seed_model is not None:
        if size is not None:
            expected = "is of a model that is trained from the start, and --seed-model has its size"
            problems.append(Problem("--size", size, expected, "leave one of them out"))
        problems += take_seed(answers, seed_model)
    if tokens is not None:
        problems += take_tokens(answers, tokens)
    if problems:
        raise InvalidInput("command line", problems)
    return answers


def _file_problems(file: Path) -> list[Problem]:
    if file.suffix.lower() not in (".yaml", ".yml"):
        return [Problem("FILE", str(file), "must end in .yaml", f"{Path(file.name).stem or 'mine'}.yaml")]
    try:
        str(file).encode()
        file.exists()
    except (OSError, ValueError) as error:  # too long, not UTF-8
        return [Problem("FILE", ascii(str(file)), f"cannot be a file: {error}")]
    if file.is_dir() or not file.absolute().parent.is_dir():
        is_folder = "is a folder" if file.is_dir() else "its folder is not there"
        return [
            Problem("FILE", str(file), is_folder, "" if file.is_dir() else f"mkdir -p {shlex.quote(str(file.parent))}")
        ]
    return []


def add_domain(answers: Answers, item: str) -> list[Problem]:
    """Of `NAME=PATH[:COLUMN]`: look, and take it, or say what is wrong."""
    name, equals, place = item.partition("=")
    if not equals or not name or not place:
        return [Problem("--domain", item, "must be NAME=PATH or NAME=PATH:COLUMN")]
    from pipelines.wiring.starting import find_text

    try:
        found, column = find_text(place)
        found = found.with_column(column)
    except InvalidInput as error:
        return [Problem(f"--domain {name}", p.value, p.expected, p.remedy) for p in error.problems]
    except UsageError as error:
        return [Problem(f"--domain {name}", place, str(error))]
    answers.domains.setdefault(name, []).append(found)
    return []


def name_problems(answers: Answers) -> list[Problem]:
    """What is wrong with the names; the pipeline's is made from the file's where none is given."""
    from pipelines.recipe_text import plain_name
    from pipelines.wiring.starting import name_problems as problems_of
    from pipelines.wiring.starting import same_texts

    name = answers.name or (plain_name(answers.file.stem) if answers.file is not None else "mine")
    found = problems_of(name, answers.domains)
    return [*found, *same_texts(answers.domains)]


def make_first(answers: Answers, general: str | None) -> list[Problem]:
    """The general domain comes first."""
    from bam_core.errors import nearest

    if general is not None and general not in answers.domains:
        return [Problem("--general", general, "is none of the domains", nearest(general, answers.domains))]
    first = general or ("general" if "general" in answers.domains else next(iter(answers.domains), None))
    if first is not None:
        answers.domains = {first: answers.domains[first], **answers.domains}
    return []


def take_tokens(answers: Answers, tokens: str) -> list[Problem]:
    from pipelines.recipe.values import parse_count
    from pipelines.starting.sizes import IMPORTED
    from pipelines.starting.sizes import SIZES as SHAPES

    try:
        answers.tokens = parse_count(tokens)
    except ValueError as error:
        return [Problem("--tokens", tokens, str(error))]
    batch = (IMPORTED if answers.seed is not None else SHAPES[answers.size or SIZES[0]]).batch_tokens
    return [] if answers.tokens >= batch else [Problem("--tokens", tokens, f"must be at least one batch, {batch}")]


def take_seed(answers: Answers, source: str) -> list[Problem]:
    from pipelines.wiring.starting import find_seed

    try:
        answers.seed, answers.checkpoint = find_seed(source)
    except InvalidInput as error:
        return [Problem("--seed-model", source, p.expected, p.remedy) for p in error.problems]
    except BamError as error:
        return [Problem("--seed-model", source, str(error))]
    return []


def _require_enough(answers: Answers) -> None:
    """Raises UsageError with the flags that are missing."""
    missing = ["FILE, such as mine.yaml"] if answers.file is None else []
    if (n := len(answers.domains)) < FEWEST:
        missing.append(f"--domain NAME=PATH, once for each of at least {FEWEST} domains ({n} given)")
    if missing:
        raise UsageError(f"missing: {'; '.join(missing)}. In a terminal, `bam init` asks")


def new_file(word: str, force: bool) -> Path:
    """Raises UsageError for what is no name of a recipe's file, and for one that is there."""
    from pipelines.wiring.starting import IS_THERE

    file = Path(word)
    if problems := _file_problems(file):
        raise InvalidInput("command line", problems)
    if file.exists() and not force:
        raise UsageError(f"{file}: {IS_THERE}")
    return file


def _write(answers: Answers, force: bool) -> Chosen:
    from pipelines.recipe_text import plain_name
    from pipelines.starting.choosing import Start
    from pipelines.wiring.starting import write_recipe

    assert answers.file is not None
    name = answers.name or plain_name(answers.file.stem)
    start = Start(name, answers.domains, answers.size or SIZES[0], answers.tokens, answers.seed)
    return write_recipe(start, answers.file, checkpoint=answers.checkpoint, replace_it=force)


def _next(answers: Answers) -> list[str]:
    return [shlex.join(["bam", command, str(answers.file)]) for command in ("plan", "run")]


def _as_json(answers: Answers, chosen: Chosen) -> dict[str, Any]:
    domains = {
        name: {"sources": [dict(one.source) for one in found], "text_bytes": _bytes(found)}
        for name, found in answers.domains.items()
    }
    tokens = {"expert": chosen.expert_tokens, "mixture": chosen.mixture_tokens}
    tokens |= {"seed": chosen.seed_tokens} if answers.seed is None else {}
    model = {"seed_model": answers.seed.source} if answers.seed is not None else {"size": answers.size or SIZES[0]}
    said = {"file": str(answers.file), "domains": domains, **model, "tokens": tokens}
    return said | {"notes": list(chosen.notes), "next": _next(answers)}


def _bytes(found: Sequence[Found]) -> int | None:
    sizes = [one.n_bytes for one in found]
    return None if None in sizes else sum(size or 0 for size in sizes)


def found_words(found: Sequence[Found]) -> str:
    """`3 files of jsonl, about 1.5 MiB of text`."""
    n_files, n_bytes = sum(len(one.files) for one in found), _bytes(found)
    kinds = ", ".join(dict.fromkeys(str(one.source["kind"]) for one in found))
    what = f"{n_files:,} file{'s' if n_files > 1 else ''} of {kinds}" if n_files else kinds
    return f"{what}, " + (f"about {text.size(n_bytes)} of text" if n_bytes is not None else "of unknown size")


def _words(answers: Answers, chosen: Chosen) -> str:
    rows = []
    for number, (name, found) in enumerate(answers.domains.items()):
        of_own = "the seed" if number == 0 else text.count(chosen.own_tokens.get(name, chosen.expert_tokens))
        first = text.count(chosen.seed_tokens) if number == 0 and answers.seed is None else of_own
        rows.append([name, found_words(found), first])
    lines = [text.table(["domain", "text", "trained on, tokens"], rows, right=(2,)), ""]
    lines += [f"note: {note}" for note in chosen.notes]
    plan, run = _next(answers)
    return "\n".join([*lines, f"wrote {answers.file}. Next:", f"  {plan}", f"  {run}"])


COMMANDS = (init,)
