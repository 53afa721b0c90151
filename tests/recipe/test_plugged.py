"""Plug-ins in a recipe: what names them, which stages' keys they enter, and what is said where one is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bam_core import plugins
from bam_core.errors import InvalidInput
from bam_core.graph.key import payload_changes, pipeline_keys
from bam_core.graph.stage import Pipeline
from bam_core.plugins import MERGE_RULES, METRICS, ROUTING_RULES, SOURCES, VARIANTS
from pipelines import bam
from pipelines.recipe import Recipe, json_schema, load_recipe, recipe_from
from pipelines.wiring.plugging import require_plugins
from tests.plugin_kit import Visible, install, visible

__all__ = ["visible"]

SOURCE = """
from bam_core.nn.routing import softmax_topk as gate
from bam_core.upcycle.merge import mean as merge

WIDE = {"attention": "merged", "ffn": {"top_k": 2, "experts": ("general", "law")}, "router_init": "random"}

def metric(judged):
    return 1.0

class wiki:
    def digest(options): return "one"
    def read(options): yield "text"
"""
ENTRIES = {
    ROUTING_RULES: {"acme.gate": "acme_all:gate"},
    MERGE_RULES: {"acme.merge": "acme_all:merge"},
    VARIANTS: {"acme.wide": "acme_all:WIDE"},
    METRICS: {"acme.metric": "acme_all:metric"},
    SOURCES: {"acme.wiki": "acme_all:wiki"},
}
SETS = (
    "domains.law.source={kind: acme.wiki, options: {lang: en}}",
    "variants.bam.ffn.gate=acme.gate",
    "variants.btx.merge=acme.merge",
    "variants.wide={like: acme.wide, ffn: {top_k: 1}}",
    "evaluate.metrics=[acme.metric]",
    "distil.top1={from: bam, attention: {routing: top_k, top_k: 1, gate: acme.gate}, tokens: 100k}",
)


def built(recipe: Recipe) -> Pipeline:
    return bam.build(recipe, {name: name for name in [*recipe.texts, "tokenizer"]})


def named(pipeline: Pipeline) -> dict[str, list[str]]:
    """Stage -> the plug-ins in its configuration."""
    found = {stage.name: stage.config.get("plugins", {}) for stage in pipeline}
    return {stage: sorted(name for group in used.values() for name in group) for stage, used in found.items() if used}


@pytest.fixture
def acme(tmp_path: Path, visible: Visible) -> Path:
    visible(install(tmp_path / "site", "bam-acme", "0.3", ENTRIES, {"acme_all": SOURCE}))
    return tmp_path / "site"


def test_they_are_in_the_stages_that_use_them(acme: Path) -> None:
    recipe = load_recipe("quickstart", SETS)
    assert named(built(recipe)) == {
        "data.law": ["acme.wiki"],
        "mix.bam": ["acme.gate"],
        "train.bam": ["acme.gate"],
        "distil.top1": ["acme.gate"],
        "mix.btx": ["acme.merge"],
        "mix.wide": ["acme.wide"],
        "evaluate": ["acme.gate", "acme.metric"],
        "routing": ["acme.gate"],
    }
    assert [str(plugin) for plugin in require_plugins(recipe)] == [
        "merge rule acme.merge of bam-acme 0.3",
        "metric acme.metric of bam-acme 0.3",
        "routing rule acme.gate of bam-acme 0.3",
        "kind of source acme.wiki of bam-acme 0.3",
        "variant acme.wide of bam-acme 0.3",
    ]
    wide = recipe.variants["wide"]
    assert (wide.like, wide.ffn.top_k, wide.ffn.experts) == ("acme.wide", 1, ["general", "law"])
    assert recipe_from(recipe.to_json(), "what a run has on record") == recipe
    jsonschema.validate({"extends": "quickstart", "variants": {"x": {"like": "acme.wide"}}}, json_schema())


def test_text_of_a_plug_in_may_be_read_by_every_stage_of_text(acme: Path) -> None:
    sets = ["domains.general.source={kind: acme.wiki}", "domains.code.valid={kind: acme.wiki, options: {part: valid}}"]
    stages = ("tokenizer", "data.general", "data.code")
    assert named(built(load_recipe("quickstart", sets))) == {stage: ["acme.wiki"] for stage in stages}
    sets = ["discover.topics={source: {kind: acme.wiki}, n: 2}"]
    sets += ["domains={general: {source: {kind: cluster, of: topics, index: 0}}, rest: {source: "]
    sets[1] += "{kind: cluster, of: topics, index: 1}}}"
    sets += ["phases.expert.data={own: 1.0}", "phases.seed.data={general: 1.0}"]
    stages = ("discover.topics", "tokenizer", "data.general", "data.rest")
    assert named(built(load_recipe("quickstart", sets))) == {stage: ["acme.wiki"] for stage in stages}


def test_another_version_is_another_key_and_the_cause_is_named(acme: Path, tmp_path: Path, visible: Visible) -> None:
    recipe = load_recipe("quickstart", ["variants.bam.ffn.gate=acme.gate"])
    before = built(recipe)
    (acme / "bam_acme-0.3.dist-info").rename(tmp_path / "gone")
    visible(install(tmp_path / "newer", "bam-acme", "0.4", ENTRIES, {}))
    after = built(recipe)
    old, new = pipeline_keys(before), pipeline_keys(after)
    changed = {stage for stage in old if old[stage] != new[stage]}
    assert changed == {"mix.bam", "train.bam", "evaluate", "routing", "report"}
    [change] = payload_changes({"config": before["mix.bam"].config}, {"config": after["mix.bam"].config})
    assert str(change).endswith("acme.gate.version 0.3 -> 0.4")


@pytest.mark.parametrize("name", ["quickstart", "paper/paper_small"])
def test_a_recipe_without_them_is_as_if_there_were_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: pytest.fail("looked for plug-ins"))
    plugins.forget()
    recipe = load_recipe(name, ["evaluate.tasks=[]"])
    assert not named(built(recipe))
    assert require_plugins(recipe) == []


def problems(*sets: str) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        load_recipe("quickstart", sets)
    return {problem.path: f"{problem.expected} {problem.remedy}".strip() for problem in caught.value.problems}


def test_all_that_are_missing_at_once(visible: Visible) -> None:
    kinds = {
        "domains.law.source.kind": "kind of source",
        "variants.bam.ffn.gate": "routing rule",
        "variants.btx.merge": "merge rule",
        "variants.wide.like": "variant",
        "distil.top1.attention.gate": "routing rule",
        "evaluate.metrics.0": "metric",
    }
    found = problems(*SETS)
    assert found.keys() == kinds.keys()
    for path, kind in kinds.items():
        assert f"is a plug-in's {kind}, and no installed distribution has it" in found[path]


def test_a_misspelt_name(acme: Path) -> None:
    found = problems("variants.bam.ffn.gate=acme.gat", "variants.btx.ffn.gate=softmax_topp", "evaluate.metrics=[loud]")
    assert "did you mean 'acme.gate'" in found["variants.bam.ffn.gate"]
    assert found["variants.btx.ffn.gate"].endswith("did you mean 'softmax_topk'?")
    assert found["evaluate.metrics.0"] == "must be a plug-in's name, which has a point in it: acme.sharp"


def test_a_broken_one_shows_when_planned(tmp_path: Path, visible: Visible) -> None:
    entries = {ROUTING_RULES: {"acme.gate": "acme_torn:gate"}, METRICS: {"acme.metric": "acme_torn:metric"}}
    visible(install(tmp_path, "bam-acme", "0.3", entries, {"acme_torn": "raise RuntimeError('torn')"}))
    recipe = load_recipe("quickstart", ["variants.bam.ffn.gate=acme.gate", "evaluate.metrics=[acme.metric]"])
    with pytest.raises(InvalidInput) as caught:
        require_plugins(recipe)
    assert [problem.path for problem in caught.value.problems] == ["variants.bam.ffn.gate", "evaluate.metrics.0"]
    assert "of bam-acme 0.3 cannot be loaded: RuntimeError: torn" in str(caught.value)


def test_a_variant_that_is_none(tmp_path: Path, visible: Visible) -> None:
    source: dict[str, Any] = {"acme_off": "WIDE = {'attention': 'merged', 'fnn': {}}"}
    visible(install(tmp_path, "bam-acme", "0.3", {VARIANTS: {"acme.wide": "acme_off:WIDE"}}, source))
    found = problems("variants.wide={like: acme.wide}")
    assert list(found) == ["variants.wide.like"]
    assert "variant acme.wide of bam-acme 0.3 is not what it must be" in found["variants.wide.like"]
