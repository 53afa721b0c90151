"""Reading YAML: as people mean it, and never more than data."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bam_core.errors import InvalidInput
from pipelines.recipe.document import MAX_BYTES, MAX_DEPTH, apply_sets, parse, read_text

BILLION_LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)

DEEP_THROUGH_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr: 2e-3", 2e-3),
        ("lr: 1.5", 1.5),
        ("lr: .5", 0.5),
        ("lr: 2M", "2M"),
        ("lr: no", "no"),
        ("lr: on", "on"),
        ("lr: 1:30", "1:30"),
        ("lr: 2026-11-24", "2026-11-24"),
        ("lr: true", True),
        ("lr: -7", -7),
        ("lr: ~", None),
        ("lr:", None),
        ("lr: '1'", "1"),
    ],
)
def test_plain_values_are_what_they_look_like(text: str, value: object) -> None:
    document, problems = parse(text, "here")
    assert problems == []
    assert document["lr"] == value
    assert type(document["lr"]) is type(value)


def test_aliases_and_merge_keys_work() -> None:
    document, problems = parse("base: &b {lr: 1}\nseed: {<<: *b, tokens: 2}\nexpert: *b", "here")
    assert problems == []
    assert document == {"base": {"lr": 1}, "seed": {"lr": 1, "tokens": 2}, "expert": {"lr": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "is not YAML"),
        ("a: b: c", "line 1, column 5"),
        ("a: 1\n b: 2", "is not YAML"),
        ("a: *nowhere", "undefined alias"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "tags are not allowed"),
        ("a: !!python/name:os.system", "tags are not allowed"),
        ("a: !custom 1", "tags are not allowed"),
        ("a: !!binary aGk=", "tags are not allowed"),
        ("? [a, b]\n: 1", "unhashable key"),
        (BILLION_LAUGHS, "more than"),
        (DEEP_THROUGH_ALIASES, "nested too deeply"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 400_000, "nested too deeply"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested too deeply"),
        ("a: \x00", "must be YAML text"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as raised:
        parse(text, "here")
    assert len(str(raised.value)) < 1000


def test_every_key_given_twice_is_a_problem_with_both_lines() -> None:
    _, problems = parse("a: 1\nb: {c: 1, c: 2}\na: 3", "here")
    assert [(problem.path, problem.expected) for problem in problems] == [
        ("a", "is given twice, in lines 1 and 3"),
        ("b.c", "is given twice, in lines 2 and 2"),
    ]


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_value_or_a_problem(text: str) -> None:
    with suppress(InvalidInput):
        parse(text, "here")


@settings(deadline=None)
@given(st.text(alphabet="ab:[]{},&*!<>|-?'\"# \n\t%@`~.0e_", max_size=40))
def test_any_heap_of_yaml_signs_is_a_value_or_a_problem(text: str) -> None:
    with suppress(InvalidInput):
        parse(text, "here")


def test_what_is_no_text_file(tmp_path: Path) -> None:
    binary, big = tmp_path / "binary", tmp_path / "big"
    binary.write_bytes(bytes(range(128, 256)))
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    for path, words in (
        (binary, "not UTF-8"),
        (big, "larger than"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "regular"),
    ):
        with pytest.raises(InvalidInput, match=words):
            read_text(path, "here")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x")
    assert parse(read_text(path, "here"), "here")[0] == {"name": "x"}


def test_sets_write_values_and_make_groups() -> None:
    document: dict[str, Any] = {"model": {"d_ff": 1}}
    sets = [
        "model.d_ff=352",
        "phases.seed.lr=2e-3",
        "variants.soup={attention: merged, ffn: merged}",
        "name=a=b",
    ]
    assert apply_sets(document, sets) == []
    assert document == {
        "model": {"d_ff": 352},
        "phases": {"seed": {"lr": 2e-3}},
        "variants": {"soup": {"attention": "merged", "ffn": "merged"}},
        "name": "a=b",
    }


@pytest.mark.parametrize(
    "wrong", ["", "=1", "a", "a.=1", ".a=1", "a..b=1", "a .b=1", "a=[", "a=!x 1", "name.x=1", "tasks.0=1"]
)
def test_every_wrong_set_is_a_problem_of_its_own(wrong: str) -> None:
    document: dict[str, Any] = {"name": "x", "tasks": [0]}
    problems = apply_sets(document, [wrong, wrong])
    assert len(problems) == 2
    assert all(problem.path.startswith("--set") for problem in problems)
    assert document == {"name": "x", "tasks": [0]}
