"""`source.licence`: for every kind, known of the built-in ones, passed on to the data stage and never part of a key."""

from __future__ import annotations

from typing import Any

import pytest
from recipes import spoiled

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from pipelines import bam
from pipelines.recipe import load_recipe, recipe_from, shipped_recipes
from pipelines.recipe.sources import LICENCES, TEXTS

WHERE = {kind: {"path": "x"} for kind in ("text", "jsonl", "parquet", "hf")}


def with_code(source: dict[str, Any]) -> Any:
    return recipe_from(spoiled({"domains.code.source": source}), "here")


def pipeline(recipe: Any) -> Pipeline:
    return bam.build(recipe, {text: text * 8 for text in (*recipe.texts, *recipe.domains, "tokenizer")})


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_takes_one_and_the_key_does_not(kind: str) -> None:
    silent, stated = (with_code({"kind": kind, **WHERE.get(kind, {}), **more}) for more in ({}, {"licence": "MIT"}))
    assert silent.licence("code") == LICENCES.get(kind)
    assert stated.licence("code") == "MIT"
    assert stated.source("code") == silent.source("code")
    assert "licence" not in stated.source("code")
    assert pipeline_keys(pipeline(stated)) == pipeline_keys(pipeline(silent))
    assert pipeline(stated)["data.code"].runtime["licence"] == "MIT"


@pytest.mark.parametrize("name", shipped_recipes())
def test_stating_licences_changes_no_key_of_a_shipped_recipe(name: str) -> None:
    recipe = load_recipe(name)
    with_text = [f"domains.{name}" for name, domain in recipe.domains.items() if domain.source.kind != "cluster"]
    places = [*with_text, *(f"discover.{name}" for name in recipe.discover)]
    stated = load_recipe(name, [f"{place}.source.licence=CC-BY-4.0" for place in places])
    assert {stated.licence(domain) for domain in stated.domains} == {"CC-BY-4.0"}
    assert pipeline_keys(pipeline(stated)) == pipeline_keys(pipeline(recipe))


def test_what_is_known_of_the_built_in_kinds() -> None:
    recipe = load_recipe("quickstart")
    assert recipe.licence("general") == recipe.licence("code") == "PSF-2.0"
    assert str(recipe.licence("law")).startswith("various")
    assert str(recipe.licence("math")).startswith("no rights claimed")


def test_a_text_without_one_says_nothing_and_a_data_set_of_the_hub_its_name() -> None:
    assert set(pipeline(with_code({"kind": "text", "path": "x"}))["data.code"].runtime) == {"source"}
    hub = pipeline(with_code({"kind": "hf", "path": "org/set"}))["data.code"]
    assert hub.runtime["dataset"] == "org/set"
    assert "path" not in hub.config["source"]


@pytest.mark.parametrize("licence", ["", "two\nlines", "x" * 301, "\u202eevil", "  ", 7, ["MIT"]])
def test_it_is_one_line(licence: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        with_code({"kind": "text", "path": "x", "licence": licence})
    assert [problem.path for problem in caught.value.problems] == ["domains.code.source.licence"]


def test_the_other_spelling_gets_the_right_one() -> None:
    with pytest.raises(InvalidInput, match=r"domains\.code\.source\.license: 'MIT': is not a known key .*'licence'"):
        with_code({"kind": "text", "path": "x", "license": "MIT"})
