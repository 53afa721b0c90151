"""A recipe becomes configs, or says everything that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from recipes import GOOD, MISSING, spoiled

from bam_core.errors import InvalidInput, UsageError
from pipelines.recipe import json_schema, load_recipe, recipe_from, shipped_recipes


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


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "a/b"}, "name", "a-z"),
    ({"name": 3}, "name", "must be text"),
    ({"name": MISSING}, "name", "is missing"),
    ({"seed": -1}, "seed", "at least 0"),
    ({"seed": True}, "seed", "whole number"),
    ({"domians": {}}, "domians", "did you mean 'domains'?"),
    ({"model.d_modl": 1}, "model.d_modl", "did you mean 'd_model'?"),
    ({"phases.seed.learning_rate": 1}, "phases.seed.learning_rate", "known: batch_tokens"),
    ({"domains.math.source.documnts": 1}, "domains.math.source.documnts", "did you mean 'documents'?"),
    ({"variants.bam.ffn.topk": 1}, "variants.bam.ffn.topk", "did you mean 'top_k'?"),
    ({"domains": {}}, "domains", "at least two"),
    ({"domains": []}, "domains", "mapping"),
    ({"domains": {"general": {"source": {"kind": "python-docs"}}}}, "domains", "at least two"),
    ({"domains.a/b": {"source": {"kind": "python-docs"}}}, "domains.'a/b'", "a-z"),
    ({"domains": GOOD["domains"] | {"..": {"source": {"kind": "python-docs"}}}}, "domains.'..'", "a-z"),
    ({"domains.own": {"source": {"kind": "python-docs"}}}, "domains.own", "another name"),
    ({"domains.uniform": {"source": {"kind": "python-docs"}}}, "domains.uniform", "another name"),
    ({"domains": GOOD["domains"] | {7: {"source": {"kind": "python-docs"}}}}, "domains.7", "quotes"),
    ({"domains.code": None}, "domains.code", "mapping"),
    (
        {"domains.code.source": {"kind": "txt", "path": "x"}},
        "domains.code.source.kind",
        "did you mean 'text'?",
    ),
    ({"domains.code.source": {"path": "x"}}, "domains.code.source.kind", "is missing; one of python-docs"),
    ({"domains.code.source": "text"}, "domains.code.source", "mapping with a kind"),
    ({"domains.code.source.path": MISSING}, "domains.code.source.path", "is missing"),
    ({"domains.code.source.path": ""}, "domains.code.source.path", "empty"),
    ({"domains.math.source.documents": 0}, "domains.math.source.documents", "at least 1"),
    ({"domains.code.valid_frac": 1}, "domains.code.valid_frac", "below 1"),
    ({"domains.code.valid_frac": float("nan")}, "domains.code.valid_frac", "below 1"),
    ({"domains.code.max_bytes": 0}, "domains.code.max_bytes", "at least 1"),
    ({"domains.general.expert": {"lr": 1e-3}}, "domains.general.expert", "seed model itself"),
    ({"domains.code.expert": {"tokens": 3}}, "domains.code.expert.tokens", "at least one batch"),
    ({"domains.code.expert": {"lr": -1}}, "domains.code.expert.lr", "positive"),
    ({"tokenizer.vocab_size": 256}, "tokenizer.vocab_size", "at least 257"),
    ({"tokenizer.kind": "bep"}, "tokenizer.kind", "did you mean 'bpe'?"),
    ({"tokenizer.domains": ["cod"]}, "tokenizer.domains", "did you mean 'code'?"),
    ({"tokenizer.domains": []}, "tokenizer.domains", "at least one"),
    ({"tokenizer": {"kind": "file", "path": "/nowhere.json"}}, "tokenizer.path", "cannot be read"),
    ({"tokenizer": {"kind": "file", "path": __file__}}, "tokenizer.path", "not a tokenizer.json"),
    ({"model.d_model": True}, "model.d_model", "whole number"),
    ({"model.d_model": "wide"}, "model.d_model", "whole number"),
    ({"model.d_model": MISSING}, "model.d_model", "is missing"),
    ({"model.n_layers": 0}, "model.n_layers", "at least 1"),
    ({"model.d_ff": -8}, "model.d_ff", "at least 1"),
    ({"model.n_heads": 3}, "model.n_heads", "must divide d_model, 16"),
    ({"model.n_heads": 16}, "model.n_heads", "even size"),
    ({"model.n_kv_heads": 3}, "model.n_kv_heads", "must divide n_heads, 4"),
    ({"model.n_kv_heads": 0}, "model.n_kv_heads", "at least 1"),
    ({"model.residual": "paralel"}, "model.residual", "did you mean 'parallel'?"),
    ({"model.rope_theta": float("inf")}, "model.rope_theta", "positive"),
    ({"model.tie_embeddings": "yes"}, "model.tie_embeddings", "true or false"),
    ({"model": 3}, "model", "mapping"),
    ({"phases.seed.tokens": 0}, "phases.seed.tokens", "at least 1"),
    ({"phases.seed.tokens": 63}, "phases.seed.tokens", "at least one batch, 64"),
    ({"phases.seed.batch_tokens": 48}, "phases.seed.batch_tokens", "multiple of the sequence length, 32"),
    ({"phases.seed.lr": float("nan")}, "phases.seed.lr", "positive"),
    ({"phases.expert.lr": float("inf")}, "phases.expert.lr", "positive"),
    ({"phases.expert.lr": 0}, "phases.expert.lr", "positive"),
    ({"phases.mixture.warmup_frac": 2}, "phases.mixture.warmup_frac", "between 0 and 1"),
    ({"phases.mixture.dtype": "fp8"}, "phases.mixture.dtype", "one of bf16"),
    ({"phases.mixture.match": "flops"}, "phases.mixture.match", "data or compute"),
    ({"phases.mixture": MISSING}, "phases.mixture", "is missing"),
    ({"phases.seed.data": {"general": 0.8}}, "phases.seed.data", "sum to 0.8"),
    ({"phases.seed.data": {}}, "phases.seed.data", "sum to 1"),
    ({"phases.seed.data": "unifrm"}, "phases.seed.data", "did you mean 'uniform'?"),
    ({"phases.seed.data": {"general": 1.2, "code": -0.2}}, "phases.seed.data.code", "0 or more"),
    ({"phases.seed.data": {"general": 0.5, "cod": 0.5}}, "phases.seed.data.cod", "did you mean 'code'?"),
    ({"phases.seed.data": {"own": 1}}, "phases.seed.data.own", "only phases.expert"),
    ({"phases.seed.data": {"general": "half", "code": 0.5}}, "phases.seed.data.general", "must be a number"),
    ({"phases.expert.data": {"own": 0.5}}, "phases.expert.data", "sum to 0.5"),
    ({"phases.expert.data": "uniform"}, "phases.expert.data", "mapping"),
    ({"variants": {}}, "variants", "at least one"),
    ({"variants.Bam": GOOD["variants"]["bam"]}, "variants.Bam", "a-z"),
    ({"variants.bam.attention": "mergd"}, "variants.bam.attention", "did you mean 'merged'?"),
    ({"variants.bam.attention": MISSING}, "variants.bam.attention", "is missing"),
    ({"variants.bam.attention.gate": "softmax"}, "variants.bam.attention.gate", "softmax_topk"),
    ({"variants.bam.attention.kv": "both"}, "variants.bam.attention.kv", "expert or shared"),
    ({"variants.bam.attention.top_k": 2}, "variants.bam.attention.top_k", "soft routing uses every expert"),
    ({"variants.bam.attention.routing": "top_k"}, "variants.bam.attention.top_k", "is missing"),
    (
        {"variants.bam.attention": {"routing": "top_k", "top_k": 4}},
        "variants.bam.attention.top_k",
        "at most the number of experts, 3",
    ),
    ({"variants.bam.ffn.top_k": 4}, "variants.bam.ffn.top_k", "at most the number of experts, 3"),
    ({"variants.bam.ffn.top_k": 0}, "variants.bam.ffn.top_k", "at least 1"),
    ({"variants.bam.ffn.experts": "per-layer"}, "variants.bam.ffn.experts", "per-domain"),
    ({"variants.bam.router_init": "xavier"}, "variants.bam.router_init", "must be"),
    ({"dense": "maybe"}, "dense", "true or false"),
    ({"evaluate.tokens": 31}, "evaluate.tokens", "at least one row, 32"),
    ({"evaluate.tasks": ["arc"]}, "evaluate.tasks", "no task runner"),
    ({"evaluate.tasks": "arc"}, "evaluate.tasks", "must be a list"),
    ({"runtime": {"expert": {"workers": 0}}}, "runtime.expert.workers", "at least 1"),
    ({"runtime": {"train": {"workers": 3}}}, "runtime.train.workers", "must divide the 2 rows"),
    ({"runtime": {"train": {"gpus": -1}}}, "runtime.train.gpus", "at least 0"),
    ({"runtime": {"max_parallel": 0}}, "runtime.max_parallel", "at least 1"),
]


@pytest.mark.parametrize(("changes", "path", "words"), WRONG, ids=[f"{path}:{words[:24]}" for _, path, words in WRONG])
def test_one_mistake_gives_one_problem_at_its_key(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled(changes), "here")
    at_path = [problem for problem in raised.value.problems if problem.path == path]
    assert len(at_path) == 1
    assert words in str(at_path[0])


def test_every_mistake_is_told_at_once() -> None:
    """Taken three at a time from the table, none hides another."""
    for first, second, third in zip(WRONG, WRONG[29:] + WRONG[:29], WRONG[53:] + WRONG[:53], strict=True):
        changes: dict[str, Any] = {}
        kept = []
        for change, path, words in (first, second, third):
            tops = {key.split(".")[0] for key in change}
            if tops & {key.split(".")[0] for key in changes} or tops & {"domains", "model"}:
                continue  # these are what the others are checked against
            changes |= change
            kept.append((path, words))
        if not kept:
            continue
        with pytest.raises(InvalidInput) as raised:
            recipe_from(spoiled(changes), "here")
        text = {problem.path: str(problem) for problem in raised.value.problems}
        assert all(words in text[path] for path, words in kept), (changes, text)


def test_a_mistake_in_a_shape_does_not_hide_those_in_the_phases() -> None:
    changes = {
        "model.n_heads": 16,
        "model.d_ff": "x",
        "phases.seed.lr": -1,
        "phases.expert.data.code": 1,
        "nme": 1,
    }
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled(changes), "here")
    paths = {problem.path for problem in raised.value.problems}
    assert paths == {"nme", "model.n_heads", "model.d_ff", "phases.seed.lr", "phases.expert.data"}


def test_a_hole_makes_no_second_problem() -> None:
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled({"model.max_seq_len": "long", "domains.math.source.kind": 3}), "here")
    assert [problem.path for problem in raised.value.problems] == [
        "domains.math.source.kind",
        "model.max_seq_len",
    ]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["2M", "1e9", "own"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["kind", "own", "lr", "tokens", "x", "general"]) | st.integers(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([place for place in _places(GOOD) if place]), junk), min_size=1, max_size=3))
def test_any_junk_is_refused_in_words_or_makes_sound_configs(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    document = deepcopy(GOOD)
    for place, value in changes:
        part = document
        for key in place[:-1]:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[place[-1]] = value
    try:
        recipe = recipe_from(document, "here")
    except InvalidInput:
        return
    configs = [
        recipe.seed_training(),
        recipe.mixture_training(),
        *map(recipe.expert_training, recipe.specialists),
    ]
    assert [problem for config in [recipe.dense_config(), *configs] for problem in config.problems()] == []


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    for name in ("quikstart", "./quikstart.yaml", "/nowhere/quickstrt.yml"):
        with pytest.raises(UsageError, match="did you mean 'quickstart'"):
            load_recipe(name)
    for name in ("", "a\0b", "x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(UsageError, match="no such file"):
            load_recipe(name)


def test_the_json_schema_speaks_of_every_key() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(load_recipe("quickstart").to_dict())
    assert schema["additionalProperties"] is False
    text = json.dumps(schema)
    for name in ("generated-math", "softmax_topk_renorm", "max_seq_len", "batch_tokens", "router_init"):
        assert f'"{name}"' in text
