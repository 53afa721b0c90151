"""`docs/recipe.schema.json`, which editors read, says what the recipe's types say; and it accepts what they accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.recipe import json_schema, load_recipe, shipped_recipes
from pipelines.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "recipe.schema.json"
REGENERATE = (
    'python -c "import json; from pipelines.recipe import json_schema; print(json.dumps(json_schema(), indent=1))"'
    " > docs/recipe.schema.json"
)


def test_file_is_current() -> None:
    assert FILE.read_text() == json.dumps(json_schema(), indent=1) + "\n", f"regenerate it: {REGENERATE}"


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=shipped_recipes().keys())
def test_shipped_recipe_is_valid(path: Path) -> None:
    jsonschema.validate(_plain(path), json_schema())


def test_unknown_key_is_invalid() -> None:
    recipe = _plain(shipped_recipes()["quickstart"])
    recipe["model"]["d_modle"] = 128
    with pytest.raises(jsonschema.ValidationError, match="d_modle"):
        jsonschema.validate(recipe, json_schema())


def test_documentation_names_every_key() -> None:
    """docs/recipe.md is written by hand; a key that it does not name is a key that nobody finds."""
    text = (ROOT / "docs" / "recipe.md").read_text()
    schema = json_schema()
    keys = set(Recipe.model_fields) | {key for part in schema["$defs"].values() for key in part.get("properties", {})}
    missing = sorted(key for key in keys if f"`{key}`" not in text)
    assert not missing


def _plain(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_documented_variants_can_be_meant() -> None:
    """Each recipe of docs/recipe.md's table of variants, in the quickstart's place."""
    table = (
        (ROOT / "docs" / "recipe.md").read_text().partition("| variant of the papers | recipe |")[2].split("\n\n")[0]
    )
    rows = [row.split("`")[1] for row in table.splitlines()[2:]]
    assert len(rows) == 10
    loaded = load_recipe("quickstart", [f"variants.v{number}={row}" for number, row in enumerate(rows)])
    assert len(loaded.variants) == len(rows) + len(load_recipe("quickstart").variants)
