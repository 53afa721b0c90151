"""The section `export`: its stages and keys, what is refused before any training, and what the stage writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import GOOD, spoiled
from test_imports import load as load_importing

from bam_core.errors import InvalidInput, UsageError
from bam_core.graph.key import pipeline_keys
from bam_core.graph.record import Record, artifact_digest
from bam_core.graph.stage import Pipeline, Resources, StageName
from bam_core.protocols import StageContext
from infra.store import ArtifactStore
from pipelines import bam
from pipelines.recipe import recipe_from
from pipelines.stages import export
from tests.export_kit import BAM, write_random

DISTIL = {"top1": {"from": "bam", "attention": {"routing": "top_k", "top_k": 1}, "tokens": 320}}


def built(changes: dict[str, Any]) -> Pipeline:
    recipe = recipe_from(spoiled(changes), "recipe")
    return bam.build(recipe, dict.fromkeys(GOOD["domains"], "text"))


def test_an_export_reads_one_model_and_nothing_reads_it() -> None:
    made = built({"export": {"bam": {}, "top1": {"to": "bam", "dtype": "bf16"}}, "distil": DISTIL})
    stages = {stage.name: stage for stage in made}
    assert stages["export.bam"].inputs == {"model": "train.bam"}
    assert stages["export.bam"].config == {"variant": "bam", "to": "auto"}
    assert stages["export.top1"].inputs == {"model": "distil.top1"}
    assert stages["export.top1"].config == {"variant": "top1", "to": "bam", "dtype": "bf16"}
    assert not [stage.name for stage in made if any(name.startswith("export") for name in stage.inputs.values())]
    plain = pipeline_keys(built({"distil": DISTIL}))
    keys = pipeline_keys(made)
    assert {name: keys[name] for name in plain} == plain


def test_each_seed_has_its_own() -> None:
    made = built({"export": {"bam": {}}, "seeds": [0, 1]})
    exports = [stage for stage in made if stage.function == "export"]
    assert [stage.name for stage in exports] == ["export.bam", "export.bam.s1"]
    assert exports[1].inputs == {"model": "train.bam.s1"}
    assert StageName.parse("export.bam.s1") == StageName("export", "bam", 1)


def test_settings_of_an_imported_seed_go_along() -> None:
    recipe = load_importing({"export": {"bam": {}}})
    made = {stage.name: stage for stage in bam.build(recipe, {name: f"digest of {name}" for name in GOOD["domains"]})}
    assert made["export.bam"].inputs == {"model": "mix.bam", "settings": "seed"}


def test_a_class_that_is_another_model_is_refused_before_any_training() -> None:
    with pytest.raises(InvalidInput, match=r"export.bam.attention: '3 experts': MixtralForCausalLM has one attention"):
        built({"export": {"bam": {"to": "mixtral"}}})
    with pytest.raises(InvalidInput, match=r"export.btx.ffn.gate: 'softmax_topk'"):
        built({"export": {"btx": {"to": "cohere2_moe"}}})
    with pytest.raises(UsageError, match=r"export.btx.to: no export to 'cohere_moe': did you mean 'cohere2_moe'"):
        built({"export": {"btx": {"to": "cohere_moe"}}})
    fits = {"export": {"btx": {"to": "cohere2_moe"}}, "variants.btx.ffn.gate": "topk_softmax"}
    assert "export.btx" in {stage.name for stage in built(fits)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"export": {"bma": {}}}, r"export.bma: 'bma': is neither a variant nor distilled \(did you mean 'bam'"),
        ({"export": {"bam": {"dtype": "int4"}}}, r"export.bam.dtype: 'int4': must be one of bf16, fp32, fp64"),
        ({"export": {"bam": {"too": "bam"}}}, r"export.bam.too: 'bam': is not a known key \(did you mean 'to'"),
        ({"export": "bam"}, r"export: 'bam': must be a mapping of keys"),
    ],
)
def test_mistakes_have_their_path(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        built(changes)


def test_the_stage_writes_a_folder_that_says_what_it_is_of(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    with store.scratch("train.bam", "a" * 64) as out:
        write_random(out, BAM)
        (out / "tokenizer.json").unlink(missing_ok=True)
        outputs = store.hash_outputs(out)
        model = Record("train.bam", "a" * 64, {}, {}, outputs, artifact_digest(outputs), {}, {}, 1.0, 2.0, 1)
        store.commit(out, model)
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "generation_config.json").write_text('{"temperature": 0.7}')
    context = StageContext(
        stage="export.bam",
        key="b" * 64,
        config={"variant": "bam", "to": "auto", "dtype": "bf16"},
        runtime={},
        resources=Resources(),
        inputs={"model": store.localize(model), "settings": settings},
        records={"model": model},
        out=tmp_path / "out",
        trainer=None,  # type: ignore[arg-type]
        sources=None,  # type: ignore[arg-type]
        history=list,
    )
    metrics = export.run(context)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model"]
    report = json.loads((tmp_path / "out" / "model" / "export.json").read_text())
    assert report["model"] == {"stage": "train.bam", "key": "a" * 64, "digest": model.digest}
    assert (report["to"], report["dtype"], len(report["tensors"])) == ("bam", "bfloat16", metrics["tensors"])
    assert json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text())["temperature"] == 0.7
