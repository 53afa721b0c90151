"""A recipe is found, read with what is set over it, and becomes configs."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from recipes import GOOD, MISSING, spoiled

from bam_core.errors import UsageError
from pipelines.recipe import find_recipe, load_recipe, recipe_from, shipped_recipes


def test_the_quickstart_is_what_the_design_says() -> None:
    recipe = load_recipe("quickstart")
    assert list(recipe.domains) == ["general", "code", "law", "math"]
    assert recipe.general == "general"
    assert recipe.specialists == ("code", "law", "math")
    assert list(recipe.variants) == ["bam", "btx"]
    assert recipe.dense


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_right(name: str) -> None:
    recipe = load_recipe(name)
    configs = [
        recipe.seed_training(),
        recipe.mixture_training(),
        *map(recipe.expert_training, recipe.specialists),
    ]
    assert [problem for config in [recipe.dense_config(), *configs] for problem in config.problems()] == []


def test_phases_become_training_configs() -> None:
    recipe = recipe_from(spoiled({"domains.code.expert": {"tokens": "1k", "lr": 3e-3}}), "here")
    seed, code, math = recipe.seed_training(), recipe.expert_training("code"), recipe.expert_training("math")
    assert seed.shares == {"general": 0.8, "code": 0.2}
    assert (seed.tokens, seed.seq_len, seed.rows_per_batch) == (640, 32, 2)
    assert (code.tokens, code.lr, code.shares) == (1000, 3e-3, {"code": 0.9, "general": 0.1})
    assert (math.tokens, math.lr, math.shares) == (640, 1e-3, {"math": 0.9, "general": 0.1})
    assert recipe.mixture_training().shares == dict.fromkeys(("general", "code", "math"), 1 / 3)
    assert seed.load_balancing_coef == 0.0  # a dense model has no router
    assert recipe.mixture_training().load_balancing_coef == 0.01
    assert len({config.seed for config in (seed, code, math, recipe.mixture_training())}) == 4


def test_own_and_the_same_domain_by_name_add_up() -> None:
    recipe = recipe_from(spoiled({"phases.expert.data": {"own": 0.5, "code": 0.5}}), "here")
    assert recipe.expert_training("code").shares == {"code": 1.0}


def test_the_model_takes_its_vocabulary_from_the_tokenizer() -> None:
    config = recipe_from(spoiled({"model.n_kv_heads": MISSING}), "here").dense_config()
    assert (config.vocab_size, config.n_kv_heads, config.head_dim) == (300, 4, 4)


def test_a_tokenizer_file_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 6}]}))
    recipe = recipe_from(spoiled({"tokenizer": {"kind": "file", "path": str(path)}}), "here")
    assert recipe.dense_config().vocab_size == 7


def test_a_source_is_the_plain_mapping_of_the_port() -> None:
    changes = {
        "domains.code.source": {"kind": "hf", "path": "org/set"},
        "domains.math.source": {"kind": "text", "path": "x"},
    }
    recipe = recipe_from(spoiled(changes), "here")
    assert recipe.source("general") == {"kind": "python-docs"}
    assert recipe.source("code") == {"kind": "hf", "path": "org/set", "split": "train", "column": "text"}
    assert recipe.source("math") == {"kind": "text", "path": "x"}


def test_a_recipe_is_frozen() -> None:
    recipe = recipe_from(deepcopy(GOOD), "here")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.phases.seed.lr = 1.0


def test_sets_win_over_the_file_and_reach_one_use_of_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    phase = "tokens: 640, batch_tokens: 64, lr: 1e-3"
    phases = f"{{seed: {{{phase}, data: &d {{general: 1}}}}, expert: {{{phase}, data: *d}}, mixture: {{{phase}}}}}"
    path.write_text(yaml.safe_dump(spoiled({"phases": MISSING})) + f"phases: {phases}")
    recipe = load_recipe(str(path), ["phases.expert.data={own: 1}", "phases.seed.lr=7", "seed=3"])
    assert recipe.phases.seed.data == {"general": 1.0}
    assert recipe.phases.expert.data == {"own": 1.0}
    assert (recipe.phases.seed.lr, recipe.seed) == (7.0, 3)
    recipe = load_recipe(str(path), ["phases.seed.data.general=0.5", "phases.seed.data.code=0.5"])
    assert recipe.phases.expert.data == {"general": 1.0}


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    for name in ("quikstart", "./quikstart.yaml", "/nowhere/quickstrt.yml"):
        with pytest.raises(UsageError, match="did you mean 'quickstart'"):
            load_recipe(name)
    for name in ("", "a\0b", "x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(UsageError, match="no such file"):
            load_recipe(name)


def test_a_shipped_recipe_is_found_by_its_stem_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = {find_recipe(name) for name in ("paper_small", "paper/paper_small")}
    assert path == shipped_recipes()["paper/paper_small"]
    with pytest.raises(UsageError, match="did you mean 'paper_small'"):
        load_recipe("paper_smal")


def test_a_stem_in_two_folders_is_an_error_that_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x", "b/x", "b/y", "y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".yaml").write_text("name: x")
    monkeypatch.setattr("pipelines.recipe.load.SHIPPED", tmp_path)
    with pytest.raises(UsageError, match="recipe 'x': there are a/x and b/x; say which"):
        find_recipe("x")
    assert find_recipe("a/x") == tmp_path / "a" / "x.yaml"
    assert find_recipe("y") == tmp_path / "y.yaml"
