"""Every kind of mixture that a recipe can ask for, end to end; and what it means to match data or compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import Place, merged, recipe_dict, write_recipe, write_texts

TOP_1 = {"top_k": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "shared": {"attention": {"kv": "shared"}, "ffn": TOP_1},
    "top2": {"attention": {"routing": "top_k", "top_k": 2}, "ffn": {"top_k": 2, "gate": "topk_softmax"}},
    "top1": {"attention": {"routing": "top_k", "top_k": 1, "kv": "shared"}, "ffn": TOP_1},
    "soft": {"attention": {"gate": "softmax_topk"}, "ffn": {"top_k": 3}, "router_init": "zero"},
    "renorm": {"attention": "merged", "ffn": {"top_k": 2, "gate": "softmax_topk_renorm"}},
    "attention": {"attention": {}, "ffn": "merged"},
    "soup": {"attention": "merged", "ffn": "merged"},
    "routed": {"attention": {}, "ffn": TOP_1, "shared": "routed", "router_init": "ridge"},
    "routed_soup": {"attention": "merged", "ffn": "merged", "shared": {"head": "soft"}},
}


def few_steps(recipe: dict[str, Any]) -> dict[str, Any]:
    phases = {name: {"tokens": 4 * 256} for name in ("seed", "expert", "mixture")}
    return merged(recipe, {"phases": phases, "dense": False})


@pytest.fixture(params=["parallel", "sequential"])
def every_variant(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    write_texts(tmp_path / "texts")
    model = {"residual": request.param, "n_heads": 4, "n_kv_heads": 2, "n_layers": 1, "tie_embeddings": False}
    recipe = few_steps(recipe_dict(tmp_path / "texts")) | {"variants": VARIANTS}
    return Place(write_recipe(tmp_path / "tiny.yaml", merged(recipe, {"model": model})), tmp_path / "store")


def test_every_variant_runs_from_text_to_a_report(every_variant: Place) -> None:
    answer = every_variant.run()
    assert answer.status == 0, answer.err
    models = json.loads(every_variant.perplexity())["models"]
    planned = every_variant.plan().json["models"]
    for name in VARIANTS:
        mixed, trained = models[f"mix.{name}"], models[f"train.{name}"]
        assert trained["average_perplexity"] < mixed["average_perplexity"], name
        assert trained["params_total"] == planned[f"train.{name}"]["params_total"]
        mix = json.loads((every_variant.artifact(f"mix.{name}") / "mix.json").read_text())
        assert {op["op"] for op in mix["tensors"].values()} >= ({"mean"} if name == "soup" else {"stack"})
    assert models["train.soup"]["params_total"] == models["seed"]["params_total"]
    assert models["train.shared"]["params_total"] < models["train.soft"]["params_total"]
    assert models["train.top1"]["flops_per_token"] < models["train.top2"]["flops_per_token"]
    routing = json.loads((every_variant.artifact("evaluate") / "routing.json").read_text())["models"]
    assert "train.soup" not in routing
    assert all(routing[f"train.{name}"]["experts"] == ["general", "code", "law"] for name in VARIANTS if name != "soup")


def test_match_compute_trains_bam_on_fewer_tokens_than_btx(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "seed", "expert.*", "mix.*")
    place.set_recipe(merged(place.recipe_dict(), {"phases": {"mixture": {"match": "compute", "tokens": 30 * 256}}}))
    answer = place.run("--until", "evaluate")
    assert answer.status == 0, answer.err
    models = json.loads(place.perplexity())["models"]
    bam, btx, dense = (models[name] for name in ("train.bam", "train.btx", "dense"))
    assert bam["train_tokens"] < btx["train_tokens"] == 30 * 256
    assert dense["train_tokens"] >= btx["train_tokens"]
    for model in (bam, dense):  # the same budget, rounded down to whole batches
        a_batch = model["train_flops"] / (model["train_tokens"] / 256)
        assert 0 <= btx["train_flops"] - model["train_flops"] < a_batch
    by_data = json.loads(finished.perplexity())["models"]
    assert by_data["train.bam"]["train_tokens"] == by_data["train.btx"]["train_tokens"]


def test_two_domains_and_a_tokenizer_of_their_own(up_to: Callable[..., Place], empty: Place) -> None:
    """The smallest mixture; its tokenizer is a file that another run made."""
    made = up_to("tokenizer").artifact("tokenizer") / "tokenizer.json"
    path = Path(made).rename(empty.recipe.parent / "mine.json")
    changes = {"domains": {"law": None}, "tokenizer": {"kind": "file", "path": str(path)}, "variants": {"btx": None}}
    recipe = few_steps(merged(empty.recipe_dict(), changes))
    del recipe["tokenizer"]["domains"], recipe["tokenizer"]["vocab_size"]
    place = Place(empty.recipe, empty.recipe.parent / "other")
    place.set_recipe(recipe)
    answer = place.run()
    assert answer.status == 0, answer.err
    assert (place.artifact("tokenizer") / "tokenizer.json").read_bytes() == path.read_bytes()
    assert set(json.loads(place.perplexity())["models"]) == {"seed", "expert.code", "mix.bam", "train.bam", "ensemble"}
    path.write_text(path.read_text() + "\n")
    assert place.plan().stages()["tokenizer"]["cause"] == "data", "keyed by content"
