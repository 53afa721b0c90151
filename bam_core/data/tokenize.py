"""Text to token ids: every text has a tokenisation, and bytes can be counted exactly.

Ours is a byte-level BPE. Others serve that are byte-level, or that write spaces as a mark and have a piece for each
byte, as sentencepiece's of Llama and Gemma: nothing of a text is lost in them.

Invariant: the `token_bytes` of a text's ids add up to its UTF-8 size, in the normal form that the tokenizer gives it,
with the space that some put in front of a text. Bits per byte rests on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from bam_core.errors import InvalidInput, Problem

END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<EOS_TOKEN>", "<|im_end|>", "[EOS]", "<|end|>")
"""What ends a document, by preference: ours, GPT-2's and NeoX's; Llama 3's; the others' usual ones."""

SPACE_MARK = "\u2581"
"""What sentencepiece writes for a space."""
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
PROBE = "A  na\u00efve\n\tcaf\u00e9 \u2014 \u6771\u4eac \ufb01 \U0001f642 <x>"
"""What comes back changed from a tokenizer that loses text."""

SMALLEST_VOCABULARY = 256 + 1
"""All bytes and the end of text."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE and return its `tokenizer.json`. `<|endoftext|>` is id 0, the bytes follow.

    The vocabulary is smaller than asked for when the texts hold no more pairs to merge. Raises InvalidInput.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        expected = f"must be at least {SMALLEST_VOCABULARY}: every byte and the end of text"
        raise InvalidInput("tokenizer", [Problem("vocab_size", vocab_size, expected)])
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(END_OF_TEXT, special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True))


class Tokenizer:
    """A trained tokenizer.

    vocab_size: the highest id + 1. eos_id: what ends every document. token_bytes [vocab_size]: UTF-8 bytes
    that each id stands for; 0 for special tokens. cuts_like_gpt2: it cuts text by GPT-2's pattern and then makes ids of
    each part by itself, and of nothing else.
    """

    def __init__(self, definition: str, where: str = "tokenizer") -> None:
        """Read a `tokenizer.json`. Raises InvalidInput unless it keeps every text and has an end token."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise _invalid(where, f"must be a tokenizer.json: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # "<|endoftext|>" inside a document is text like any other.
        self._tokenizer.encode_special_tokens = True
        read = json.loads(definition)
        end_ids = [self._tokenizer.token_to_id(name) for name in END_TOKENS]
        known = [index for index in end_ids if index is not None]
        if not known:
            raise _invalid(where, f"must have an end-of-text token, one of {', '.join(END_TOKENS)}")
        self.eos_id = known[0]
        if not _is_byte_level(read):
            self._require_keeping(where)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.token_bytes = np.zeros(self.vocab_size, dtype=np.int32)
        added = self._tokenizer.get_added_tokens_decoder()
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        only_bytes = (
            _is_byte_level(read) and alphabet <= vocabulary.keys() and all(token.special for token in added.values())
        )
        self.cuts_like_gpt2 = only_bytes and _cuts_like_gpt2(read)
        # One character of a byte-level token is one byte.
        count = len if any(step["type"] == "ByteLevel" for step in _steps(read["pre_tokenizer"])) else _bytes_of_piece
        for token, index in vocabulary.items():
            if index not in added:
                self.token_bytes[index] = 0 if token == read["model"].get("unk_token") else count(token)
            elif not added[index].special:
                self.token_bytes[index] = len(token.encode())

    def _require_keeping(self, where: str) -> None:
        """Raises InvalidInput unless texts come back from their ids, but for a space in front, and cannot end."""
        (ids,) = self.encode_batch([PROBE])
        found = self.decode(ids)
        if found.removeprefix(" ") != PROBE:
            expected = (
                "must be a byte-level tokenizer, or have a piece for every byte: others do not keep every byte of the "
                f"text; this one gives {found!r} back for {PROBE!r}"
            )
            raise _invalid(where, expected)
        end = self._tokenizer.id_to_token(self.eos_id)
        if self.eos_id in self.encode_batch([f"a{end}b"])[0]:
            expected = f"must not read its end-of-text token out of a text that holds {end!r}"
            raise InvalidInput(where, [Problem("path", where, expected, "a BPE in place of a Unigram model does not")])

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`. Raises InvalidInput, naming the file."""
        try:
            definition = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _invalid(str(path), f"must be a readable tokenizer.json: {error}") from error
        return cls(definition, where=str(path))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, with nothing added in front or behind."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; special tokens have none. Bytes of a cut character read as U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of each, by as many threads as the machine has."""
        return list(self._tokenizer.decode_batch([list(ids) for ids in batch], skip_special_tokens=True))


def _invalid(where: str, expected: str) -> InvalidInput:
    return InvalidInput(where, [Problem("path", where, expected)])


def _is_byte_level(definition: dict[str, Any]) -> bool:
    """Whether bytes become characters one to one, behind at most a composition of Unicode (NFC)."""
    steps = list(_steps(definition.get("pre_tokenizer")))
    return definition.get("normalizer") in (None, {"type": "NFC"}) and any(
        step["type"] == "ByteLevel" and not step.get("add_prefix_space", True) for step in steps
    )


def _bytes_of_piece(token: str) -> int:
    """Of a tokenizer that writes spaces as a mark and unknown characters as bytes."""
    return 1 if BYTE_PIECE.fullmatch(token) else len(token.replace(SPACE_MARK, " ").encode())


def _cuts_like_gpt2(definition: dict[str, Any]) -> bool:
    step, model = definition.get("pre_tokenizer") or {}, definition["model"]
    plain = definition.get("normalizer") is None and model["type"] == "BPE" and not model.get("dropout")
    return plain and step["type"] == "ByteLevel" and step.get("use_regex", True)


def _steps(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is None:
        return
    if pre_tokenizer["type"] == "Sequence":
        for step in pre_tokenizer["pretokenizers"]:
            yield from _steps(step)
    else:
        yield pre_tokenizer
