"""A conversation as the token ids that a model reads, by the files of its folder; and ids as text, piece by piece.

A model that has a chat template (`chat_template.jinja`, or in `tokenizer_config.json`) is asked by it, as transformers
does; any other model continues the text so far. A template is a program that came with a model, so it runs in jinja2's
sandbox. What stands for a special token in a template, or in what a person types, is that token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from bam_core.data.tokenize import END_TOKENS
from bam_core.errors import InvalidInput, Problem, UsageError
from bam_core.hf.tokens import CHAT_TEMPLATE

Message = Mapping[str, str]
"""`role`: system, user or assistant; `content`."""


class ChatFormat:
    """What a model's folder says of texts. template: None for a model without one.

    start_ids: what stands before a text that is none of the template's. stop_ids: what ends an answer.
    """

    def __init__(self, folder: Path, settings: Path | None = None, *, plain: bool = False) -> None:
        """settings: a folder that has what this one has not but `tokenizer.json`. plain: leave the template out.

        Raises InvalidInput for files that cannot be read.
        """
        self._tokenizer = _tokenizer(folder / "tokenizer.json")
        settings = folder if settings is None or _has_settings(folder) else settings
        config = _json(settings / "tokenizer_config.json")
        self._special = {name: _text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.template = None if plain else _template(settings, config)
        self._compiled = _of_model(self.template, settings) if self.template is not None else None
        self.stop_ids = self._ends(_json(settings / "generation_config.json").get("eos_token_id"))
        self.start_ids = self._start()

    def _ends(self, said: Any) -> frozenset[int]:
        named = [self._tokenizer.token_to_id(name) for name in (self._special["eos_token"], *END_TOKENS) if name]
        known = [*named, *(said if isinstance(said, list) else [said])]
        return frozenset(index for index in known if type(index) is int)

    def _start(self) -> list[int]:
        """What the tokenizer puts before a text, or the token that ends documents, as at the start of training text."""
        found: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        ends = [self._tokenizer.token_to_id(name) for name in END_TOKENS]
        return found or [index for index in ends if index is not None][:1]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers; without a template, all that was said, a line after the other.

        Raises UsageError for messages that the template refuses.
        """
        if self._compiled is None:
            return [*self.start_ids, *self._encoded("\n".join(message["content"] for message in messages))]
        try:
            text = self._compiled.render(
                messages=[dict(message) for message in messages], add_generation_prompt=True, **self._special
            )
        except TemplateError as error:
            raise UsageError(
                f"the model's chat template refuses these messages: {error}; --plain does without"
            ) from error
        return self._encoded(text)

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def pieces(self) -> Pieces:
        """For one answer."""
        return Pieces(self._tokenizer)


class Pieces:
    """Ids to text as they come: a character that takes several tokens appears with its last."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._said = ""

    def __call__(self, token: int) -> str:
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._said += piece
        return piece

    def rest(self) -> str:
        """Of the whole text what no token has brought: bytes that are no character, or not yet one, as U+FFFD."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text.removeprefix(self._said) if text.startswith(self._said) else ""


def _has_settings(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer_config.json", CHAT_TEMPLATE))


def _tokenizer(file: Path) -> tokenizers.Tokenizer:
    try:
        found = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise InvalidInput(str(file), [Problem("", file.name, f"must be a tokenizer.json: {error}")]) from error
    found.no_padding()
    found.no_truncation()
    return found


def _json(file: Path) -> dict[str, Any]:
    """The object of a file, or none where there is no such file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(str(file), [Problem("", file.name, f"must be JSON: {error}")]) from error
    if not isinstance(found, dict):
        raise InvalidInput(str(file), [Problem("", file.name, "must be a JSON object")])
    return found


def _text(token: Any) -> str | None:
    """Of a token, which is its text or an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Of several templates in the configuration, the one named default."""
    file = folder / CHAT_TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get("default")
    return found if isinstance(found, str) else None


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way to declare it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _of_model(template: str, folder: Path) -> Any:
    try:
        return compiled(template)
    except TemplateError as error:
        where, words = str(folder), f"is no template of jinja2: {error}"
        raise InvalidInput(where, [Problem("chat_template", template[:40], words, "--plain does without")]) from error


def compiled(template: str) -> Any:
    """As transformers compiles it. Raises jinja2's TemplateError."""

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    return environment.from_string(template)
