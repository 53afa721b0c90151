"""`phases.seed.import` and `domains.NAME.expert.import`: what follows from checkpoints that were only looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recipes import GOOD, MISSING, spoiled

from bam_core.config import ModelConfig
from bam_core.data.tokenize import train_bpe
from bam_core.errors import InvalidInput, Problem
from bam_core.graph.key import pipeline_keys
from bam_core.upcycle.variants import VARIANTS, mixture_config
from bam_core.upcycle.vocabulary import Vocabulary, vocabulary_of
from pipelines import bam
from pipelines.recipe import Recipe, recipe_from, recipe_with_imports
from pipelines.recipe.imports import Asked, Checkpoint

TEXT = train_bpe(["one seed and its experts"], 257)
TOKENIZER = vocabulary_of(TEXT)
V = TOKENIZER.size
CONFIG = ModelConfig(V, 16, 2, 4, 2, 24, 4096, residual="sequential")


def checkpoint(name: str, **changes: Any) -> Checkpoint:
    found = Checkpoint(name * 8, {"kind": "model", "path": f"/{name}"}, "llama", CONFIG, TOKENIZER)
    return replace(found, **changes)


def longer() -> Vocabulary:
    definition = json.loads(TEXT)
    definition["added_tokens"].append(definition["added_tokens"][0] | {"id": V, "content": "<chat>"})
    return vocabulary_of(json.dumps(definition))


THERE: dict[str, Checkpoint] = {
    "base": checkpoint("base"),
    "code": checkpoint("code"),
    "chat": checkpoint("chat", config=replace(CONFIG, vocab_size=V + 1), vocabulary=longer()),
    "lora": checkpoint("lora", adapter={"rank": 4, "modules": 14}),
    "wide": checkpoint("wide", config=replace(CONFIG, d_ff=32, rope_theta=5e5)),
    "long": checkpoint("long", config=replace(CONFIG, max_seq_len=8192)),
    "mute": checkpoint("mute", vocabulary=None),
    "odd": checkpoint("odd", vocabulary=None, config=replace(CONFIG, vocab_size=V + 3)),
    "mix": checkpoint("mix", config=mixture_config(CONFIG, ["a", "b"], VARIANTS["btx"])),
    "org/hub": checkpoint("hub", place={"kind": "hub-model", "id": "org/hub", "revision": "c" * 40}, hub="org/hub"),
}
DIGESTS = {name: f"digest of {name}" for name in ("general", "code", "math")}


def look(asked: Asked, seed: Checkpoint | None) -> Checkpoint:
    if asked.source not in THERE:
        where = Problem("model.safetensors", None, "is missing", "give the folder that save_pretrained wrote")
        raise InvalidInput("there", [where])
    found = THERE[asked.source]
    if found.adapter is not None and seed is None:
        raise InvalidInput("there", [Problem("", asked.source, "is an adapter, and the seed is none")])
    return found


def importing(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    plain = {
        "tokenizer": MISSING,
        "model": MISSING,
        "phases": {"seed": {"import": "base"}, "mixture": {"tokens": 0}},
        "domains.code.expert": {"import": "code"},
        "domains.math.expert": {"import": "lora"},
        "evaluate.tokens": 4096,
    }
    asked = plain | dict(changes or {})
    return spoiled({path: value for path, value in asked.items() if not (value is MISSING and "domains" in path)})


def load(changes: Mapping[str, Any] | None = None) -> Recipe:
    return recipe_from(importing(changes), "here", look=look)


def stages(recipe: Recipe) -> dict[str, Any]:
    return {stage.name: stage for stage in bam.build(recipe, DIGESTS)}


def test_nothing_is_trained_and_all_follows_from_the_checkpoints() -> None:
    recipe = load()
    assert recipe.dense_config() == CONFIG
    assert (recipe.context, recipe.row_len) == (4096, 2048)
    assert bam.trainings(recipe) == {}
    made = stages(recipe)
    text = ["tokenizer", "data.general", "data.code", "data.math", "overlap"]
    models = ["seed", "expert.code", "expert.math", "mix.bam", "mix.btx"]
    assert sorted(made) == sorted([*text, *models, "evaluate", "routing", "report"])
    assert {name: made[name].function for name in models[:3]} == dict.fromkeys(models[:3], "import")
    assert made["seed"].config == {
        "import": {"digest": "base" * 8, "family": "llama"},
        "model": CONFIG.identity(),
    }
    adapter = made["expert.math"]
    assert adapter.config["import"]["adapter"] == {"rank": 4, "modules": 14}
    assert adapter.config["base"] == "base" * 8
    assert adapter.runtime["places"] == {"math": THERE["lora"].place, "general": THERE["base"].place}
    assert made["tokenizer"].config["kind"] == "import"
    assert made["mix.bam"].config["experts"] == [["general", "seed"], ["code", "expert.code"], ["math", "expert.math"]]
    assert made["evaluate"].config["models"] == models
    assert made["evaluate"].config["stride"] == 2048
    assert made["routing"].config["models"] == ["mix.bam", "mix.btx"]
    assert made["report"].config["baselines"] == ["mix.btx"]
    assert made["data.code"].config["seq_len"] == 2048


def test_a_key_has_the_content_and_not_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> dict[str, str]:
        return pipeline_keys(bam.build(load(), DIGESTS))

    before = keys()
    monkeypatch.setitem(THERE, "code", replace(THERE["code"], place={"kind": "model", "path": "/moved"}))
    assert keys() == before
    monkeypatch.setitem(THERE, "code", replace(THERE["code"], digest="other"))
    changed = {name for name, key in keys().items() if key != before[name]}
    assert changed == {"expert.code", "mix.bam", "mix.btx", "evaluate", "routing", "report"}


def test_an_id_of_the_hub_is_its_commit() -> None:
    made = stages(load({"domains.code.expert": {"import": "org/hub", "revision": "main"}}))["expert.code"]
    assert made.config["import"]["hub"] == "org/hub"
    assert made.runtime["places"]["code"]["revision"] == "c" * 40
    assert '"main"' not in json.dumps(made.config)


def test_what_is_trained_on_starts_from_what_is_imported() -> None:
    phase = {"batch_tokens": 4096, "lr": 1e-4}
    recipe = load(
        {
            "phases.seed": {"import": "base", "tokens": 8192, **phase},
            "phases.expert": {"tokens": 4096, **phase},
            "phases.mixture": {"tokens": 8192, **phase},
            "domains.code.expert": {"import": "code", "tokens": 4096, "lr": 1e-3},
            "domains.math.expert": MISSING,
        }
    )
    made = stages(recipe)
    assert {"import.general", "import.code", "seed", "expert.code", "expert.math", "train.bam", "dense"} <= made.keys()
    assert made["seed"].inputs["import"] == "import.general"
    assert made["expert.code"].inputs == {"import": "import.code", "data.code": "data.code"}
    assert made["expert.math"].inputs["seed"] == "seed"
    assert recipe.expert_training("code").lr == 1e-3
    assert recipe.seed_training().seq_len == 2048
    assert made["seed"].config["from"] == "import"
    assert "init_seed" not in made["seed"].config


def test_single_variants_are_left_as_they_are_mixed() -> None:
    phase = {"tokens": 640, "batch_tokens": 64, "lr": 1e-3}
    recipe = recipe_from(spoiled({"variants.bam.train": False}), "here")
    made = stages(recipe)
    assert "train.bam" not in made
    assert {"mix.bam", "mix.btx", "train.btx", "dense"} <= made.keys()
    assert made["evaluate"].config["models"].count("mix.bam") == 1
    assert made["routing"].config["models"] == ["mix.bam", "train.btx"]
    only_one = {"phases.mixture": phase | {"tokens": 0}, "variants.btx.train": {"tokens": 640}}
    trained = bam.trainings(recipe_from(spoiled(only_one), "here"))
    assert [name for name in trained if name.startswith("train.")] == ["train.btx"]
    assert "dense" not in trained


def test_vocabulary_rules() -> None:
    chat = {"domains.code.expert": {"import": "chat"}, "domains.math.expert": {"import": "lora"}}
    assert said(chat) == {"domains.code.expert.import": "it has 1 tokens more than the seed"}
    union = load(chat | {"vocabulary": "union"})
    assert union.dense_config().vocab_size == V + 1
    made = stages(union)
    models = [["general", "base" * 8], ["code", "chat" * 8], ["math", "lora" * 8]]
    assert made["seed"].config["vocabulary"] == {"rule": "union", "models": models}
    assert made["expert.math"].runtime["places"].keys() == {"general", "code", "math"}
    assert "vocabulary" not in made["expert.code"].config, "its rows stay as they are"
    assert made["tokenizer"].config["vocab_size"] == V + 1
    seed = stages(load(chat | {"vocabulary": "seed"}))
    assert "vocabulary" not in seed["seed"].config
    assert seed["expert.code"].config["vocabulary"]["rule"] == "seed"
    assert seed["tokenizer"].config == stages(load())["tokenizer"].config


def said(changes: Mapping[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        load(changes)
    return {problem.path: problem.expected for problem in caught.value.problems}


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = said(
        {
            "phases.seed": {"import": "base", "lr": 1e-3},
            "phases.mixture": {"tokens": 640},
            "domains.code.expert": {"import": "gone"},
            "domains.math.expert": {"import": "wide"},
            "model": GOOD["model"],
            "tokenizer": GOOD["tokenizer"],
            "vocabulary": "both",
            "variants.bam.ffn.split": 5,
        }
    )
    assert found == {
        "phases.seed.lr": "has no effect: without tokens nothing is trained",
        "phases.mixture.batch_tokens": "is missing",
        "phases.mixture.lr": "is missing",
        "domains.code.expert.import": "model.safetensors: is missing",
        "domains.math.expert.import": "rope_theta must be as in the seed, 10000.0",
        "model": "an imported seed brings its own",
        "tokenizer.kind": "an imported seed brings its own: ids of another mean other text",
        "vocabulary": "must be one of refuse, union, seed",
        "variants.bam.ffn.split": "must divide d_ff, 24",
    }


def test_a_longer_context_is_no_fault_and_the_seeds_counts() -> None:
    assert load({"domains.code.expert": {"import": "long"}}).dense_config().max_seq_len == 4096


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"phases.seed": {"import": "mute"}}, "phases.seed.import"),
        ({"phases.seq_len": 5000}, "phases.seq_len"),
        ({"phases.seed": {"import": "base", "tokens": 8192}}, "phases.seed.batch_tokens"),
        ({"domains.code.expert": {"import": "code", "tokens": 640}}, "phases.expert"),
        ({"domains.code.expert": MISSING}, "phases.expert"),
        ({"phases": {"seed": {"import": "base"}}}, "phases.mixture"),
        ({"phases.seed": GOOD["phases"]["seed"]}, "domains.math.expert.import"),
        ({"domains.code.expert": {"import": 3}}, "domains.code.expert.import"),
        ({"domains.code.expert": {"import": "code", "revisoin": "x"}}, "domains.code.expert.revisoin"),
        ({"distil": {"d": {"from": "bam", "tokens": 64, "attention": {"kv": "shared"}}}}, "distil.d.from"),
        ({"domains.general.expert": {"import": "base"}}, "domains.general.expert"),
        ({"domains.general.expert": {"import": "base", "train": True}}, "domains.general.expert.import"),
        ({"phases.seed": {"import": "mix"}}, "phases.seed.import"),
        ({"domains.code.expert": {"import": "odd"}}, "domains.code.expert.import"),
        ({"domains.code.expert": {"import": "odd"}, "vocabulary": "seed"}, "domains.code.expert.import"),
        ({"domains.code.expert": {"import": "mix"}}, "domains.code.expert.import"),
    ],
)
def test_where_each_mistake_is(changes: dict[str, Any], where: str) -> None:
    assert where in said(changes)


def test_it_is_read_again_as_it_was_written() -> None:
    recipe = load()
    again = recipe_from(recipe.to_json(), "again", look=look)
    assert pipeline_keys(bam.build(again, DIGESTS)) == pipeline_keys(bam.build(recipe, DIGESTS))
    unseen = recipe_from(importing(), "here")
    assert unseen.imports is None
    assert recipe_with_imports(unseen, look).dense_config() == CONFIG
    with pytest.raises(InvalidInput):
        recipe_with_imports(recipe_from(importing({"domains.code.expert": {"import": "gone"}}), "here"), look)


def test_several_seeds_share_what_is_imported() -> None:
    made = stages(load({"seeds": [0, 1]}))
    assert {"seed", "expert.code", "expert.math", "mix.bam", "mix.bam.s1"} <= made.keys()
    assert not {"seed.s1", "expert.code.s1"} & made.keys()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 9), st.just(2.5), st.sampled_from(["", "base", "lora", "gone"]),
    st.just([]), st.just({}), st.just({"import": None}), st.just({"import": "code", "tokens": 0}), st.just([{"a": 1}]),
)  # fmt: skip
PLACES = (
    "domains",
    "domains.general",
    "domains.code",
    "domains.code.expert",
    "domains.code.expert.import",
    "domains.math.expert.tokens",
    "phases",
    "phases.seed",
    "phases.seed.import",
    "phases.seed.tokens",
    "phases.mixture",
    "phases.mixture.tokens",
    "phases.mixture.lr",
    "phases.expert",
    "phases.seq_len",
    "variants.bam.train",
    "vocabulary",
    "tokenizer",
    "model",
    "dense",
)


@settings(max_examples=150)
@example([("domains", {})])
@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3))
def test_any_junk_is_refused_in_words_or_can_be_built(changes: list[tuple[str, Any]]) -> None:
    document = importing()
    for path, value in changes:
        *parents, last = path.split(".")
        part = document
        for key in parents:
            part = part.setdefault(key, {}) if isinstance(part, dict) else {}
        if isinstance(part, dict):
            part[last] = value
    try:
        recipe = recipe_from(document, "junk", look=look)
    except InvalidInput:
        return
    bam.build(recipe, DIGESTS, {name: {} for name in recipe.adopted.values()})
