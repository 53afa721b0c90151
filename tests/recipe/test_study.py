"""The section `study`, and the recipes that are shipped with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from pipelines import bam
from pipelines.recipe import load_recipe
from pipelines.recipe.study import value_at
from tests.e2e.kit import merged, recipe_dict, write_recipe, write_texts

SHIPPED = ("table1", "table4", "table5", "table6", "core", "experts", "merges", "schedules", "domains", "smoke")
TABLE = {
    "title": "T",
    "rows": {"bam": {"paper": {"law": 6.0}}, "btx": {}},
    "claims": [{"model": "bam", "below": "btx"}],
}


def keys(recipe: Any) -> dict[str, str]:
    texts = dict.fromkeys([*recipe.texts, *recipe.domains, "tokenizer"], "0" * 64)
    return dict(pipeline_keys(bam.build(recipe, texts)))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_can_be_planned_and_has_a_table(name: str) -> None:
    recipe = load_recipe(f"study/{name}")
    assert recipe.study
    assert all(table.claims for table in recipe.study.values())
    assert len(keys(recipe)) > 10


def test_the_tables_share_every_seed_and_expert() -> None:
    made = [keys(load_recipe(f"study/{name}")) for name in ("table1", "table4", "table5", "table6", "merges", "core")]
    for stage in ("seed", "seed.s2", "expert.law", "expert.law.s1", "train.bam", "train.btx.s2"):
        assert len({found[stage] for found in made}) == 1, stage


def test_the_core_is_its_tables() -> None:
    core, whole = load_recipe("study/core"), {}
    for name in ("table1", "table5", "table6"):
        whole |= keys(load_recipe(f"study/{name}"))
    mine = keys(core)
    trained = {stage for stage in whole if stage.startswith("train.")}
    assert {stage: mine[stage] for stage in trained} == {stage: whole[stage] for stage in trained}
    assert list(core.study) == ["table1", "table5", "table6"]


def test_a_study_enters_no_key(tmp_path: Path) -> None:
    write_texts(tmp_path)
    plain = recipe_dict(tmp_path)
    with_study = merged(plain, {"study": {"t": TABLE}})
    one, other = (
        keys(load_recipe(str(write_recipe(tmp_path / f"{n}.yaml", recipe))))
        for n, recipe in enumerate((plain, with_study))
    )
    assert one == other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": {"bmm": {}}, "claims": []}, ["study.t.rows", "'bmm'", "did you mean 'bam'"]),
        ({"rows": {"bam": {"paper": {"lwa": 6.0}}}, "claims": []}, ["study.t.rows.bam.paper", "'lwa'", "law"]),
        ({"rows": {"bam": {"paper": {"law": -1.0}}}, "claims": []}, ["study.t.rows.bam.paper.law", "above 0"]),
        ({"claims": [{"model": "bam", "below": "seed"}]}, ["study.t.claims.0.below", "'seed'", "no row"]),
        ({"rows": {}, "claims": []}, ["study.t.rows", "at least one row"]),
        ({"tittle": "x"}, ["study.t.tittle", "title"]),
        ({"kind": "margins", "claims": []}, ["study.t.claims", "at least one claim"]),
        ({"kind": "margin"}, ["study.t.kind", "'margin'"]),
        ({"kind": "margins", "setting": "phases.exprt.tokens"}, ["study.t.setting", "'phases.exprt.tokens'", "no key"]),
        ({"kind": "margins", "setting": "name.x"}, ["study.t.setting", "'name.x'", "no key"]),
        ({"setting": "phases.expert.tokens"}, ["study.t.setting", "kind: margins"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    write_texts(tmp_path)
    recipe = recipe_dict(tmp_path) | {"study": {"t": TABLE | change}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InvalidInput) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    for word in words:
        assert word in str(error.value)


def test_the_value_of_a_setting_is_the_recipes(tmp_path: Path) -> None:
    write_texts(tmp_path)
    margins = {"kind": "margins", "setting": "phases.expert.tokens"}
    recipe = load_recipe(
        str(write_recipe(tmp_path / "r.yaml", recipe_dict(tmp_path) | {"study": {"t": TABLE | margins}}))
    )
    assert value_at(recipe, "phases.expert.tokens") == recipe.phases.expert.tokens
    assert value_at(recipe, "variants.bam.ffn.top_k") == 1


def test_several_bases_are_laid_one_over_the_other(tmp_path: Path) -> None:
    write_texts(tmp_path)
    write_recipe(tmp_path / "a.yaml", recipe_dict(tmp_path))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"extends": "./a.yaml", "name": "b", "seed": 7}))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"extends": "./a.yaml", "evaluate": {"tokens": 77}}))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"extends": ["./b.yaml", "./c.yaml"], "name": "d"}))
    recipe = load_recipe(str(tmp_path / "d.yaml"))
    assert (recipe.name, recipe.evaluate.tokens) == ("d", 77)
    assert recipe.seed == 7, "what both have from a counts once, before either"


@pytest.mark.parametrize("wrong", [[], [3], ["./a.yaml", ""]])
def test_a_list_of_bases_that_is_none(tmp_path: Path, wrong: Any) -> None:
    write_texts(tmp_path)
    write_recipe(tmp_path / "a.yaml", recipe_dict(tmp_path))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"extends": wrong}))
    with pytest.raises(InvalidInput, match="must be a recipe's name or a path"):
        load_recipe(str(tmp_path / "d.yaml"))
