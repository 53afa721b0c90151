"""The parts of transformers' server (`transformers.cli.serving` of 5.23) as they are for one model that is there.

Importing this loads transformers, fastapi and openai.
"""

from __future__ import annotations

from collections.abc import Awaitable
from logging import ERROR
from typing import TYPE_CHECKING, Any, cast

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException as AnyHTTPException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState
from transformers.utils import logging

if TYPE_CHECKING:
    from infra.openai_server import Served

NOT_UNDERSTOOD = (AttributeError, KeyError, TypeError, ValueError, TemplateError)
"""What handlers and chat templates raise for a request that they were not made for."""
OFFERED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"})
"""Routes that ask the model for text; others of the server load and unload models, or run more of them."""


def one_model_app(served: Served) -> Any:
    """transformers' application, with these routes and parts."""
    logging.get_logger("transformers.cli.serving").setLevel(ERROR)
    manager, state = cast(ModelManager, _OneModel(served)), _OneThread(served)
    chat, completion = _Chat(manager, state), _Completion(manager, state)
    not_offered: Any = None
    app: Any = build_server(manager, chat, completion, not_offered, not_offered, not_offered, state)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in OFFERED]
    for kind in (AnyHTTPException, RequestValidationError):
        app.add_exception_handler(kind, _in_words)
    return app


async def _in_words(request: Request, error: Exception) -> JSONResponse:
    """As OpenAI words its errors, so that its clients show them."""
    status = error.status_code if isinstance(error, AnyHTTPException) else 422
    words = error.detail if isinstance(error, AnyHTTPException) else f"the body must be a JSON object: {error}"
    return JSONResponse({"error": {"message": words, "type": "invalid_request_error"}}, status_code=status)


class _OneModel:
    """In the place of `ModelManager`, which loads whatever a request names."""

    get_model_modality = staticmethod(ModelManager.get_model_modality)

    def __init__(self, served: Served) -> None:
        self.served = served

    def get_gen_models(self) -> list[dict[str, Any]]:
        return [{"id": self.served.names[0], "object": "model", "created": 0, "owned_by": "bam"}]

    def shutdown(self) -> None:
        """Nothing to do: the process ends."""


class _WithinContext(GenerateManager):
    """Asks for no more tokens than the model reads."""

    def __init__(self, reads: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        self._reads = reads

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> Any:
        self._fit(inputs, gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> Any:
        self._fit(inputs, gen_config)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)

    def _fit(self, inputs: Any, gen_config: Any) -> None:
        n_prompt = inputs["input_ids"].shape[-1]
        if not 0 < n_prompt < self._reads:
            words = f"the prompt has {n_prompt or 'no'} tokens; this model reads {self._reads}, an answer included"
            raise HTTPException(400, words)
        if gen_config.max_new_tokens < 1:
            raise HTTPException(400, f"max_tokens: {gen_config.max_new_tokens}: must be at least 1")
        gen_config.max_new_tokens = min(gen_config.max_new_tokens, self._reads - n_prompt)


class _OneThread(GenerationState):
    def __init__(self, served: Served) -> None:
        super().__init__()
        self._only = _WithinContext(served.reads)

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        return self._only


class _Asked(BaseHandler):
    """Of both kinds of request: which model."""

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        served = cast(_OneModel, self.model_manager).served
        asked = body.get("model") or served.names[0]
        if asked not in served.names:
            raise HTTPException(404, f"no model {asked!r}: this server has {' or '.join(served.names)}")
        return served.names[0], served.model, served.tokenizer


class _Chat(_Asked, ChatCompletionHandler):
    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        return await _understood(super().handle_request(body, request_id))


class _Completion(_Asked, CompletionHandler):
    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        return await _understood(super().handle_request(body, request_id))


async def _understood(answer: Awaitable[Any]) -> Any:
    """The answer, or a refusal in words of what cannot be understood."""
    try:
        return await answer
    except NOT_UNDERSTOOD as error:
        raise HTTPException(400, f"{type(error).__name__}: {error}") from error
