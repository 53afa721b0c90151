"""The keys of a recipe are those of the core, with the core's defaults, and every one reaches it."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import fields
from typing import Any

import pytest
from recipes import GOOD, spoiled

from bam_core.config import ModelConfig, SharedExperts
from bam_core.config.block import OPTIONS
from bam_core.upcycle.variants import AttentionSpec, FFNSpec, MergeSpec, Variant
from pipelines import bam
from pipelines.recipe import json_schema, load_recipe, mixtures, recipe_from

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


def test_the_json_schema_speaks_of_every_key() -> None:
    schema = json_schema()
    whole, keys = schema["$defs"]["Recipe"], set(load_recipe("quickstart").to_dict())
    assert set(whole["properties"]) == keys
    assert whole["additionalProperties"] is False
    assert set(schema["then"]["properties"]) == keys | {"extends"}
    text = json.dumps(schema)
    for name in ("generated-math", "softmax_topk_renorm", "max_seq_len", "batch_tokens", "router_init"):
        assert f'"{name}"' in text
