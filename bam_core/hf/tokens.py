"""The tokenizer of an export, so that `AutoTokenizer` opens it and texts become the ids that the model was trained on.

A document begins with the end-of-text token in training (`bam_core.data`), so that is what the tokenizer puts in front;
transformers 5 does what tokenizer.json says of that, whatever tokenizer_config.json says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from bam_core.data.tokenize import END_TOKENS
from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
CARRIED = (TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION)
"""Files beside the tokenizer that say how it is used."""


def write_tokenizer(
    folder: Path, out: Path, max_length: int, chat_template: Path | None = None, beside: Path | None = None
) -> dict[str, int]:
    """The files of a tokenizer, from a model folder. Returns the ids of its special tokens, for the model's config.

    A tokenizer_config.json and a chat template that lie there, or in `beside`, are carried as they are; code is not.
    chat_template: one that takes the place of those. Raises InvalidInput for a template that is not there.
    """
    if chat_template is not None and not chat_template.is_file():
        raise InvalidInput("an export", [Problem("chat_template", str(chat_template), "is no file")])
    if not (folder / TOKENIZER).is_file():
        return {}
    template = chat_template or _found(CHAT_TEMPLATE, folder, beside)
    if template is not None:
        shutil.copyfile(template, out / CHAT_TEMPLATE)
    path = _found(TOKENIZER_CONFIG, folder, beside)
    given = read_json(path) if path is not None else {}
    given.pop("auto_map", None)
    if chat_template is not None:
        given.pop("chat_template", None)
    try:
        known = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactDamaged(f"{folder / TOKENIZER}: cannot be read ({error})") from error
    config = given or _config(known, max_length)
    if given or known.post_processor is not None or "bos_token" not in config:
        shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    else:
        _begin_documents(known, config["bos_token"])
        (out / TOKENIZER).write_text(known.to_str(pretty=True), encoding="utf-8")
    (out / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return _ids(known, config)


def carried_settings(folder: Path, beside: Path | None) -> dict[str, Any]:
    """Of generation, as the model came with them; none of a model that was made here."""
    path = _found(GENERATION, folder, beside)
    return read_json(path) if path is not None else {}


def _found(name: str, folder: Path, beside: Path | None) -> Path | None:
    return next((place / name for place in (folder, beside) if place is not None and (place / name).is_file()), None)


def _config(known: tokenizers.Tokenizer, max_length: int) -> dict[str, Any]:
    end = next((name for name in END_TOKENS if known.token_to_id(name) is not None), None)
    tokens = {"bos_token": end, "eos_token": end, "pad_token": end, "add_bos_token": True} if end is not None else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "left",
    }


def _begin_documents(known: tokenizers.Tokenizer, token: str) -> None:
    """Put the token in front of every text, and of the second of two."""
    known.post_processor = processors.TemplateProcessing(
        single=f"{token}:0 $A:0",
        pair=f"{token}:0 $A:0 {token}:1 $B:1",
        special_tokens=[(token, known.token_to_id(token))],
    )


def _ids(known: tokenizers.Tokenizer, config: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        number = known.token_to_id(token) if isinstance(token, str) else None
        if number is not None:
            found[f"{name}_id"] = number
    return found
