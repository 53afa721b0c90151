"""Text in pieces gives the ids of the whole text, whatever tokenizer, text and order."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from bam_core.data import words
from bam_core.data.tokenize import END_OF_TEXT, Tokenizer, train_bpe
from bam_core.data.words import PIECE, Pieces, encoded
from tests.core.test_data_tokenize import CALM

UNSURE = "\x1c\x1d\x1e\x1f\x85\u180e\u200b"

CORPUS = [
    "".join(f"a{c}  x {c}. {c}\n\n" for c in UNSURE) * 20,  # so that a cut beside one would part a token
    "it's the cat's, they're here; we've said (I'd say) `x.y` -- don't!\n\n" * 20,
    "def f(x):\n    return self.x['a'] + 1  # a  b\n\t\tif  x :\r\n\r\n" * 20,
    "naïve café — 東京 🙂 é. ''' \"\"\"  \xa0 \u3000x" * 20,
    "a. .b ,\n. \n.\n\n ..  ((( )))  !\n \n  's 'S 're 's.x",
]

HARD = ["'", "s", "re", "'s", ".", "(", " ", "  ", "\n", "\n\n", "\r", "\t", "\x0b", "\xa0", "\u3000", *UNSURE]
HARD += ["é", "E", "x", "1", "²", "Ⅷ", "東", "\u0301", "🙂", "_", "—", "\u2019", END_OF_TEXT, "\x00"]
TEXTS = st.lists(st.sampled_from(HARD) | st.text(max_size=3), max_size=20).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CORPUS, 480))


def whole(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode_batch([text])[0] for text in texts]


@CALM
@given(texts=st.lists(TEXTS, max_size=4))
def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    found = list(encoded(texts, tokenizer))
    assert [ids.tolist() for ids in found] == whole(texts, tokenizer)
    assert all(ids.dtype == np.uint16 for ids in found)


def test_all_neighbours(tokenizer: Tokenizer) -> None:
    """Each three of what is hard, so each cut with what may come before and behind it; in one batch and in many."""
    texts = ["".join(three) for three in product(HARD, repeat=3)]
    wanted = tokenizer.encode_batch(texts)
    pieces = Pieces(tokenizer)
    assert [ids.tolist() for ids in pieces.encode(texts)] == wanted
    assert [ids.tolist() for text in texts[::40] for ids in pieces.encode([text])] == wanted[::40], "all known by now"


def test_text_is_cut_where_it_repeats() -> None:
    assert PIECE.findall(" def f(x):\n  return x.y's ") == [" def", " f", "(x", "):", "\n  return", " x", ".y's", " "]


def test_what_is_kept_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "KEPT_BYTES", 1000)
    monkeypatch.setattr(words, "BATCH_CHARS", 40)
    monkeypatch.setattr(words, "PIECES_PER_CALL", 3)
    texts = [f"{text} {index}" for index in range(5) for text in CORPUS]
    assert [ids.tolist() for ids in encoded(texts, tokenizer)] == whole(texts, tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            }
        },
    ],
    ids=["normalised", "uncut", "digits"],
)
def test_other_tokenizers_see_whole_texts(tokenizer: Tokenizer, change: dict[str, Any]) -> None:
    definition = json.loads(train_bpe(CORPUS, 480)) | change
    other = Tokenizer(json.dumps(definition))
    assert tokenizer.cuts_like_gpt2
    assert not other.cuts_like_gpt2
    texts = [*CORPUS, "e\u0301 12 . 34", ""]
    assert [ids.tolist() for ids in encoded(texts, other)] == whole(texts, other)


def test_a_token_that_a_user_added_is_found_in_whole_texts() -> None:
    library = Library.from_str(train_bpe(CORPUS, 480))
    library.add_tokens([AddedToken("cat (x", normalized=False)])
    other = Tokenizer(library.to_str())
    assert not other.cuts_like_gpt2
    [ids] = encoded(["the cat (x)"], other)
    assert len(library.get_vocab()) - 1 in ids


def test_many_ids_take_the_wider_type() -> None:
    definition = json.loads(train_bpe(CORPUS, 480))
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {f"<{index}>": index for index in range(len(vocabulary), 70_000)}
    wide = Tokenizer(json.dumps(definition))
    [ids] = encoded([CORPUS[0]], wide)
    assert ids.dtype == np.uint32
    assert ids.tolist() == whole(CORPUS[:1], wide)[0]
