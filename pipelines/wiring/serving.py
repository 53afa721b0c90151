"""`bam serve`: a model of the store, exported for the occasion, behind an OpenAI-compatible interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bam_core.errors import UsageError
from infra import openai_server as server
from pipelines.wiring.exporting import export
from pipelines.wiring.settings import Settings

TOKEN = "BAM_SERVE_TOKEN"
"""The environment's variable with what requests must show; a command line is seen by other users of the machine."""
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


@dataclass(frozen=True)
class Serving:
    """What clients need to know. url: for `base_url`. has_template: else chat continues the text of its messages."""

    model: str
    url: str
    as_class: str
    reads_tokens: int
    has_template: bool
    wants_token: bool


def serve(
    ref: str,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    without_token: bool = False,
    dtype: str | None = None,
    chat_template: Path | None = None,
    say: Callable[[Serving], None] = lambda serving: None,
    warn: Callable[[str], None] = lambda words: None,
) -> None:
    """Serve until interrupted. say: called once requests are taken. without_token: let anyone who reaches `host` ask.

    dtype, chat_template: as for `export`.
    Raises UsageError for what is no model or has no tokenizer, a host or port that cannot be had, a host that others
    reach without a token, and for libraries that are not installed.
    """
    server.require_libraries()
    token = None if without_token else os.environ.get(TOKEN) or None
    is_private = server.is_loopback(host)
    if not is_private:
        _who_may_ask(host, token, without_token, warn)
    exported = _exported(ref, settings, dtype, chat_template)
    with server.bound(host, port) as listener, exported as (name, folder):
        served = server.Served(folder, tuple(dict.fromkeys((name, ref))))
        hosts = (*LOOPBACK, host) if is_private else ()  # a page of the web may not ask under a name of its own
        app = server.build_app(served, token=token, hosts=hosts)
        listener.listen(server.BACKLOG)
        as_class = type(served.model).__name__
        url = f"{server.address_of(listener)}/v1"
        say(Serving(name, url, as_class, served.reads, served.has_template, token is not None))
        server.run(app, listener)


def _who_may_ask(host: str, token: str | None, without_token: bool, warn: Callable[[str], None]) -> None:
    if token is None and not without_token:
        raise UsageError(
            f"--host {host}: other machines reach it, and whoever does could use the model; set {TOKEN} to a secret, "
            "which clients give as their API key, or say --without-token"
        )
    if token is None:
        warn(f"{host} without a token: whoever reaches it can use the model")
    warn(f"{host}: requests and answers are not encrypted; put a proxy with TLS in front")


@contextmanager
def _exported(
    ref: str, settings: Settings, dtype: str | None, chat_template: Path | None
) -> Iterator[tuple[str, Path]]:
    """The model's name, and a folder that transformers opens, for as long as it is used."""
    with TemporaryDirectory(prefix="bam-serve-") as place:
        found = export(ref, Path(place) / "model", settings, dtype=dtype, chat_template=chat_template)
        yield found.model, found.folder
