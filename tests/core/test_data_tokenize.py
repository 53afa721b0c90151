"""Byte-level BPE: every text comes back, every byte is counted, and training repeats to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from bam_core.data.tokenize import END_OF_TEXT, SPACE_MARK, Tokenizer, train_bpe
from bam_core.errors import InvalidInput

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""

CORPUS = [
    "the cat sat on the mat, the end.\n" * 20,
    "def f(x):\n    return x + 1\n" * 20,
    "naïve café — 東京 🙂",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CORPUS, 300))


@CALM
@given(text=st.text() | st.sampled_from([END_OF_TEXT, f"a{END_OF_TEXT}b", "\x00", "\r\n", "  x", "e\u0301"]))
def test_every_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.eos_id not in ids, "the end of a document is never read out of its text"


def test_the_first_merge_is_the_most_frequent_pair():
    tokenizer = Tokenizer(train_bpe(["ab ab ab cb"], 258))
    assert tokenizer.vocab_size == 258
    assert tokenizer.eos_id == 0
    assert tokenizer.encode_batch(["ab"]) == [[257]]
    assert tokenizer.token_bytes.tolist() == [0] + [1] * 256 + [2]


def test_a_text_with_nothing_left_to_merge_gives_a_smaller_vocabulary():
    assert Tokenizer(train_bpe(["xy"], 1000)).vocab_size == 258


def test_training_gives_the_same_file_whatever_the_threads_and_hash_seed():
    program = (
        "import hashlib, sys; from bam_core.data.tokenize import train_bpe;"
        "texts = [f'{n} of {n * n % 97} items, or {n % 13}' for n in range(2000)];"
        "print(hashlib.sha256(train_bpe(texts, 500).encode()).hexdigest())"
    )
    digests = set()
    for threads, hash_seed in (("1", "1"), ("4", "2"), ("3", "3")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        )
        digests.add(done.stdout.strip())
    texts = [f"{n} of {n * n % 97} items, or {n % 13}" for n in range(2000)]
    assert digests == {hashlib.sha256(train_bpe(texts, 500).encode()).hexdigest()}


def test_load_reads_what_training_wrote(tmp_path, tokenizer):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(CORPUS, 300), encoding="utf-8")
    loaded = Tokenizer.load(path)
    assert loaded.encode_batch(CORPUS) == tokenizer.encode_batch(CORPUS)
    assert np.array_equal(loaded.token_bytes, tokenizer.token_bytes)


def test_an_added_token_of_plain_text_counts_its_bytes():
    other = tokenizers.Tokenizer.from_str(train_bpe(CORPUS, 300))
    other.add_tokens([AddedToken("é  é", normalized=False)])
    tokenizer = Tokenizer(other.to_str())
    (ids,) = tokenizer.encode_batch(["a é  é"])
    assert 300 in ids
    assert tokenizer.token_bytes[ids].sum() == len("a é  é".encode())


def test_composing_unicode_is_accepted_and_counts_what_is_predicted():
    other = tokenizers.Tokenizer.from_str(train_bpe(CORPUS, 300))
    other.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(other.to_str())
    (ids,) = tokenizer.encode_batch(["e\u0301"])
    assert tokenizer.token_bytes[ids].sum() == len("é".encode())


def marked(model: models.Model, prefix: bool) -> tokenizers.Tokenizer:
    """A tokenizer that writes spaces as sentencepiece does."""
    made = tokenizers.Tokenizer(model)
    steps = [normalizers.Replace(" ", SPACE_MARK)]
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), *steps] if prefix else steps)
    ends = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)] if prefix else ends)
    made.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    return made


PIECES = [
    "<unk>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    SPACE_MARK,
    "a",
    "t",
    "é",
    f"{SPACE_MARK}a",
    "at",
]
BYTE_PIECES = {piece: index for index, piece in enumerate(PIECES)}


@cache
def by_pieces(prefix: bool) -> Tokenizer:
    merges = [(SPACE_MARK, "a"), ("a", "t")]
    model = models.BPE(BYTE_PIECES, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return Tokenizer(marked(model, prefix).to_str())


@pytest.mark.parametrize("prefix", [False, True])
@CALM
@given(text=st.text() | st.sampled_from(["a</s>b", "<0x41>", "  at a\n", "<unk>"]))
def test_pieces_and_bytes_keep_every_text_too(prefix, text):
    """The mark itself is read back as a space, which is all that is lost."""
    text = text.replace(SPACE_MARK, "")
    tokenizer = by_pieces(prefix)
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode()) + (prefix and bool(text))
    assert tokenizer.eos_id not in ids
    assert not tokenizer.cuts_like_gpt2


def test_a_space_in_front_counts_as_a_byte_of_the_text():
    trained = json.loads(train_bpe(CORPUS, 300))
    spaced = {**trained, "pre_tokenizer": {**trained["pre_tokenizer"], "add_prefix_space": True}}
    tokenizer = Tokenizer(json.dumps(spaced))
    for text, n_bytes in (("the cat", 8), (" the cat", 8), ("naïve", 7)):
        assert tokenizer.token_bytes[tokenizer.encode_batch([text])[0]].sum() == n_bytes
    assert not tokenizer.cuts_like_gpt2


def test_a_tokenizer_that_reads_the_end_out_of_a_text_is_refused():
    model = models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=0, byte_fallback=True)
    with pytest.raises(InvalidInput, match=r"must not read its end-of-text token out of a text that holds '</s>'"):
        Tokenizer(marked(model, prefix=True).to_str())


def test_bytes_of_a_cut_character_decode_to_the_replacement_character(tokenizer):
    (ids,) = tokenizer.encode_batch(["🚀"])
    assert len(ids) > 1
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode([tokenizer.eos_id]) == ""


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(InvalidInput, match=r"vocab_size: 256: must be at least 257"):
        train_bpe(CORPUS, 256)


def unfit_tokenizers() -> dict[str, tuple[str, str]]:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, END_OF_TEXT: 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trained = json.loads(train_bpe(CORPUS, 300))
    nameless = json.dumps({**trained, "added_tokens": []}).replace(END_OF_TEXT, "<|start|>")
    lowercase = {**trained, "normalizer": {"type": "Lowercase"}}
    return {
        "no JSON": ("{", "tokenizer.json"),
        "other JSON": ('{"a": 1}', "tokenizer.json"),
        "words": (words.to_str(), "byte-level"),
        "lower case": (json.dumps(lowercase), "byte-level"),
        "no end": (nameless, "end-of-text"),
    }


@pytest.mark.parametrize("case", list(unfit_tokenizers()))
def test_a_tokenizer_that_cannot_serve_is_refused_with_its_file(tmp_path, case):
    definition, expected = unfit_tokenizers()[case]
    path = tmp_path / "tokenizer.json"
    path.write_text(definition, encoding="utf-8")
    with pytest.raises(InvalidInput, match=expected) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "missing.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"missing\.json"):
        Tokenizer.load(path)
