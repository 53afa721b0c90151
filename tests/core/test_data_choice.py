"""What a domain takes of its text: copies, near copies, a number of bytes in bounded memory, shares of sources."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.data.distinct import LONGEST_FOLD, Distinct, content_digest
from bam_core.data.near_copies import near_copies, runs_of
from bam_core.data.text import Choice, size_bytes, split
from bam_core.errors import InvalidInput
from bam_core.protocols import Document

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "small", "birds", "sing"]


def documents(*texts: str, part: int = 0) -> list[Document]:
    return [Document(text, f"{number}", part) for number, text in enumerate(texts)]


def prose(seed: int, n_words: int = 60) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) + str(chosen.randrange(9)) for _ in range(n_words))


# copies


texts = st.lists(st.text("aAbBßΐ \n", max_size=12), max_size=14)


@given(texts=texts, enough=st.integers(1, 60), data=st.data())
def test_what_is_kept_in_bounded_memory_is_what_all_of_memory_would_have_kept(texts, enough, data):
    """The reference sorts everything, and then takes documents until there are enough bytes."""
    first: dict[bytes, str] = {}
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if text.strip():
            first.setdefault(content_digest(text), text)
    wanted, n_bytes = [], 0
    for text in first.values():
        if n_bytes < enough:
            wanted.append(text)
        n_bytes += len(text.encode())
    distinct = Distinct(enough)
    for document in documents(*data.draw(st.permutations(texts))):
        distinct.add(document)
    kept = [group[0].text for group in distinct.documents()]
    assert kept[: len(wanted)] == wanted
    assert distinct.n_contents == len(first)
    assert distinct.n_copies == sum(bool(text.strip()) for text in texts) - len(first)


def test_memory_holds_a_few_times_what_is_wanted():
    distinct, most = Distinct(1000), 0
    for number in range(2000):
        distinct.add(Document(f"{number:05d} " + "x" * 94, "f"))
        most = max(most, len(distinct.documents()) if number % 50 == 0 else 0)
    assert most <= 1000 * LONGEST_FOLD // 100 + 2
    assert distinct.n_contents == 2000


def test_no_folding_of_case_makes_a_character_longer_than_is_counted_on():
    characters = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert max(len(c.casefold().encode()) / len(c.encode()) for c in characters) == LONGEST_FOLD


def test_every_step_says_what_it_left_out():
    found = split(documents("one two", "ONE  two", " ", "three", "four", "five"), None, max_bytes=10)
    assert [(step.name, step.dropped, step.kept) for step in found.steps] == [
        ("copies", {"empty": 1, "copies": 1}, 4),
        ("size", {"max_bytes": 4 - len(found.train)}, len(found.train)),
    ]
    assert size_bytes(found.train) == 10


def test_copies_that_are_kept_are_trained_on_and_never_held_out_text_too():
    many = [text for n in range(40) for text in (prose(n, 8), prose(n, 8).upper(), prose(n, 8))]
    found = split(documents(*many), 0.2, choice=Choice(keep_copies=True))
    held_out = {content_digest(document.text) for document in found.valid}
    trained = [content_digest(document.text) for document in found.train]
    assert held_out.isdisjoint(trained)
    assert all(trained.count(content) == 3 for content in set(trained))
    assert found.n_duplicates == 80
    (step,) = [step for step in found.steps if step.name == "held out"]
    n_held_out = len({content_digest(document.text) for document in found.valid})
    assert step.dropped["copies of held-out text"] == 120 - len(found.train) - len(found.valid) == 2 * n_held_out


def test_copies_of_a_document_that_is_cut_for_held_out_text_are_dropped():
    text = "\n".join(prose(n, 6) for n in range(30))
    found = split(documents(text, text.upper()), 0.2, choice=Choice(keep_copies=True))
    assert len(found.train) == len(found.valid) == 1
    assert found.train[0].text.casefold() not in text.casefold().replace(found.train[0].text.casefold(), "")


# near copies


def jaccard(one: str, other: str) -> float:
    a, b = runs_of(one), runs_of(other)
    return len(a & b) / len(a | b)


def test_of_documents_that_are_alike_the_longest_is_kept_whatever_the_order():
    original = prose(1, 200)
    longer, shorter = f"{original} and one more ending here", original.rsplit(" ", 3)[0]
    others = [prose(n, 200) for n in range(2, 12)]
    assert jaccard(longer, shorter) > 0.9
    kept = set()
    for seed in range(3):
        shuffled = [longer, original, shorter, *others]
        random.Random(seed).shuffle(shuffled)
        found = split(documents(*shuffled), None, choice=Choice(near=0.8))
        kept.add(tuple(document.text for document in found.train))
        assert found.steps[1].dropped == {"near copies": 2}
    (texts,) = kept
    assert set(texts) == {longer, *others}


def test_the_threshold_decides_and_case_and_punctuation_do_not():
    base = prose(3, 300)
    changed = base.split(" ")
    for place in range(0, 300, 30):  # each changed word is in five runs
        changed[place] = "other"
    half_alike = " ".join(changed)
    exact = jaccard(base, half_alike)
    assert 0.6 < exact < 0.8
    assert near_copies([base, half_alike], exact - 0.15) == [None, 0]
    assert near_copies([base, half_alike], exact + 0.15) == [None, None]
    assert near_copies([base, base.upper().replace(" ", ", ")], 1.0) == [None, 0]


def test_a_candidate_of_lsh_is_a_copy_only_if_it_is_alike_enough():
    """Of such pairs LSH proposes about half, and at 0.8 none is alike enough."""
    for seed in range(12):
        base = prose(seed, 200)
        words = base.split(" ")
        for place in range(3, 200, 24):
            words[place] = f"other{seed}"
        assert 0.6 < jaccard(base, " ".join(words)) < 0.72
        assert near_copies([base, " ".join(words)], 0.8) == [None, None]


def test_texts_without_words_and_short_ones_are_no_copies_of_each_other():
    assert near_copies(["...", "!!!", "one two", "two one", "One, two!"], 0.8) == [None, None, None, None, 2]


# shares


def parts(sizes: dict[int, int]) -> list[Document]:
    return [Document(prose(100 * part + n, 10), "f", part) for part, many in sizes.items() for n in range(many)]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.25, 0.75)])
@pytest.mark.parametrize("max_bytes", [None, 3000])
def test_each_source_has_its_share_of_as_much_text_as_there_is(shares, max_bytes):
    given_text = parts({0: 60, 1: 90})
    sizes = [size_bytes([d for d in given_text if d.part == part]) for part in (0, 1)]
    found = split(given_text, None, max_bytes, Choice(shares=shares)).train
    taken = [size_bytes([d for d in found if d.part == part]) for part in (0, 1)]
    whole = min(size / share for size, share in zip(sizes, shares, strict=True))
    whole = min(whole, max_bytes or whole)
    assert taken == pytest.approx([share * whole for share in shares], abs=1)


def test_a_text_in_two_sources_is_that_of_the_first():
    both = prose(1)
    found = split([Document(both, "b", 1), Document(both, "z", 0), *parts({1: 3})], None)
    assert [document.part for document in found.train if document.text == both] == [0]


def test_a_source_with_nothing_left_cannot_have_a_share():
    both = prose(1)
    with pytest.raises(InvalidInput, match=r"1: 0.5: has no text of its own left"):
        split([Document(both, "a", 0), Document(both, "b", 1)], None, choice=Choice(shares=(0.5, 0.5)))
