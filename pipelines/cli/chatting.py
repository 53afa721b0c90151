"""`bam chat`."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import UsageError
from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.units import FloatRange, IntRange

if TYPE_CHECKING:
    from pipelines.wiring import Chat

PROMPT = "> "
HELP = "ctrl-C stops an answer, ctrl-D leaves, /new starts over"


@click.command(
    cls=Command,
    examples=(
        "bam chat train.bam",
        "bam chat train.bam --system 'Answer in one sentence.' --temperature 0",
    ),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--system", metavar="TEXT", help="What the model is told before all else.")
@click.option("--max-new-tokens", type=IntRange(min=1), default=256, show_default=True, help="Of an answer.")
@click.option("--temperature", type=FloatRange(min=0), default=0.7, show_default=True, help="0 takes the likeliest.")
@click.option(
    "--top-p",
    type=FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Draw from the fewest likeliest tokens whose probability reaches this.",
)
@click.option("--seed", type=IntRange(min=0), default=0, show_default=True)
@click.option("--plain", is_flag=True, help="Continue the text, whether there is a chat template or not.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp64"]), help="[as stored, at least fp32]")
@with_session
def chat(
    session: Session,
    ref: str,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    plain: bool,
    dtype: str | None,
) -> int | None:
    """Talk with the model REF: by its chat template where it has one, else it continues the text so far.

    From a pipe each line is answered, and the answers are all that is on standard output; --json gives one object."""
    from pipelines import wiring

    sampling = wiring.Sampling(max_new_tokens, temperature, top_p, seed)
    talk = wiring.open_chat(ref, session.settings(), sampling, system=system, plain=plain, dtype=dtype)
    if session.json or not sys.stdin.isatty():
        return _scripted(session, talk)
    _at_a_terminal(talk)
    return None


def _scripted(session: Session, talk: Chat) -> int | None:
    """Answers what comes on standard input, line by line."""
    turns = []
    for line in _lines():
        text = ""
        for piece in talk.answer(line):
            text += piece
            if not session.json:
                click.echo(piece, nl=False)
        if not session.json:
            click.echo()
        turns.append({"prompt": line, "text": text, "ended": talk.ended, "forgotten": talk.forgotten})
    if session.json:
        value: dict[str, Any] = {"model": talk.model, "chat_template": talk.form.template is not None, "turns": turns}
        session.answer(value, str)
    return None


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if text := line.rstrip("\r\n"):
                yield text
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: must be UTF-8 text ({error.reason} at byte {error.start})") from error


def _at_a_terminal(talk: Chat) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - what is typed can be edited, and comes back with arrow up

    how = "chat template" if talk.form.template is not None else "no chat template: it continues the text"
    click.secho(f"{talk.model} ({how}). {HELP}", dim=True)
    while True:
        try:
            text = input(PROMPT)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if text.strip() == "/new":
            talk.restart()
        elif text.strip():
            _answered(talk, text)


def _answered(talk: Chat, text: str) -> None:
    """One answer as it is made. What is wrong with a question does not end the conversation."""
    try:
        pieces = talk.answer(text)
    except UsageError as error:
        click.secho(str(error), fg="red", err=True)
        return
    if talk.forgotten:
        what = "messages" if talk.form.template is not None else "tokens"
        click.secho(f"(without the first {talk.forgotten} {what}: the model reads no more)", dim=True)
    try:
        for piece in pieces:
            click.echo(_printable(piece), nl=False)
        click.secho(" ..." if talk.ended == "length" else "", dim=True)
    except KeyboardInterrupt:
        pieces.close()
        click.secho(" (stopped)", dim=True)


def _printable(text: str) -> str:
    """What a model says may not steer the terminal: no control characters but the ends of lines."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)


COMMANDS = (chat,)
