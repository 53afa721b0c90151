"""How many tokens a tokenizer that somebody brings has: known at once, as the model's shape depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bam_core.errors import Problem, install_extra

NEEDS = f"an extra: {install_extra('sentencepiece')}; or convert it to a tokenizer.json (kind: file)"


def fill_vocab_size(document: dict[str, Any]) -> list[Problem]:
    """Write `vocab_size` where it is not said; what is wrong with the file otherwise."""
    spec = document.get("tokenizer")
    if not isinstance(spec, dict) or spec.get("vocab_size") is not None:
        return []
    kind, path = spec.get("kind"), spec.get("path")
    if not isinstance(kind, str) or kind not in COUNTS or not isinstance(path, str) or not path:
        return []
    try:
        spec["vocab_size"] = COUNTS[kind](Path(path).expanduser())
    except OSError as error:
        reason = error.strerror or str(error)
        return [Problem("tokenizer.path", path, f"cannot be read: {reason}", f"give a local {FILES[spec['kind']]}")]
    except ImportError as error:
        return [Problem("tokenizer.path", path, f"cannot be read here: {error}", NEEDS)]
    except (ValueError, KeyError, TypeError, AttributeError):
        libraries = {"file": "is not a tokenizer.json of the tokenizers library", "sentencepiece": "is no such model"}
        return [Problem("tokenizer.path", path, libraries[kind])]
    return []


def _of_json(path: Path) -> int:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    ids: list[int] = list(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))
    ids += [token["id"] for token in tokenizer.get("added_tokens", ())]
    return 1 + max(ids)


def _of_sentencepiece(path: Path) -> int:
    data = path.read_bytes()
    import sentencepiece  # few recipes need it

    try:
        return int(sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size())
    except (RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from error


COUNTS = {"file": _of_json, "sentencepiece": _of_sentencepiece}
FILES = {"file": "tokenizer.json", "sentencepiece": "sentencepiece model"}
