"""A recipe becomes configs, or says everything that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from recipes import GOOD, MISSING, spoiled

from bam_core.config import ModelConfig, SharedExperts
from bam_core.config.block import OPTIONS
from bam_core.errors import InvalidInput, UsageError
from bam_core.upcycle.variants import AttentionSpec, FFNSpec, MergeSpec, Variant
from pipelines import bam
from pipelines.recipe import find_recipe, json_schema, load_recipe, mixtures, recipe_from, shipped_recipes


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
    ({"model.n_heads": 16}, "model.n_heads", "even number"),
    ({"model.n_kv_heads": 3}, "model.n_kv_heads", "must divide n_heads, 4"),
    ({"model.n_kv_heads": 0}, "model.n_kv_heads", "at least 1"),
    ({"model.residual": "paralel"}, "model.residual", "did you mean 'parallel'?"),
    ({"model.rope_theta": float("inf")}, "model.rope_theta", "positive"),
    ({"model.tie_embeddings": "yes"}, "model.tie_embeddings", "true or false"),
    ({"model.qk_norm": "yes"}, "model.qk_norm", "true or false"),
    ({"model.rotary_frac": 0.25}, "model.rotary_frac", "even number"),
    ({"model.rotary_frac": 2}, "model.rotary_frac", "even number"),
    ({"model.rotary_frac": 0}, "model.rotary_frac", "positive number"),
    ({"model.rotary_pairs": "neox"}, "model.rotary_pairs", "half or interleaved"),
    ({"model": 3}, "model", "mapping"),
    ({"phases.seed.tokens": 0}, "phases.seed.tokens", "at least 1"),
    ({"phases.seed.tokens": 63}, "phases.seed.tokens", "at least one batch, 64"),
    ({"phases.seed.batch_tokens": 48}, "phases.seed.batch_tokens", "multiple of the sequence length, 32"),
    ({"phases.seed.lr": float("nan")}, "phases.seed.lr", "positive"),
    ({"phases.expert.lr": float("inf")}, "phases.expert.lr", "positive"),
    ({"phases.expert.lr": 0}, "phases.expert.lr", "positive"),
    ({"phases.mixture.warmup_frac": 2}, "phases.mixture.warmup_frac", "between 0 and 1"),
    ({"phases.mixture.dtype": "fp8"}, "phases.mixture.dtype", "one of bf16"),
    ({"phases.mixture.match": "flops"}, "phases.mixture.match", "one of data, compute, seconds"),
    ({"phases.mixture.balance_rate": -1}, "phases.mixture.balance_rate", "0 or more"),
    ({"phases.mixture.router_bias_frac": 1.5}, "phases.mixture.router_bias_frac", "between 0 and 1"),
    ({"phases.mixture.gumbel_rate": -1e-4}, "phases.mixture.gumbel_rate", "0 or more"),
    ({"phases.mixture.gumbel_min": 0}, "phases.mixture.gumbel_min", "above 0"),
    ({"phases.seed.gumbel_min": 1}, "phases.seed.gumbel_min", "is not a known key"),
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
    ({"variants.bam.attention.kv": "both"}, "variants.bam.attention.kv", "one of expert, shared, value_only"),
    ({"variants.bam.attention.top_k": 2}, "variants.bam.attention.top_k", "with routing: top_k, and only then"),
    ({"variants.bam.attention.routing": "top_k"}, "variants.bam.attention.top_k", "is given with routing: top_k"),
    (
        {"variants.bam.attention": {"routing": "top_k", "top_k": 4}},
        "variants.bam.attention.top_k",
        "at most the number of experts, 3",
    ),
    ({"variants.bam.ffn.top_k": 4}, "variants.bam.ffn.top_k", "at most the number of experts, 3"),
    ({"variants.bam.ffn.top_k": 0}, "variants.bam.ffn.top_k", "at least 1"),
    ({"variants.bam.ffn.experts": "per-layer"}, "variants.bam.ffn.experts", "per-domain or random, or a list of"),
    ({"variants.bam.ffn.experts": 3}, "variants.bam.ffn.experts", "must be a list"),
    ({"variants.bam.ffn.experts": []}, "variants.bam.ffn.experts", "at least one dense model"),
    ({"variants.bam.ffn.experts": ["general", 7]}, "variants.bam.ffn.experts.1", "must be text"),
    ({"variants.bam.ffn.experts": ["general", "cod"]}, "variants.bam.ffn.experts", "did you mean 'code'?"),
    ({"variants.bam.attention.experts": ["laws"]}, "variants.bam.attention.experts", "is none of the dense models"),
    (
        {"variants.bam.ffn": {"experts": ["general"] * 4, "top_k": 5}},
        "variants.bam.ffn.top_k",
        "at most the number of experts, 4",
    ),
    ({"variants.bam.ffn": {"routing": "soft", "top_k": 2}}, "variants.bam.ffn.top_k", "only then"),
    ({"variants.bam.ffn.routing": "sparse"}, "variants.bam.ffn.routing", "top_k or soft"),
    ({"variants.bam.ffn.scale": "double"}, "variants.bam.ffn.scale", "one of none, gate, experts, weights"),
    ({"variants.bam.ffn.shared_expert": 1}, "variants.bam.ffn.shared_expert", "true or false"),
    ({"variants.bam.ffn.layers": [0, 2]}, "variants.bam.ffn.layers", "different layers from 0 to 1"),
    ({"variants.bam.ffn.layers": [1, 1]}, "variants.bam.ffn.layers", "different layers"),
    ({"variants.bam.ffn.layers": []}, "variants.bam.ffn.layers", "at least one layer"),
    ({"variants.bam.attention.layers": [-1]}, "variants.bam.attention.layers", "from 0 to 1"),
    ({"variants.bam.attention.layers": ["first"]}, "variants.bam.attention.layers.0", "whole number"),
    ({"variants.bam.ffn.soft_layers": [5]}, "variants.bam.ffn.soft_layers", "from 0 to 1"),
    ({"variants.bam.ffn.split": 5}, "variants.bam.ffn.split", "must divide d_ff, 24"),
    ({"variants.bam.ffn.split": 0}, "variants.bam.ffn.split", "at least 1"),
    ({"variants.bam.ffn": {"split": 2, "top_k": 7}}, "variants.bam.ffn.top_k", "number of experts, 6"),
    ({"variants.bam.ffn.capacity_factor": 0}, "variants.bam.ffn.capacity_factor", "above 0"),
    ({"variants.bam.ffn.balance": "both"}, "variants.bam.ffn.balance", "loss or bias"),
    ({"variants.bam.ffn": {"gate": "sample_top1", "top_k": 2}}, "variants.bam.ffn.top_k", "chooses one expert"),
    ({"variants.bam.attention.gate": "sample_top1"}, "variants.bam.attention.gate", "FFN experts only"),
    ({"variants.bam.attention.dense_router_gradient": "no"}, "variants.bam.attention.dense_router_gradient", "true or"),
    ({"variants.bam.router_init": "xavier"}, "variants.bam.router_init", "one of random, zero, orthogonal"),
    ({"variants.bam.router_std": 0}, "variants.bam.router_std", "above 0"),
    ({"variants.bam.router_std": 1.0}, "variants.bam.router_std", "saturated before any training"),
    ({"variants.bam.merge": "average"}, "variants.bam.merge", "one of mean, weighted, seed, slerp, ties, dare"),
    ({"variants.bam.merge": 3}, "variants.bam.merge", "mapping"),
    ({"variants.bam.merge": "weighted"}, "variants.bam.merge.weights", "are given with method: weighted"),
    ({"variants.bam.merge.method": "slrp"}, "variants.bam.merge.method", "did you mean 'slerp'?"),
    ({"variants.bam.merge.wieghts": {}}, "variants.bam.merge.wieghts", "did you mean 'weights'?"),
    (
        {"variants.bam.merge": {"method": "weighted", "weights": {"general": 0.5, "code": 0.4}}},
        "variants.bam.merge.weights",
        "their sum is 0.9",
    ),
    (
        {"variants.bam.merge": {"method": "weighted", "weights": {"general": 0.5, "cod": 0.5}}},
        "variants.bam.merge.weights",
        "did you mean 'code'?",
    ),
    (
        {"variants.bam.merge": {"method": "weighted", "weights": {"general": 2, "code": -1}}},
        "variants.bam.merge.weights.code",
        "above 0",
    ),
    (
        {"variants.bam.merge": {"method": "weighted", "weights": {"general": "half"}}},
        "variants.bam.merge.weights.general",
        "must be a number",
    ),
    ({"variants.bam.merge": {"method": "ties", "density": 0}}, "variants.bam.merge.density", "above 0"),
    ({"variants.bam.merge": {"method": "dare", "drop": 1}}, "variants.bam.merge.drop", "below 1"),
    ({"dense": "maybe"}, "dense", "true or false"),
    ({"ensemble": "maybe"}, "ensemble", "true or false"),
    ({"evaluate.tokens": 31}, "evaluate.tokens", "at least one row, 32"),
    ({"evaluate.stride": 0}, "evaluate.stride", "at least 1 and at most a window, 32 tokens"),
    ({"evaluate.stride": 33}, "evaluate.stride", "at least 1 and at most a window, 32 tokens"),
    ({"evaluate.part": [3, 2]}, "evaluate.part", "i from 1 to n"),
    ({"domains.general.expert": {"tokens": 3200}}, "domains.general.expert", "train: true"),
    ({"domains.law.expert": {"train": False}}, "domains.law.expert.train", "is for the first domain"),
    ({"evaluate.part": 2}, "evaluate.part", "the i-th of n parts"),
    ({"evaluate.routing": {"tokens": 0}}, "evaluate.routing.tokens", "at least 1"),
    ({"evaluate.routing": {"knock_out_tokens": -1}}, "evaluate.routing.knock_out_tokens", "at least 0"),
    ({"evaluate.routing": {"token": 1}}, "evaluate.routing.token", "did you mean 'tokens'"),
    ({"evaluate.routing": "off"}, "evaluate.routing", "must be a mapping"),
    ({"phases.mixture.collapse_for_frac": 2}, "phases.mixture.collapse_for_frac", "between 0 and 1"),
    ({"evaluate.tasks": [{"path": "a.jsonl", "limit": 0}]}, "evaluate.tasks.0.limit", "at least 1"),
    ({"evaluate.tasks": [{"path": "a.jsonl", "new_tokens": -1}]}, "evaluate.tasks.0.new_tokens", "at least 0"),
    ({"evaluate.tasks": [{"path": "a", "execute": True, "new_tokens": 0}]}, "evaluate.tasks.0.execute", "nothing"),
    ({"evaluate.tasks": [{"limit": 3}]}, "evaluate.tasks.0.path", "is missing"),
    ({"evaluate.tasks": ["a.jsonl", {"path": "b", "limits": 3}]}, "evaluate.tasks.1.limits", "did you mean 'limit'"),
    ({"evaluate.tasks": [7]}, "evaluate.tasks.0", "must be a path or"),
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


VARIANT_CLASSES = [
    (mixtures.AttentionVariant, AttentionSpec),
    (mixtures.FFNVariant, FFNSpec),
    (mixtures.MergeVariant, MergeSpec),
    (mixtures.SharedVariant, SharedExperts),
]


@pytest.mark.parametrize(("part", "spec"), VARIANT_CLASSES)
def test_a_recipe_has_the_cores_keys_of_a_variant_with_its_defaults(part: type, spec: type) -> None:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    core = {field.name: plain(getattr(spec(), field.name)) for field in fields(spec)}
    measured_better = {"scale": "gate"} if part is mixtures.FFNVariant else {}  # docs/log.md
    assert part().to_dict() == core | measured_better


def test_a_recipe_has_the_cores_keys_of_models_and_phases_with_their_defaults() -> None:
    recipe = recipe_from(deepcopy(GOOD), "here")
    given, written = recipe.dense_config(), {*GOOD["model"], "vocab_size", "n_kv_heads"}
    assert {field.name for field in fields(ModelConfig)} - written - set(recipe.model.to_dict()) == {
        *("attention", "ffn", "experts", "shared", "router_input", "layout_version"),
        *OPTIONS,  # of models that are imported
    }
    assert given.identity().keys() == {*GOOD["model"], "vocab_size"}
    assert recipe.mixture_training().identity().keys() == {
        *("tokens", "batch_tokens", "lr", "shares", "seq_len", "seed"),
    }


@pytest.mark.parametrize("written", ["ties", {"method": "ties", "density": 0.2}])
def test_a_merge_is_a_word_or_a_group_of_keys(written: Any) -> None:
    recipe = recipe_from(spoiled({"variants.bam.merge": written}), "here")
    assert bam.variant(recipe, "bam").merge == MergeSpec("ties")


def test_every_key_of_a_variant_reaches_the_core() -> None:
    attention = {
        "experts": ["general", "code"],
        "routing": "top_k",
        "top_k": 2,
        "kv": "value_only",
        "gate": "topk_softmax",
        "layers": [1],
        "dense_router_gradient": True,
    }
    ffn = {
        "experts": ["general", "general", "math"],
        "top_k": 2,
        "gate": "softmax_topk_ste",
        "scale": "experts",
        "shared_expert": True,
        "layers": [0, 1],
        "soft_layers": [0],
        "split": 2,
        "capacity_factor": 1.5,
        "balance": "bias",
        "dense_router_gradient": True,
    }
    shared = {"embed": "merged", "norms": "merged", "head": "top1", "temperature": 2.0, "head_gradient": True}
    variant = {"attention": attention, "ffn": ffn, "router_init": "ridge", "router_std": "1e-2", "merge": "dare"}
    variant |= {"shared": shared}
    recipe = recipe_from(spoiled({"variants.all": variant}), "here")
    tuples = [{k: tuple(v) if isinstance(v, list) else v for k, v in part.items()} for part in (attention, ffn)]
    assert bam.variant(recipe, "all") == Variant(
        "all",
        AttentionSpec(**tuples[0]),
        FFNSpec(**tuples[1]),
        "ridge",
        0.01,
        MergeSpec("dare"),
        SharedExperts(**shared),
    )


@pytest.mark.parametrize("written", ["routed", {}, {"head": "top1"}])
def test_what_is_shared_is_a_word_or_a_group_of_keys(written: Any) -> None:
    recipe = recipe_from(spoiled({"variants.bam.shared": written}), "here")
    assert bam.variant(recipe, "bam").shared == SharedExperts()
    assert bam.variant(recipe, "bam").identity() == bam.variant(
        recipe_from(deepcopy(GOOD), "here"), "bam"
    ).identity() | {"shared": {}}


def test_everything_wrong_with_what_is_shared_is_told_at_its_key() -> None:
    wrong = {"embed": "hard", "temperature": 0, "head": "soft", "head_gradient": True, "router": "x"}
    with pytest.raises(InvalidInput) as error:
        recipe_from(spoiled({"variants.bam.shared": wrong}), "here")
    assert {problem.path for problem in error.value.problems} == {
        f"variants.bam.shared.{key}" for key in ("embed", "temperature", "head_gradient", "router")
    }
    with pytest.raises(
        InvalidInput, match=r"bam\.shared: 'averaged': must be merged or routed, or the keys of what is"
    ):
        recipe_from(spoiled({"variants.bam.shared": "averaged"}), "here")
    nothing = dict.fromkeys(("embed", "norms", "head"), "merged")
    with pytest.raises(InvalidInput, match="leaves nothing to route"):
        recipe_from(spoiled({"variants.bam.shared": nothing}), "here")


def test_a_mistake_in_a_variant_hides_no_other() -> None:
    variant = {
        "attention": {"routing": "top_k", "layers": [9]},
        "ffn": {"top_k": 9, "split": "x", "soft_layers": [7], "capacity_factor": -1},
        "router_init": "zro",
        "router_std": 7,
        "merge": {"method": "weighted", "weights": {"general": 0.5, "law": 0.5}, "density": 2},
    }
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled({"variants.bad": variant, "model.d_model": 0}), "here")
    paths = {problem.path.removeprefix("variants.bad.") for problem in raised.value.problems}
    assert paths == {
        *("model.d_model", "attention.top_k", "attention.layers"),
        *("ffn.top_k", "ffn.split", "ffn.soft_layers", "ffn.capacity_factor"),
        *("router_init", "router_std", "merge.density", "merge.weights"),
    }


def test_a_wrong_list_of_experts_says_nothing_of_how_many_are_chosen() -> None:
    with pytest.raises(InvalidInput) as raised:
        recipe_from(spoiled({"variants.bam.ffn": {"experts": ["code", 1, "code", "code"], "top_k": 4}}), "here")
    assert [problem.path for problem in raised.value.problems] == ["variants.bam.ffn.experts.1"]


def test_the_json_schema_speaks_of_every_key() -> None:
    schema = json_schema()
    whole, keys = schema["$defs"]["Recipe"], set(load_recipe("quickstart").to_dict())
    assert set(whole["properties"]) == keys
    assert whole["additionalProperties"] is False
    assert set(schema["then"]["properties"]) == keys | {"extends"}
    text = json.dumps(schema)
    for name in ("generated-math", "softmax_topk_renorm", "max_seq_len", "batch_tokens", "router_init"):
        assert f'"{name}"' in text
