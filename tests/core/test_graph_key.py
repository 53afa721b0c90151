"""Equal meaning, equal key; any changed leaf, another key; and a value without a stable form is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.errors import UsageError
from bam_core.graph.key import (
    Change,
    UnstableValue,
    canonical_json,
    describe_changes,
    payload_changes,
    pipeline_keys,
    stage_key,
    stage_payload,
)
from bam_core.graph.stage import Pipeline, Resources, Stage

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    """The same value with every mapping's entries in another order and every list as a tuple."""
    if isinstance(value, dict):
        return {name: reordered(item) for name, item in reversed(value.items())}
    return tuple(map(reordered, value)) if isinstance(value, list) else value


def leaf_places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        return [p for name, item in value.items() for p in leaf_places(item, (*place, name))]
    if isinstance(value, list) and value:
        return [p for index, item in enumerate(value) for p in leaf_places(item, (*place, index))]
    return [place]


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        value = value[step]
    return value


def with_leaf(value: Any, place: tuple[Any, ...], leaf: Any) -> Any:
    if not place:
        return leaf
    copy = value.copy()
    copy[place[0]] = with_leaf(value[place[0]], place[1:], leaf)
    return copy


def same_leaf(a: Any, b: Any) -> bool:
    """Equal numbers are the same leaf; a boolean is no number."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@CALM
@given(VALUES)
def test_order_and_kind_of_sequence_make_no_difference(value: Any) -> None:
    assert canonical_json(reordered(value)) == canonical_json(value)


@CALM
@given(VALUES, st.data())
def test_any_changed_leaf_changes_the_key(value: Any, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(leaf_places(value)))
    old = at(value, place)
    new = data.draw(LEAVES.filter(lambda leaf: not same_leaf(leaf, old)))
    assert stage_key({"config": with_leaf(value, place, new)}) != stage_key({"config": value})


@CALM
@given(VALUES)
def test_what_a_record_keeps_has_the_key_it_was_made_under(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1, 1.0, True),
        (0.0, -0.0, True),
        (2**60, float(2**60), True),
        (2**60 + 1, float(2**60), False),
        (1, True, False),
        (0, False, False),
        (0, None, False),
        ("1", 1, False),
        ("", None, False),
        ({}, [], False),
        ([[1], 2], [1, [2]], False),
        ("\u00e9", "e\u0301", False),  # composed and decomposed: other bytes in a text, so another text
        (0.1 + 0.2, 0.3, False),
    ],
)
def test_which_values_are_equal(a: Any, b: Any, same: bool) -> None:
    assert (canonical_json(a) == canonical_json(b)) is same


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, {1, 2}, b"x", Path("x"), object(), Decimal("1"), len, {1: "x"}]
)
def test_unstable_values_are_refused_with_their_path(bad: Any) -> None:
    stage = Stage("seed", "seed", 1, {"phase": {"lrs": [0.1, bad]}})
    with pytest.raises(UnstableValue, match=r"^config\.phase\.lrs\[1\]: "):
        stage_payload(stage, {})


def test_a_payload_without_the_key_of_an_input_is_a_bug() -> None:
    stage = Stage("expert.law", "expert", 1, {}, {"seed": "seed", "data": "data.law"})
    with pytest.raises(AssertionError, match=re.escape("expert.law: ['seed'] != ['data', 'seed']")):
        stage_payload(stage, {"seed": "ab" * 32})


def test_the_key_is_sha256_of_the_payload_as_canonical_json() -> None:
    stage = Stage("expert.law", "expert", 3, {"lr": 1e-3, "steps": 10.0}, {"seed": "seed"})
    payload = {
        "schema": 1,
        "stage": "expert.law",
        "function": "expert",
        "version": 3,
        "config": {"lr": 0.001, "steps": 10},
        "inputs": {"seed": "ab" * 32},
    }
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    key = stage_key(stage_payload(stage, {"seed": "ab" * 32}))
    assert key == hashlib.sha256(text.encode()).hexdigest()
    # Written down once: a change here makes every artifact of every store be made again.
    assert key == "1e529190944f8ded8ba559b0db0baf192c5e79ae8619dea1f6be10146c44b390"


def chain(**changes: Any) -> Pipeline:
    stages = (
        Stage("tokenizer", "tokenizer", 1, {"vocab": 64}),
        Stage("data.law", "data", 1, {"digest": "d1"}, {"tokenizer": "tokenizer"}),
        Stage("data.code", "data", 1, {"digest": "d2"}, {"tokenizer": "tokenizer"}),
        Stage("seed", "seed", 1, {"lr": 0.1}, {"data.law": "data.law", "data.code": "data.code"}),
        Stage("expert.law", "expert", 1, {"lr": 0.1}, {"seed": "seed", "data.law": "data.law"}),
    )
    return Pipeline("chain", tuple(replace(s, **changes.get(s.name, {})) for s in stages))


def changed(**changes: Any) -> set[str]:
    before, after = pipeline_keys(chain()), pipeline_keys(chain(**changes))
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": {"config": {"lr": 0.2}}}, {"seed", "expert.law"}),
        ({"seed": {"version": 2}}, {"seed", "expert.law"}),
        ({"seed": {"function": "import"}}, {"seed", "expert.law"}),
        ({"data.code": {"config": {"digest": "d3"}}}, {"data.code", "seed", "expert.law"}),
        ({"expert.law": {"inputs": {"seed": "seed", "data": "data.law"}}}, {"expert.law"}),
        ({"expert.law": {"inputs": {"seed": "seed", "data.law": "data.code"}}}, {"expert.law"}),
        ({"seed": {"runtime": {"path": "/tmp/x"}}}, set()),
        ({"seed": {"resources": Resources(workers=8, cpus=4, gpus=1, trains=True)}}, set()),
    ],
)
def test_a_change_moves_the_keys_of_what_is_built_from_it(changes: dict[str, Any], expected: set[str]) -> None:
    assert changed(**changes) == expected


def test_an_override_moves_only_the_stage_it_is_given_to() -> None:
    pipeline = chain()
    keys = pipeline_keys(pipeline)
    assert pipeline_keys(pipeline, {("expert.law", "seed"): keys["seed"]}) == keys
    other = pipeline_keys(pipeline, {("expert.law", "seed"): "ab" * 32})
    assert {name for name in keys if keys[name] != other[name]} == {"expert.law"}


@pytest.mark.parametrize(
    ("override", "words"),
    [(("expert.lwa", "seed"), "did you mean 'expert.law'"), (("expert.law", "sed"), "did you mean 'seed'")],
)
def test_an_override_of_nothing_is_refused(override: tuple[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pipeline_keys(chain(), {override: "ab" * 32})


BASE = {
    "version": 1,
    "config": {"phase": {"lr": 0.001, "wd": None}, "sources": {"law": {"digest": "a" * 64}}, "ids": [1]},
    "inputs": {"data.law": "b" * 64},
}


@pytest.mark.parametrize(
    ("new", "words", "causes"),
    [
        (BASE, "", []),
        ({**BASE, "version": 2}, "version 1 -> 2", ["code"]),
        (
            {**BASE, "config": {**BASE["config"], "phase": {"lr": 0.002, "wd": True}}},
            "phase.lr 0.001 -> 0.002, phase.wd null -> true",
            ["config", "config"],
        ),
        (  # as many as are named; a value as long as is shown, and one that is longer
            {**BASE, "version": 2, "config": {**BASE["config"], "phase": {"lr": "x" * 25, "wd": "y" * 24}}},
            f"version 1 -> 2, phase.lr changed, phase.wd null -> {'y' * 24}",
            ["code", "config", "config"],
        ),
        (
            {**BASE, "config": {**BASE["config"], "phase": {"lr": 0.001, "warmup": "cosine"}}},
            "phase.warmup added: cosine, phase.wd removed (was null)",
            ["config", "config"],
        ),
        (
            {**BASE, "config": {**BASE["config"], "sources": {"law": {"digest": "c" * 64}}, "ids": [1, 2]}},
            "ids [1] -> [1, 2], sources.law.digest changed",
            ["config", "data"],
        ),
        (
            {
                "version": 2,
                "config": {**BASE["config"], "sources": {"law": {"digest": "c" * 64}}, "top_k": 2},
                "inputs": {"data.law": "d" * 64},
            },
            "version 1 -> 2, top_k added: 2, sources.law.digest changed and 1 more",
            ["code", "config", "data", "input"],
        ),
        ({**BASE, "inputs": {"data.law": "d" * 64}}, "input data.law changed", ["input"]),
        ({**BASE, "inputs": {}}, "input data.law removed", ["input"]),
        (
            {**BASE, "config": {"a": 1, "b": 2}, "inputs": {}},
            "a added: 1, b added: 2, ids removed (was [1]) and 3 more",
            ["config", "config", "config", "config", "config", "input"],
        ),
    ],
)
def test_changes_are_told_in_words(new: dict[str, Any], words: str, causes: list[str]) -> None:
    changes = payload_changes(BASE, new)
    assert describe_changes(changes) == words
    assert [change.cause for change in changes] == causes


@pytest.mark.parametrize(
    ("path", "name"),
    [("config.phase.lr", "phase.lr"), ("inputs.data.law", "input data.law"), ("function.name", "function.name")],
)
def test_a_change_has_the_name_of_its_whole_path(path: str, name: str) -> None:
    assert str(Change(tuple(path.split(".")), 1, 2)) == f"{name} 1 -> 2"
