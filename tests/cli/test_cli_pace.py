"""`bam pace`: its answer is what a recipe takes, also a recipe that lacks it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.recipe import load_recipe
from tests.recipe.recipes import spoiled

BY_SECONDS = {"match": "seconds", "match_to": "btx"}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(spoiled({"variants.bam.train": BY_SECONDS}), sort_keys=False))
    return str(path)


def test_what_it_prints_can_be_pasted(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pace", recipe, "--steps", "1", "--rounds", "1"]) == 0
    pasted = yaml.safe_load(capsys.readouterr().out.partition("\n\n")[2])
    paces = pasted["phases"]["mixture"]["seconds_per_token"]
    assert paces.keys() == {"bam", "btx", "dense"}
    found = load_recipe(recipe, [f"phases.mixture.seconds_per_token={paces}"])
    assert found.phases.mixture.seconds_per_token == {name: float(pace) for name, pace in paces.items()}


def test_as_json(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pace", recipe, "--steps", "1", "--rounds", "2", "--set", "dense=false", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds_per_token"].keys() == {"bam", "btx"}
    assert all(pace > 0 for pace in found["seconds_per_token"].values())
    assert found["steps"] == 2


def test_other_mistakes_are_told(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pace", recipe, "--set", "phases.mixture.lr=-1"]) == 2
    told = capsys.readouterr().err
    assert "phases.mixture.lr: -1" in told
    assert "seconds_per_token" not in told
    assert main(["plan", recipe]) == 2
    assert "bam pace RECIPE measures it" in capsys.readouterr().err
