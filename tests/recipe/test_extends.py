"""`extends`: a recipe laid over another one. What is merged, what is replaced, and where a mistake is said to be."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from pipelines import bam
from pipelines.recipe import Recipe, load_recipe, recipe_from
from pipelines.recipe.extends import MAX_BASES
from pipelines.recipe.layers import Layered, laid
from pipelines.recipe.parts import Evaluate
from tests.recipe.recipes import GOOD


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.yaml", GOOD)


def extending(base: Path, over: dict[str, Any], *, sets: tuple[str, ...] = (), **more: Any) -> Recipe:
    extends = {"recipe": base.name, **more} if more else base.name
    return load_recipe(str(write(base.parent / "own.yaml", {"extends": extends, **over})), sets)


def wrong(path: Path, *sets: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        load_recipe(str(path), sets)
    return caught.value


def test_what_is_not_said_is_the_bases(base: Path) -> None:
    plain = recipe_from(deepcopy(GOOD), "here")
    assert extending(base, {}) == plain
    assert extending(base, {"phases": {"mixture": {"lr": 0.5}}}).phases.mixture.lr == 0.5
    assert extending(base, {"phases": {"mixture": {"lr": 0.5}}}).phases.mixture.tokens == plain.phases.mixture.tokens


def test_new_names_come_after_the_bases(base: Path) -> None:
    found = extending(
        base,
        {
            "domains": {"law": {"source": {"kind": "python-licences"}}, "code": {"valid_frac": 0.1}},
            "variants": {"soup": {"attention": "merged", "ffn": "merged"}},
        },
    )
    assert list(found.domains) == ["general", "code", "math", "law"]
    assert found.domains["code"].valid_frac == 0.1
    assert list(found.variants) == ["bam", "btx", "soup"]


def test_null_takes_a_key_away(base: Path) -> None:
    found = extending(base, {"variants": {"bam": None}, "model": {"n_kv_heads": None}, "domains": {"math": None}})
    assert list(found.variants) == ["btx"]
    assert found.model.n_kv_heads is None
    assert list(found.domains) == ["general", "code"]


def test_lists_and_words_are_replaced(base: Path) -> None:
    found = extending(base, {"tokenizer": {"domains": ["math"]}, "variants": {"btx": {"attention": {"kv": "shared"}}}})
    assert found.tokenizer.domains == ["math"]
    assert found.variants["btx"].attention.kv == "shared"
    again = extending(base, {"variants": {"bam": {"attention": "merged"}}})
    assert again.variants["bam"].attention == "merged"


def test_what_says_one_thing_together_is_replaced_together(base: Path) -> None:
    """Merged shares would not sum to 1, and keys of one kind of source mean nothing to another."""
    found = extending(
        base,
        {
            "phases": {"expert": {"data": {"own": 1}}},
            "domains": {"math": {"source": {"kind": "text", "path": "math.txt"}}},
            "tokenizer": {"kind": "file", "path": "t.json", "vocab_size": 300},
        },
    )
    assert found.phases.expert.data == {"own": 1.0}
    assert found.source("math") == {"kind": "text", "path": "math.txt"}
    assert found.tokenizer.kind == "file"


def test_a_domain_may_be_called_data(base: Path) -> None:
    write(base, GOOD | {"domains": GOOD["domains"] | {"data": {"source": {"kind": "python-docs"}}}})
    found = extending(base, {"domains": {"data": {"max_bytes": 7}}})
    assert found.domains["data"].source.kind == "python-docs"


def test_domains_are_replaced_where_that_is_said(base: Path) -> None:
    domains = {
        "general": {"source": {"kind": "python-code"}},
        "law": {"source": {"kind": "python-licences"}},
    }
    phases = {"seed": {"data": "uniform"}, "mixture": {"lr": 1}}
    found = extending(base, {"domains": domains, "phases": phases}, replace=["domains"])
    assert list(found.domains) == ["general", "law"]
    assert found.phases.mixture.lr == 1
    found = extending(base, {"phases": {"seed": GOOD["phases"]["seed"] | {"data": "uniform"}}}, replace=["phases.seed"])
    assert found.phases.expert == recipe_from(deepcopy(GOOD), "here").phases.expert


def test_a_seed_replaces_seeds_and_seeds_a_seed(base: Path) -> None:
    write(base, GOOD | {"seed": 4})
    assert extending(base, {"seeds": [1, 2]}).all_seeds == (1, 2)
    write(base, GOOD | {"seeds": [1, 2]})
    assert extending(base, {"seed": 4}).all_seeds == (4,)
    assert extending(base, {}, sets=("seed=5",)).all_seeds == (5,)
    assert "exclude each other" in str(
        wrong(write(base.parent / "own.yaml", {"extends": "base.yaml", "seed": 1, "seeds": [2]}))
    )


def test_sets_count_more_than_all_files(base: Path) -> None:
    assert extending(base, {"name": "own"}, sets=("name=typed", "phases.seed.lr=7")).name == "typed"
    assert extending(base, {"name": "own"}, sets=("phases.seed.lr=7",)).phases.seed.lr == 7


def test_a_chain_of_files_each_beside_the_one_that_names_it(tmp_path: Path) -> None:
    write(tmp_path / "deep/er/base.yaml", GOOD)
    write(tmp_path / "deep/middle.yaml", {"extends": "er/base.yaml", "name": "middle", "seed": 3})
    top = write(tmp_path / "top.yml", {"extends": "./deep/middle.yaml", "name": "top"})
    found = load_recipe(str(top))
    assert (found.name, found.seed) == ("top", 3)


def test_several_are_laid_over_one_another(base: Path) -> None:
    write(base.parent / "one.yaml", {"extends": "base.yaml", "seed": 1, "evaluate": {"tokens": 640}})
    write(base.parent / "two.yaml", {"extends": "base.yaml", "seed": 2, "variants": {"btx": None}})
    own = write(base.parent / "own.yaml", {"extends": ["one.yaml", "two.yaml"], "name": "own"})
    found = load_recipe(str(own))
    assert (found.name, found.seed, list(found.variants)) == ("own", 2, ["bam"])
    assert found.evaluate.tokens == 640, "what both extend is laid once, and undoes nothing"
    write(own, {"extends": ["two.yaml", "one.yaml", "base.yaml", "two.yaml"]})
    assert load_recipe(str(own)).seed == 1
    write(
        own, {"extends": {"recipe": ["one.yaml", "two.yaml"], "replace": ["evaluate"]}, "evaluate": {"dtype": "bf16"}}
    )
    assert load_recipe(str(own)).evaluate.tokens == Evaluate().tokens


def test_a_mistake_in_one_of_several_is_said_to_be_there(base: Path) -> None:
    one = write(base.parent / "one.yaml", {"extends": "base.yaml", "evaluate": {"tokens": -1}})
    write(base.parent / "two.yaml", {"extends": "base.yaml", "phases": {"seed": {"lr": -1}}})
    found = {
        p.path: str(p) for p in wrong(write(base.parent / "own.yaml", {"extends": ["one.yaml", "two.yaml"]})).problems
    }
    assert f"[said in {one}]" in found["evaluate.tokens"]
    assert f"[said in {base.parent / 'two.yaml'}]" in found["phases.seed.lr"]


def test_a_shipped_recipe_by_its_name(tmp_path: Path) -> None:
    found = load_recipe(str(write(tmp_path / "own.yaml", {"extends": "quickstart", "name": "mine"})))
    plain = load_recipe("quickstart")
    assert found.model_copy(update={"name": plain.name}) == plain


def test_keys_depend_on_what_is_meant_alone(base: Path) -> None:
    written = deepcopy(GOOD) | {"evaluate": {"tokens": 640}}
    del written["variants"]["btx"]
    plain = recipe_from(written, "here")
    found = extending(base, {"evaluate": {"tokens": 640}, "variants": {"btx": None}})
    digests = dict.fromkeys(GOOD["domains"], "text")
    assert pipeline_keys(bam.build(found, digests)) == pipeline_keys(bam.build(plain, digests))
    assert found.to_json() == plain.to_json()
    assert "extends" not in found.to_json()


# What is wrong


@pytest.mark.parametrize(
    ("extends", "path", "words"),
    [
        ([], "extends", "name or a path"),
        (["base.yaml"] * 9, "extends", "names 9 recipes; at most 8"),
        (3, "extends", "a list of them, or a mapping"),
        ("", "extends", "name or a path"),
        ("nowhere.yaml", "extends", "no such file"),
        ("quickstrat", "extends", "did you mean 'quickstart'"),
        ({"recipe": "base.yaml", "replce": []}, "extends.replce", "did you mean 'replace'"),
        ({"replace": ["name"]}, "extends.recipe", "name or a path"),
        ({"recipe": "base.yaml", "replace": "name"}, "extends.replace", "a list of key paths"),
        ({"recipe": "base.yaml", "replace": ["domains"]}, "extends.replace", "nothing would be in its place"),
        ({"recipe": "base.yaml", "replace": [7]}, "extends.replace", "nothing would be in its place"),
        (".", "extends", "is a folder"),
    ],
)
def test_an_extends_that_cannot_be_meant(base: Path, extends: Any, path: str, words: str) -> None:
    error = wrong(write(base.parent / "own.yaml", {"extends": extends, "name": "own"}))
    [problem] = error.problems
    assert words in str(problem)
    assert problem.path == path or words == "is a folder"


def test_everything_wrong_with_an_extends_at_once(base: Path) -> None:
    asked = {"recipe": 3, "replace": ["nme", "name"], "more": 1}
    error = wrong(write(base.parent / "own.yaml", {"extends": asked, "name": "own"}))
    assert sorted(problem.path for problem in error.problems) == ["extends.more", "extends.recipe", "extends.replace"]


def test_a_circle_is_named(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", {"extends": "c.yaml"})
    write(tmp_path / "c.yaml", {"extends": "./b.yaml"})
    text = str(wrong(write(tmp_path / "a.yaml", {"extends": "b.yaml"})))
    assert "leads back to itself" in text
    assert " -> ".join(str(tmp_path / f"{name}.yaml") for name in "abcb") in text


def test_a_chain_has_an_end(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number}.yaml", {"extends": f"{number + 1}.yaml"} if number < MAX_BASES else GOOD)
    assert load_recipe(str(tmp_path / "0.yaml")).name == "small"
    for number in range(20):
        write(tmp_path / f"{number}.yaml", {"extends": f"{number + 1}.yaml"})
    assert f"at most {MAX_BASES} recipes" in str(wrong(tmp_path / "0.yaml"))


def test_a_mistake_is_said_to_be_in_the_file_that_has_it(base: Path) -> None:
    spoilt = deepcopy(GOOD)
    spoilt["phases"]["seed"]["lr"] = -1
    spoilt["phases"]["expert"]["lr"] = -1
    spoilt["modle"] = {}
    write(base, spoilt)
    middle = write(base.parent / "middle.yaml", {"extends": "base.yaml", "phases": {"mixture": {"dtype": "fp8"}}})
    own = write(base.parent / "own.yaml", {"extends": "middle.yaml", "evaluate": {"tokens": 1}})
    found = {problem.path: str(problem) for problem in wrong(own, "phases.expert.lr=-2").problems}
    assert found.keys() == {"modle", "phases.seed.lr", "phases.expert.lr", "phases.mixture.dtype", "evaluate.tokens"}
    assert f"[said in {base}]" in found["phases.seed.lr"]
    assert f"[said in {base}]" in found["modle"]
    assert f"[said in {middle}]" in found["phases.mixture.dtype"]
    assert "said in" not in found["phases.expert.lr"], "--set said it"
    assert "said in" not in found["evaluate.tokens"], "the recipe itself did"


def test_a_base_that_cannot_be_read_is_named(base: Path) -> None:
    own = write(base.parent / "own.yaml", {"extends": "base.yaml"})
    for content, words in (("a: [1", "is not YAML"), ("", "is empty"), ("- 1", "must be a mapping")):
        write(base, content)
        error = wrong(own)
        assert words in str(error)
        assert str(base) in str(error)
    write(base, yaml.safe_dump(GOOD) + "seed: 1\nseed: 2\n")
    assert f"[said in {base}]" in str(wrong(own))
    assert str(wrong(own)).count("said in") == 1


def test_extends_is_no_key_of_the_command_line(base: Path) -> None:
    with pytest.raises(InvalidInput, match="extends: 'quickstart': is not a known key"):
        load_recipe(str(base), ["extends=quickstart"])


# The algebra

LEAVES = st.integers() | st.text("ab", max_size=2) | st.lists(st.integers(), max_size=2)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abcde"), inner, max_size=3), max_leaves=8)
DOCUMENTS = st.dictionaries(st.sampled_from("abcde"), TREES, max_size=4)


def merged(lower: Any, over: Any) -> Any:
    """Written apart from `layers`: no origins, no kinds, no nulls."""
    if not (isinstance(lower, dict) and isinstance(over, dict)):
        return over
    return {
        key: merged(lower[key], over[key]) if key in lower and key in over else {**lower, **over}[key]
        for key in {**lower, **over}
    }


@given(lower=DOCUMENTS, over=DOCUMENTS)
def test_laying_one_over_the_other(lower: dict[str, Any], over: dict[str, Any]) -> None:
    before = deepcopy((lower, over))
    found = laid(lower, over)
    assert found == merged(lower, over)
    assert list(found)[: len(lower)] == list(lower)
    assert (lower, over) == before, "neither is changed"
    assert laid(found, over) == found
    assert laid(lower, {}) == lower
    assert laid({}, over) == over


@given(lower=DOCUMENTS, middle=DOCUMENTS, over=DOCUMENTS)
def test_every_value_knows_who_said_it_last(
    lower: dict[str, Any], middle: dict[str, Any], over: dict[str, Any]
) -> None:
    layers = {"lower": lower, "middle": middle, "over": over}
    found = Layered.of(lower, "lower")
    found.lay(middle, "middle")
    found.lay(over, "over")
    for path, value in leaves(found.document):
        place = found.said_in(path)
        assert place is not None
        assert dict(leaves(layers[place])).get(path) == value
        later = list(layers)[list(layers).index(place) + 1 :]
        assert all(path not in dict(leaves(layers[name])) for name in later)


def test_what_is_replaced_as_a_whole_is_said_by_whom_replaced_it() -> None:
    found = Layered.of({"a": {"b": 0, "c": 0}}, "lower")
    found.lay({"a": {"b": 1}}, "middle")
    assert (found.said_in("a.b"), found.said_in("a.c")) == ("middle", "lower")
    found.lay({"a": {"b": 2}}, "over", whole=["a"])
    assert found.document == {"a": {"b": 2}}
    assert found.said_in("a.b") == "over"


def leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [found for key, inner in tree.items() for found in leaves(inner, f"{path}.{key}" if path else key)]


def test_a_null_inside_what_is_new_is_left_out() -> None:
    assert laid({"a": {"b": 1}}, {"a": {"b": None, "c": {"d": None, "e": 2}}, "x": None}) == {"a": {"c": {"e": 2}}}
