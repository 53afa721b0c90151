"""What text a row stands for: columns, templates, conversations; and whether it is wanted: filters."""

from __future__ import annotations

import datetime
from string import Formatter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.data.fields import (
    MISSING,
    Template,
    Wanted,
    conditions_of,
    field_of,
    filter_problems,
    normal_filter,
)
from bam_core.errors import InvalidInput

ROW = {"q": "Why?", "a": "So.", "n": 3, "meta": {"lang": "en", "deep": {"x": 1}}, "meta.lang": "as it is"}


def problem(call: Any) -> Any:
    with pytest.raises(InvalidInput) as caught:
        call()
    (found,) = caught.value.problems
    return found


# fields and templates


def test_a_field_is_found_by_its_name_before_it_is_taken_for_a_path():
    assert field_of(ROW, "meta.lang") == "as it is"
    assert field_of(ROW, "meta.deep.x") == 1
    for absent in ("z", "meta.z", "q.x", "meta.deep.x.y"):
        assert field_of(ROW, absent) is MISSING


literal = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=5)


@given(parts=st.lists(st.tuples(literal, st.sampled_from(["q", "a", "n"])), min_size=1, max_size=4), end=literal)
def test_a_template_is_filled_as_pythons_own_format_fills_it(parts, end):
    """An independent implementation, for what both allow."""
    source = "".join(f"{text}{{{name}}}" for text, name in parts) + "{{" + end + "}}"
    assert Template.of(source).fill(ROW, "row") == Formatter().format(source, **ROW)
    assert Template.of(source).fields == tuple(dict.fromkeys(name for _, name in parts))


@pytest.mark.parametrize("source", ["", "no field", "{", "}", "{}", "{ q}", "{q", "q}", "{{q}}", "{a{b}}"])
def test_braces_that_mean_nothing_are_refused(source):
    with pytest.raises(ValueError, match=r"names no field"):
        Template.of(source)


def test_a_template_may_name_fields_inside_others():
    assert Template.of("{meta.deep.x}: {q}").fill(ROW, "row") == "1: Why?"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"q": "Why?", "b": "So."}, "f:3 has no field 'a'; it has q, b"),
        ({"q": "Why?", "a": None}, "'a' must be a string, not NoneType"),
        ({"q": "Why?", "a": 1.5}, "'a' must be a string, not float"),
        ({"q": "Why?", "a": True}, "'a' must be a string, not bool"),
        ({"q": "Why?", "a": {"b": 1}}, "'a' must be a string, not dict"),
        ({"q": "Why?", "a": ["b"]}, "'a': a list must hold chat messages"),
    ],
)
def test_a_row_that_does_not_fit_the_template_is_named(row, expected):
    found = problem(lambda: Template.of("{q} {a}").fill(row, "f:3"))
    assert expected in found.expected
    assert found.path == ("template" if "has no field" in expected else "path")
    assert found.value == ("{q} {a}" if "has no field" in expected else "f:3")


# conversations


def test_a_conversation_is_text_by_one_rule():
    told = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert Wanted("chat").text_of({"chat": told}, "row") == "user: Hi\n\nassistant: Hello"
    other = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert Wanted("chat").text_of({"chat": other}, "row") == "human: Hi\n\ngpt: Hello"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "text", "text": "here"}]}]
    assert Wanted("chat", Template.of("<{chat}>")).text_of({"chat": parts}, "row") == "<user: Look\nhere>"


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([], "is a list without messages"),
        (["Hi"], "item 1 is none"),
        ([{"role": "user", "content": "Hi"}, {"role": "tool", "content": None}], "item 2 is none"),
        ([{"role": "user"}], "item 1 is none"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "item 1 is none"),
        ([{"role": "user", "content": "half \ud800"}], "must be valid Unicode"),
    ],
)
def test_a_list_that_is_no_conversation_is_named_with_the_message(chat, expected):
    assert expected in problem(lambda: Wanted("chat").text_of({"chat": chat}, "f:3")).expected


# filters


def holds(row: dict[str, Any], **filters: Any) -> bool:
    return all(condition.holds(row, "f:3") for condition in conditions_of(filters))


@pytest.mark.parametrize(
    ("value", "condition", "expected"),
    [
        ("en", "en", True),
        ("en", ["de", "en"], True),
        ("en", {"equals": "de"}, False),
        ("en", {"in": ["de"]}, False),
        (3, {"min": 3, "max": 3}, True),
        (2.9, {"min": 3}, False),
        (3, {"min": 1, "in": [2, 4]}, False),
        ("2020-05-01", {"min": "2020-01-01", "max": "2020-12-31"}, True),
        (datetime.date(2019, 5, 1), {"min": "2020-01-01"}, False),
        (1, True, False),
        (True, 1, False),
        (1.0, 1, True),
        (None, "en", False),
        (None, {"min": 0}, False),
        (None, {"exists": False}, True),
        ("", {"exists": True}, True),
        (float("nan"), {"min": 0}, False),
    ],
)
def test_a_condition_holds_or_not(value, condition, expected):
    assert holds({"x": value}, x=condition) is expected


def test_a_field_that_is_not_there_has_no_value():
    assert not holds({}, x="en")
    assert not holds({}, x={"exists": True})
    assert holds({}, x={"exists": False})


@pytest.mark.parametrize(("value", "bound"), [("3", 1), (True, 1), ([3], 1), (3, "1")])
def test_what_cannot_be_compared_is_an_error_with_its_place(value, bound):
    found = problem(lambda: holds({"x": value}, x={"min": bound}))
    assert found.value == "f:3"
    assert "to be compared with" in found.expected


def test_equal_meanings_have_one_form():
    forms = ["en", ["en"], {"equals": "en"}, {"in": ["en"]}]
    assert len({str(normal_filter({"x": form})) for form in forms}) == 1
    assert str(normal_filter({"x": {"min": 1, "max": 2}})) == str(normal_filter({"x": {"max": 2, "min": 1}}))


@pytest.mark.parametrize(
    ("filters", "path", "expected"),
    [
        ({}, "filter", "must name a field"),
        ({"x": None}, "filter.x", "must be a value"),
        ({"x": {}}, "filter.x", "must have one of"),
        ({"x": []}, "filter.x", "must be a list of values"),
        ({"x": [None]}, "filter.x", "must be a list of values"),
        ({"x": {"mim": 1}}, "filter.x.mim", "is not a known key"),
        ({"x": {"in": "en"}}, "filter.x.in", "must be a list"),
        ({"x": {"min": True}}, "filter.x.min", "must be text, a number"),
        ({"x": {"exists": "yes"}}, "filter.x.exists", "true or false"),
        ({"x": {"equals": 1, "in": [1]}}, "filter.x", "say the same thing"),
        ({"x": {"min": 1, "max": "b"}}, "filter.x", "different kinds"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_named(filters, path, expected):
    (found,) = filter_problems(filters)
    assert found.path == path
    assert expected in found.expected
