"""Shares of 13-word runs against sets of tuples, and what counts as the same document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.evaluate.overlap import RUN, HeldOut, Overlap, words_of

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""

texts = st.lists(st.lists(st.sampled_from("ab"), max_size=40).map(" ".join), max_size=5)
"""Two words only: so runs of 13 do occur twice."""
WORDS = [f"word{number}" for number in range(40)]
LONG = " ".join(WORDS)


def runs(text: str) -> list[tuple[str, ...]]:
    words = re.sub(r"[\W_]+", " ", text.casefold()).split()
    return [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]


def overlap_of_texts(held_out: Sequence[str], training: Mapping[str, Sequence[str]]) -> Overlap:
    index = HeldOut({"texts": held_out})
    for domain, documents in training.items():
        for document in documents:
            index.compare(domain, [document])
    return index.found("texts")


def naive_share(text: str, training: Sequence[str]) -> float:
    seen = {run for other in training for run in runs(other)}
    own = runs(text)
    return sum(run in seen for run in own) / len(own) if own else 0.0


@CALM
@given(held_out=st.fixed_dictionaries({"x": texts, "y": texts}), one=texts, two=texts, data=st.data())
def test_shares_are_those_of_sets_of_tuples(held_out, one, two, data):
    index = HeldOut(held_out)
    for domain, training in (("one", one), ("two", two)):
        cut = data.draw(st.integers(0, len(training)))  # batches do not matter
        index.compare(domain, training[:cut])
        index.compare(domain, training[cut:])
    for domain, documents in held_out.items():
        found = index.found(domain)
        copies = [bool(text) and text.split() in [other.split() for other in one + two] for text in documents]
        assert [copied is not None for copied in found.duplicate] == copies
        expected = [1.0 if c else naive_share(t, one + two) for t, c in zip(documents, copies, strict=True)]
        assert found.share.tolist() == pytest.approx(expected, abs=1e-12)
        assert found.n_runs.tolist() == [len(runs(text)) for text in documents]
        total = sum(found.n_runs)
        for training, name in ((one, "one"), (two, "two")):
            hits = sum(naive_share(text, training) * len(runs(text)) for text in documents)
            assert found.by_training[name] == pytest.approx(hits / total if total else 0.0, abs=1e-12)


def test_a_run_needs_all_its_words_in_order_and_within_one_document():
    index = HeldOut({"x": [" ".join(WORDS[:RUN])]})
    index.compare("y", [" ".join(WORDS[: RUN - 1]), WORDS[RUN - 1]])
    index.compare(
        "y", [" ".join([*WORDS[1:RUN], WORDS[0]]), " ".join([*WORDS[: RUN - 1], "other", *WORDS[RUN - 1 : RUN]])]
    )
    assert index.found("x").share.tolist() == [0.0]
    index.compare("y", ["before " + " ".join(WORDS[:RUN]) + " behind"])
    assert index.found("x").share.tolist() == [1.0]
    assert index.found("x").duplicate == (None,)


def test_every_word_of_a_run_counts_and_where_it_stands():
    index = HeldOut({"x": [" ".join(WORDS[:RUN]), " ".join(WORDS)]})
    for place in range(RUN):
        other = WORDS[30]  # a word that is known
        index.compare("y", [" ".join([*WORDS[:place], other, *WORDS[place + 1 : RUN]])])
        following = (place + 1) % RUN
        swapped = list(WORDS[:RUN])
        swapped[place], swapped[following] = swapped[following], swapped[place]
        index.compare("y", [" ".join(swapped)])
    assert index.found("x").share.tolist() == [0.0, 0.0]


def test_case_white_space_and_punctuation_do_not_count_and_letters_and_digits_do():
    assert words_of("The  law, of\nNature_1 (x+1): naïve STRASSE straße") == [
        *("the", "law", "of", "nature", "1", "x", "1", "naïve", "strasse", "strasse")
    ]
    found = overlap_of_texts(["One, two!", "one two 3"], {"y": ["ONE\ntwo"]})
    assert found.duplicate == ("y", None)
    assert found.share.tolist() == [1.0, 0.0]


def test_a_document_of_fewer_words_than_a_run_is_in_training_text_as_a_whole_or_not_at_all():
    short = " ".join(WORDS[: RUN - 1])
    assert overlap_of_texts([short], {"y": [short + " more"]}).share.tolist() == [0.0]
    assert overlap_of_texts([short], {"y": [short]}).share.tolist() == [1.0]


def test_half_a_document_in_training_text():
    first_half = " ".join(WORDS[: RUN + 7])  # 8 runs of the 28
    found = overlap_of_texts([LONG, "nothing of it"], {"y": [first_half], "z": ["else"]})
    assert found.share.tolist() == [8 / 28, 0.0]
    assert found.by_training == {"y": 8 / 28, "z": 0.0}
    assert found.mean_share == 4 / 28
    assert found.above(8 / 28) == []
    assert found.above(0.28) == [0]
    assert found.start[0] == " ".join(WORDS[:12])


def test_parts_of_one_document_are_no_duplicates():
    index = HeldOut({"x": [LONG]})
    index.compare("y", [LONG], whole=False)
    found = index.found("x")
    assert found.duplicate == (None,)
    assert found.share.tolist() == [1.0]


def test_duplicates_come_first_also_where_a_share_may_be_anything():
    found = overlap_of_texts(["a copy", LONG], {"y": ["A copy.", LONG + " and more"]})
    assert found.above(1.0) == [0]
    assert found.above(0.5) == [0, 1]


def test_nothing_held_out_is_no_overlap():
    index = HeldOut({"x": [], "y": [""]})
    index.compare("z", [LONG, ""])
    assert len(index.found("x")) == 0
    assert index.found("x").mean_share == 0.0
    assert index.found("y").share.tolist() == [0.0]
    assert overlap_of_texts([LONG], {}).share.tolist() == [0.0]


def test_numbers_of_words_do_not_decide():
    """The same held-out document among others, whatever was indexed before it."""
    random = np.random.default_rng(0)
    others = [" ".join(random.permutation(WORDS)) for _ in range(50)]
    alone, among = HeldOut({"x": [LONG]}), HeldOut({"a": others, "x": [LONG]})
    for index in (alone, among):
        index.compare("y", [LONG[:150], *others])
    assert alone.found("x").share.tolist() == among.found("x").share.tolist()
    assert among.found("a").share.tolist() == [1.0] * 50
