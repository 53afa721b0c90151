"""`bam serve`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli import completing
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.units import IntRange

if TYPE_CHECKING:
    from pipelines.wiring import Serving


@click.command(
    cls=Command,
    examples=(
        "bam serve train.bam --port 0",
        "BAM_SERVE_TOKEN=... bam serve train.bam --host 0.0.0.0",
    ),
)
@click.argument("ref", shell_complete=completing.artifacts)
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than loopback want BAM_SERVE_TOKEN.")
@click.option("--port", type=IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--without-token", is_flag=True, help="Whoever reaches --host may use the model.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp64"]), help="Of the weights. [as stored]")
@click.option(
    "--chat-template",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A Jinja file. [the one that the seed came with]",
)
@with_session
def serve(
    session: Session,
    ref: str,
    host: str,
    port: int,
    without_token: bool,
    dtype: str | None,
    chat_template: Path | None,
) -> None:
    """The model REF behind an OpenAI-compatible HTTP interface (extra `serve`): chat and completions, streamed or not.

    BAM_SERVE_TOKEN is what clients must give as API key. docs/serving.md shows clients and what is not offered."""
    from pipelines import wiring

    def say(serving: Serving) -> None:
        chat = "chat template" if serving.has_template else "no chat template: chat continues the messages' text"
        session.answer(
            asdict(serving),
            lambda: (
                f"{serving.model} as {serving.as_class}, {serving.reads_tokens} tokens ({chat})\n"
                f"{serving.url}  ctrl-C stops it"
            ),
        )

    wiring.serve(
        ref,
        session.settings(),
        host=host,
        port=port,
        without_token=without_token,
        dtype=dtype,
        chat_template=chat_template,
        say=say,
        warn=lambda words: click.echo(f"bam: warning: {words}", err=True),
    )


COMMANDS = (serve,)
