"""Everything that is wrong with a recipe is told at once, each mistake at its key."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import GOOD, MISSING, spoiled

from bam_core.errors import InvalidInput
from pipelines.recipe import recipe_from

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
