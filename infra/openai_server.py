"""An exported model behind an OpenAI-compatible HTTP interface: the server of transformers, cut down to that one model.

Endpoints, streaming and generation are those of `transformers.cli.serving` (of 5.23, behind `transformers serve`), run
by uvicorn. What is ours: which model, that no request can load another or unload this one, that a request asks for no
more tokens than the model reads, and who may ask. Requests come in at once and are generated one after another. No
code of the folder is run: that of our own models is the one installed here.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bam_core.errors import BamError, UsageError, install_extra

NEEDED = ("transformers", "fastapi", "uvicorn", "openai")
BACKLOG = 2048
"""Connections that may wait while the model is loaded."""
PLAIN_TEMPLATE = "{{ bos_token or '' }}{{ messages | map(attribute='content') | join('\n') }}"
"""Of a model without a chat template: it continues what was said, a line after the other, as `bam chat` does."""


def require_libraries() -> None:
    """Raises UsageError naming those that are not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        words = f"{', '.join(missing)}: not installed; `bam serve` is an extra: "
        raise UsageError(words + install_extra("serve"))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. Raises UsageError for a host that it has not."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: {error}; 127.0.0.1 is this machine alone") from error
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket of that address, 0 for any free port. Raises UsageError if it cannot be had."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            remedy = "give another --port; 0 takes a free one"
            raise UsageError(f"--host {host} --port {port}: {error.strerror or error}; {remedy}") from error
        yield listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Served:
    """An opened export. names: what requests may call the model, its own first. has_template: for chat."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        """Raises UsageError for a model without a tokenizer, BamError if transformers cannot open the folder."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.names = names
        if not (folder / "tokenizer.json").is_file():
            raise UsageError(f"{names[0]}: has no tokenizer, so it can read no text")
        try:
            self.model, self.tokenizer = _opened(folder)
        except Exception as error:  # each class has its own
            raise BamError(f"{names[0]}: transformers cannot open its export: {error}") from error
        self.has_template = bool(self.tokenizer.chat_template)
        if not self.has_template:
            self.tokenizer.chat_template = PLAIN_TEMPLATE
        generation = self.model.generation_config
        # As with OpenAI: tokens are drawn, from all of them, unless a request says temperature 0.
        generation.do_sample, generation.temperature, generation.top_p, generation.top_k = True, 1.0, 1.0, 0

    @property
    def reads(self) -> int:
        """Tokens at most."""
        return int(self.model.config.max_position_embeddings)


def _opened(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opens: Any = AutoModelForCausalLM
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "bam":
        # Asked itself: to register it with the Auto classes would change what they open for all of the process.
        from bam_core.hf.remote.modeling_bam import BamForCausalLM

        opens = BamForCausalLM
    local = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    model = opens.from_pretrained(folder, dtype="auto", **local).eval()
    return model.to("cuda") if torch.cuda.is_available() else model, tokenizer


def build_app(served: Served, *, token: str | None = None, hosts: tuple[str, ...] = ()) -> Any:
    """The ASGI application. token: what requests must show. hosts: what they may call this machine; any by default."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from infra.openai_one_model import one_model_app

    app = one_model_app(served)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    if token is not None:
        app.add_middleware(_Token, token=token)
    return app


def run(app: Any, listener: socket.socket) -> None:
    """Answer until ctrl-C or SIGTERM; then wait a moment for answers under way."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


class _Token:
    """Lets through what shows the token, `Authorization: Bearer ...`, as clients of OpenAI do with their key."""

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        shown = dict(scope["headers"]).get(b"authorization", b"") if scope["type"] == "http" else self._wanted
        if hmac.compare_digest(shown, self._wanted):
            await self._app(scope, receive, send)
            return
        error = {"message": "this server wants its token as API key", "type": "invalid_request_error"}
        await JSONResponse({"error": error}, status_code=401)(scope, receive, send)
