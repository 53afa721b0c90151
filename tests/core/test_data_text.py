"""Splitting: a function of the texts alone, without leaks between training and validation."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.data.text import size_bytes, split
from bam_core.errors import InvalidInput
from bam_core.protocols import Document

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""

words = st.text(alphabet="abcé ", min_size=1, max_size=8)
texts = st.lists(words.filter(str.strip), min_size=2, max_size=40, unique_by=lambda t: "".join(t.split()))


def documents(*texts: str) -> list[Document]:
    return [Document(text, f"{number}") for number, text in enumerate(texts)]


def of(part: tuple[Document, ...]) -> list[str]:
    return [document.text for document in part]


@CALM
@given(texts, st.randoms(use_true_random=False), st.floats(0.05, 0.9))
def test_order_and_names_of_the_documents_do_not_matter(texts, random, valid_frac):
    shuffled = list(texts)
    random.shuffle(shuffled)
    try:
        one = split(documents(*texts), valid_frac)
    except InvalidInput:
        with pytest.raises(InvalidInput):
            split(documents(*shuffled), valid_frac)
        return
    other = split([Document(text, "elsewhere") for text in shuffled], valid_frac)
    assert of(one.train) == of(other.train)
    assert of(one.valid) == of(other.valid)


@CALM
@given(st.integers(0, 2**32), st.floats(0.02, 0.5))
def test_every_text_is_in_one_part_and_validation_gets_its_share(seed, valid_frac):
    texts = [f"document {seed} {number}\n" * (1 + number % 7) for number in range(60)]
    result = split(documents(*texts), valid_frac)
    total, share = size_bytes(documents(*texts)), size_bytes(result.valid)
    assert sorted(of(result.train) + of(result.valid)) == sorted(texts)
    largest = max(map(len, texts))
    assert valid_frac * total - largest <= share <= valid_frac * total


def test_a_new_document_keeps_the_order_of_the_others():
    texts = [f"text number {number}" for number in range(50)]
    before = split(documents(*texts), 0.1)
    after = split(documents(*texts, "one more"), 0.1)
    without = [text for text in of(after.valid) + of(after.train) if text != "one more"]
    assert sorted(without) == sorted(texts)
    common = [text for text in of(before.train) if text in of(after.train)]
    assert [text for text in of(after.train) if text in common] == common
    assert of(before.train) != texts[: len(before.train)], "the order of content must shuffle"


def test_texts_that_differ_in_case_and_white_space_only_count_once():
    result = split(documents("The Law\n", " the  law", "THE\tLAW", "another text", "and a third"), 0.3)
    assert result.n_duplicates == 2
    assert len(result.train) + len(result.valid) == 3


@CALM
@given(texts, st.integers(1, 300))
def test_no_more_than_max_bytes_are_kept(texts, max_bytes):
    try:
        result = split(documents(*texts), 0.5, max_bytes)
    except InvalidInput:
        return
    kept, total = size_bytes(result.train + result.valid), size_bytes(documents(*texts))
    longest_character = 2
    assert min(max_bytes, total) - longest_character < kept <= max_bytes


def test_one_long_document_is_cut_at_the_end_of_a_line():
    text = "".join(f"line {number}\n" for number in range(100))
    result = split(documents(text), 0.1)
    assert of(result.valid)[0] + of(result.train)[0] == text
    assert of(result.valid)[0].endswith("\n")
    assert 0.08 * len(text) < len(of(result.valid)[0]) <= 0.1 * len(text)


def test_a_text_without_lines_is_cut_between_characters():
    result = split(documents("é" * 101), 0.25)
    assert of(result.valid) + of(result.train) == ["é" * 25, "é" * 76]


@pytest.mark.parametrize("texts", [[], ["", " \n"], ["a"]])
def test_too_little_text_is_refused(texts):
    with pytest.raises(InvalidInput, match="enough text"):
        split(documents(*texts), 0.1)


@pytest.mark.parametrize("valid_frac", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(valid_frac):
    with pytest.raises(InvalidInput, match="valid_frac"):
        split(documents("some text", "more text"), valid_frac)
