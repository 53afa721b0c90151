"""Task files are read whole, and every fault is named with its file and line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.errors import InvalidInput, Problem
from bam_core.evaluate.task_files import MAX_PROBLEMS, read_task
from tests.task_kit import choice, lines, program, question


def faults(data: bytes) -> list[tuple[str, str]]:
    """(place, words) of each fault."""
    with pytest.raises(InvalidInput) as raised:
        read_task(data, "t.jsonl")
    return [(problem.path, str(problem)) for problem in raised.value.problems]


@pytest.mark.parametrize(("make", "kind"), [(choice, "mc"), (question, "gen"), (program, "code")])
def test_what_was_written_is_read(make: Any, kind: str):
    rows = [make(number) for number in range(5)]
    task = read_task(b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n\r\n"), "t.jsonl")
    assert (task.name, task.domain, task.kind) == (rows[0]["task"], rows[0]["domain"], kind)
    for row, item in zip(rows, task.items, strict=True):
        assert (item.id, item.prompt) == (row["id"], row["prompt"])
        assert item.answer == (row["choices"][row["answer"]] if kind == "mc" else row["answer"])
        assert list(item.choices) == row.get("choices", [])
        assert (item.test, item.solution) == (row.get("test", ""), row.get("solution", ""))
    assert task.first(2).items == task.items[:2]
    assert task.first(None) == task


WRONG = {
    "index too large": (choice(1, answer=4), "'answer' must be the index of the right one of 4 choices, 0 to 3"),
    "index below 0": (choice(1, answer=-1), "0 to 3"),
    "index as text": (choice(1, answer="1"), "0 to 3"),
    "index as truth": (choice(1, answer=True), "0 to 3"),
    "one choice": (choice(1, choices=[" a"], answer=0), "at least two"),
    "an empty choice": (choice(1, choices=[" a", ""], answer=0), "one is empty"),
    "a choice that is no text": (choice(1, choices=[" a", 3], answer=0), "must be text, not int"),
    "no choices": ({k: v for k, v in choice(1).items() if k != "choices"}, "has no 'choices'"),
    "no prompt": ({k: v for k, v in choice(1).items() if k != "prompt"}, "has no 'prompt'"),
    "a prompt that is no text": (choice(1, prompt=None), "'prompt' must be text, not NoneType"),
    "half a surrogate pair": (choice(1, prompt="\ud800"), "must be valid Unicode"),
    "an unknown kind": (choice(1, kind="mcq"), "'kind' must be one of mc, gen, code: did you mean 'mc'?"),
    "a kind that is no text": (choice(1, kind=["mc"]), "'kind' must be one of"),
    "an id given twice": (choice(0), "'id' is that of line 1 already"),
    "an id that is a number": (choice(1, id=7), "'id' must be text"),
    "another task": (choice(1, task="other"), "'task' must be 'cases', as in line 1"),
    "another domain": (choice(1, domain="math"), "'domain' must be 'law', as in line 1"),
    "another kind": (question(1, task="cases", domain="law"), "'kind' must be 'mc', as in line 1"),
    "a list": ([1, 2], "must be a JSON object, not list"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_item_is_named_with_its_line(what: str):
    row, words = WRONG[what]
    found = faults(lines([choice(0), row, choice(2)]))  # type: ignore[list-item]
    assert {place for place, _ in found} == {"t.jsonl:2"}
    assert any(words.replace(": did", " (did") in told for _, told in found), found


def test_bytes_that_are_no_text_and_lines_that_are_no_json():
    good = lines([question(0)])
    assert faults(good + b'{"id": "\xff"}\n') == [
        ("t.jsonl:2", 't.jsonl:2: b\'{"id": "\\xff"}\': must be UTF-8: invalid start byte at byte 8 of the line')
    ]
    [(place, words)] = faults(good + b'{"id": "q1"\n')
    assert place == "t.jsonl:2"
    assert "must be one JSON object" in words
    [(place, words)] = faults(good + b"[" * 100_000 + b"\n")
    assert place == "t.jsonl:2"


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_items(data: bytes):
    assert faults(data) == [("t.jsonl", "t.jsonl: '': has no items (one JSON object per line)")]


@pytest.mark.parametrize(("make", "column"), [(question, "answer"), (program, "answer"), (program, "test")])
def test_what_is_compared_or_run_must_be_there(make: Any, column: str):
    assert any(
        f"{column!r} must not be empty" in words for _, words in faults(lines([make(0), make(1, **{column: " "})]))
    )


def test_all_faults_come_at_once_up_to_a_limit():
    wrong = [choice(number, answer=9) for number in range(MAX_PROBLEMS + 7)]
    with pytest.raises(InvalidInput) as raised:
        read_task(lines(wrong), "t.jsonl")
    problems = raised.value.problems
    assert [problem.path for problem in problems[:-1]] == [f"t.jsonl:{line}" for line in range(1, MAX_PROBLEMS + 1)]
    assert problems[-1] == Problem("t.jsonl", 7, "more problems are not shown")
    three = faults(lines([choice(0), choice(0), choice(1, answer=7), choice(2, prompt=3)]))
    assert [place for place, _ in three] == ["t.jsonl:2", "t.jsonl:3", "t.jsonl:4"]


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([lines([choice(1)]), b"null", b"3", b"{}"])), max_size=4)
)
def test_any_bytes_are_a_task_or_an_answer_in_words(parts: list[bytes]):
    data = b"\n".join(parts)
    try:
        found = [item.id for item in read_task(data, "t.jsonl").items]
    except InvalidInput as error:
        found = [problem.path for problem in error.problems if not problem.path.startswith("t.jsonl")] or ["named"]
    assert found in (["c1"], ["named"])


def test_other_columns_are_left_alone():
    row = question(0, source="somewhere", extra=[1, {"a": None}])
    assert read_task(json.dumps(row).encode(), "t.jsonl").items[0].id == "q0"
