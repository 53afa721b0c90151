"""From rows to documents: what each key of a source leaves out, counted; which documents a cap takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.data.picking import Picker, Placed, picking_problems
from bam_core.errors import InvalidInput
from bam_core.protocols import Tally

ROWS = [{"text": "a" * n, "lang": "en" if n % 2 else "de", "n": n} for n in range(1, 11)]


def placed(rows: list[dict[str, Any]]) -> Iterator[Placed]:
    return (Placed(row, f"f:{number}", f"f:{number}") for number, row in enumerate(rows, start=1))


def picked(spec: dict[str, Any], rows: list[dict[str, Any]] = ROWS) -> tuple[list[str], Tally]:
    tally = Tally()
    return [document.text for document in Picker.of(spec).documents(placed(rows), tally)], tally


def test_each_key_leaves_out_what_it_says_and_is_counted():
    spec = {"filter": {"lang": "en", "n": {"max": 7}}, "min_chars": 2, "max_chars": 6}
    texts, tally = picked(spec)
    assert texts == ["a" * 3, "a" * 5]
    assert tally.dropped == {"filter.lang": 5, "filter.n": 1, "min_chars": 1, "max_chars": 1}
    assert (tally.read, tally.kept) == (10, 2)


def test_what_a_filter_drops_need_have_no_text():
    texts, _ = picked({"filter": {"ok": True}}, [{"ok": False, "text": None}, {"ok": True, "text": "x"}])
    assert texts == ["x"]


def test_the_first_are_taken_and_the_rest_is_not_read():
    def endless() -> Iterator[Placed]:
        while True:
            yield Placed({"text": "x"}, "f", "f")

    tally = Tally()
    assert len(list(Picker.of({"max_documents": 3}).documents(endless(), tally))) == 3
    assert (tally.read, tally.stopped) == (3, "max_documents")


texts_of = st.lists(st.text("ab", max_size=4), max_size=12)


@given(texts=texts_of, most=st.integers(1, 6), sample=st.integers(0, 3), data=st.data())
def test_a_sample_is_the_smallest_hashes_whatever_the_order(texts, most, sample, data):
    spec = {"max_documents": most, "sample": sample}
    found, tally = picked(spec, [{"text": text} for text in texts])
    other, _ = picked(spec, [{"text": text} for text in data.draw(st.permutations(texts))])
    by_hash = sorted(texts, key=lambda text: hashlib.sha256(f"{sample}\n{text}".encode()).digest())
    assert found == other == by_hash[:most]
    assert tally.kept == len(found)


def test_other_samples_are_other_documents():
    rows = [{"text": str(n)} for n in range(100)]
    assert len({tuple(picked({"max_documents": 5, "sample": n}, rows)[0]) for n in range(10)}) == 10


def test_a_filter_on_what_no_row_has_is_an_error_and_not_an_empty_text():
    with pytest.raises(InvalidInput, match=r"filter: 'lnag': f:10 has no such column; it has text, lang, n \(did you"):
        picked({"filter": {"lnag": "en"}})
    assert picked({"filter": {"lnag": {"exists": False}}})[0]
    assert picked({"filter": {"lnag": "en"}}, [])[0] == []


def test_a_table_is_asked_for_its_columns_at_once():
    picker = Picker.of({"template": "{q} {meta.x}", "filter": {"lang": "en"}})
    assert picker.columns(["meta", "other", "lang", "q"], "t") == ["q", "meta", "lang"]
    with pytest.raises(InvalidInput) as caught:
        picker.columns(["a", "meta"], "t")
    assert [(p.path, p.expected) for p in caught.value.problems] == [
        ("template", "t has no field 'q'; it has a, meta"),
        ("filter", "t has no such column; it has a, meta"),
    ]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"template": 3}, "template"),
        ({"template": "{"}, "template"),
        ({"filter": [1]}, "filter"),
        ({"min_chars": 0}, "min_chars"),
        ({"max_documents": True}, "max_documents"),
        ({"min_chars": 3, "max_chars": 2}, "min_chars"),
        ({"sample": 1}, "sample"),
        ({"sample": -1, "max_documents": 1}, "sample"),
    ],
)
def test_keys_that_cannot_be_meant_are_named(spec, path):
    assert [problem.path for problem in picking_problems(spec, "here")] == [f"here.{path}"]
