"""The questions of `bam init`: in a terminal, for what no flag says. A wrong answer is told why and asked for again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import InvalidInput, Problem, UsageError

if TYPE_CHECKING:
    from pipelines.cli.init import Answers
    from pipelines.starting.found import Found

DEFAULT_FILE = "mine.yaml"
PLACES = "A text is a file, a folder, a glob, a URI, or hf:ORG/NAME of the Hugging Face hub."


def is_terminal() -> bool:
    return sys.stdin.isatty()


def complete(answers: Answers, force: bool) -> None:
    """Ask for what is not there yet. Ends with click's Abort where the person ends it."""
    from pipelines.cli import init

    if answers.file is None:
        answers.file = ask("Recipe to write", DEFAULT_FILE, lambda word: init.new_file(word, force))
    else:
        init.new_file(str(answers.file), force)
    if len(answers.domains) < init.FEWEST:
        _domains(answers)
    if answers.seed is None and answers.size is None:
        _model(answers)
    if answers.tokens is None:
        _tokens(answers)


def ask(question: str, default: str | None, take: Callable[[str], Any]) -> Any:
    """The answer as `take` gives it; what it raises for a person is said, and the question asked again."""

    def taken(word: str) -> Any:
        try:
            return take(word.strip())
        except UsageError as error:
            raise click.UsageError(_short(error)) from error

    return click.prompt(question, default=default, value_proc=taken, err=True, show_default=bool(default))


def _short(error: UsageError) -> str:
    """Of several problems each on its line, without the keys of a file that is not there yet."""
    if not isinstance(error, InvalidInput):
        return str(error)
    return "\n".join(
        str(Problem("", p.value, p.expected, p.remedy)).removeprefix("(whole file): ") for p in error.problems
    )


def _domains(answers: Answers) -> None:
    from pipelines.cli import init

    click.echo(f"A domain becomes an expert; the general one is what the seed is trained on.\n{PLACES}", err=True)
    while True:
        n = len(answers.domains)
        question = "Name of the general domain" if not n else f"Name of domain {n + 1}"
        if n >= init.FEWEST:
            question += " (enter: no more)"
        default = "general" if not n else "" if n >= init.FEWEST else None
        name = ask(question, default, lambda word: _name(answers, word))
        if not name:
            return
        ask("  its text", None, partial(_text, answers, name))
        click.echo(f"  {init.found_words(answers.domains[name])}", err=True)


def _name(answers: Answers, word: str) -> str:
    from pipelines.wiring.starting import name_problems

    if word in answers.domains:
        raise UsageError(f"{word!r} is there already; another name")
    if word and (wrong := name_problems("mine", [*answers.domains, word])):
        raise InvalidInput("name", wrong)
    return word


def _text(answers: Answers, name: str, word: str) -> None:
    from pipelines.starting.choosing import require_text
    from pipelines.wiring.starting import find_text, same_texts

    found, column = find_text(word)
    if column is None and found.has_columns and found.usual_column is None:
        column = _column(found)
    found = found.with_column(column)
    require_text({name: found.n_bytes})
    if wrong := same_texts({**answers.domains, name: [found]}):
        raise InvalidInput("text", wrong)
    answers.domains[name] = [found]


def _column(found: Found) -> str:
    chosen = click.prompt("  which column is the text", type=click.Choice(list(found.columns)), err=True)
    return str(chosen)


def _model(answers: Answers) -> None:
    from pipelines.cli import init

    def take(word: str) -> None:
        if word and (wrong := init.take_seed(answers, word)):
            raise InvalidInput("seed", wrong)

    ask("A model to start from, a folder or ORG/NAME (enter: train one)", "", take)
    if answers.seed is None:
        from pipelines.starting.sizes import SIZES

        words = "; ".join(f"{name}: {size.words}" for name, size in SIZES.items())
        click.echo(f"Sizes of the model to train: {words}.", err=True)
        answers.size = click.prompt("Size", default=init.SIZES[0], type=click.Choice(init.SIZES), err=True)


def _tokens(answers: Answers) -> None:
    from pipelines.cli import init

    def take(word: str) -> None:
        if word and (wrong := init.take_tokens(answers, word)):
            answers.tokens = None
            raise InvalidInput("tokens", wrong)

    of = "each expert" if answers.seed is not None else "the seed"
    ask(f"Tokens to train {of} on, such as 2M (enter: what suits text and model)", "", take)
