"""`evaluate.baselines`: whom the report compares with, by default and as given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from pipelines.bam import build
from pipelines.recipe import Recipe, load_recipe
from pipelines.recipe.baselines import baselines
from tests.recipe.recipes import spoiled

DIGESTS = {"general": "g", "code": "c", "math": "m"}


def recipe(tmp_path: Path, **changes: Any) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(spoiled({key.replace("__", "."): value for key, value in changes.items()}), sort_keys=False)
    )
    return load_recipe(str(path))


def test_by_default_those_with_experts_in_the_ffn_alone(tmp_path: Path) -> None:
    more = {"btx3": {"attention": "merged", "ffn": {"top_k": 3}}, "soup": {"attention": "merged", "ffn": "merged"}}
    made = recipe(tmp_path, **{f"variants__{name}": value for name, value in more.items()})
    assert baselines(made) == ["train.btx", "train.btx3"]


def test_without_such_a_variant_the_first(tmp_path: Path) -> None:
    attention_only = {"attention": {}, "ffn": "merged"}
    made = recipe(tmp_path, variants={"moa": attention_only, "bam": {"attention": {}, "ffn": {}}})
    assert baselines(made) == ["train.moa"]


def test_a_variant_stands_for_its_trained_mixture_and_none_is_named_twice(tmp_path: Path) -> None:
    names = ["btx", "dense", "train.btx", "ensemble", "expert.code"]
    made = recipe(tmp_path, evaluate__baselines=names)
    assert baselines(made) == ["train.btx", "dense", "ensemble", "expert.code"]
    assert baselines(recipe(tmp_path, evaluate__baselines=[])) == []


def test_what_is_not_evaluated_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as error:
        recipe(tmp_path, evaluate__baselines=["btx", "btz", "expert.general"])
    assert [problem.value for problem in error.value.problems] == ["btz", "expert.general"]
    assert "evaluate.baselines: 'btz': is neither a variant nor a model that is evaluated (did you mean 'btx'?)" in str(
        error.value
    )


def test_only_the_report_depends_on_them(tmp_path: Path) -> None:
    plain, asked = recipe(tmp_path), recipe(tmp_path, evaluate__baselines=["dense"])
    before, after = (pipeline_keys(build(made, DIGESTS)) for made in (plain, asked))
    assert {name for name in before if before[name] != after[name]} == {"report"}
    report = next(stage for stage in build(asked, DIGESTS) if stage.name == "report")
    assert report.config["baselines"] == ["dense"]
