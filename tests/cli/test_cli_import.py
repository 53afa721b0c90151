"""`bam import`: what it says and makes, what it refuses, and that the model is then one of the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bam_core.checkpoint import load_model
from bam_core.hf import read_checkpoint
from infra.store import ArtifactStore
from tests.hf_kit import UP, change, write
from tests.infra.exchange_kit import snapshot

NO_MLFLOW = ("--tracking-uri", "http://127.0.0.1:9")


@pytest.fixture
def theirs(here: Path) -> Path:
    folder = write(here / "small-llama", shards=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_looking_says_what_it_is_and_writes_nothing(bam: Any, theirs: Path, here: Path) -> None:
    before = snapshot(here)
    ended = bam("import", "small-llama", "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    for words in (
        "llama (LlamaForCausalLM)",
        "2, sequential, width 8",
        "2 heads of 4, 1 of keys and values",
        "21 in 2 files",
        "model.layers.*.self_attn.q_proj.weight blocks.*.attn.w_q",
        "apache-2.0",
        "it can be imported",
    ):
        assert words in " ".join(ended.out.split())
    value = json.loads(bam("import", "small-llama", "--dry-run", "--json").out)
    assert (value["status"], value["family"], value["licence"]) == ("checked", "llama", "apache-2.0")
    assert snapshot(here) == before


def test_a_model_becomes_one_of_the_store_once(bam: Any, theirs: Path, here: Path) -> None:
    ended = bam("import", "small-llama", *NO_MLFLOW)
    assert ended.status == 0, ended.err
    store = ArtifactStore(str(here / "bam_store"))
    [record] = store.records("imported.small-llama")
    assert f"imported.small-llama@{record.key[:12]}: made" in ended.out
    assert record.provenance["imported_from"] == str(theirs.absolute())
    assert record.provenance["licence"] == "apache-2.0"
    folder = store.localize(record)
    imported = read_checkpoint(theirs)
    made = load_model(folder).state_dict()
    assert all(torch.equal(made[name], imported.tensors.get(name)) for name in imported.tensors.names())
    assert {path.name for path in folder.iterdir()} >= {"MODEL_CARD.md", "import.json", "chat_template.jinja"}
    origins = json.loads((folder / "import.json").read_text())["tensors"]
    assert origins["blocks.1.ffn.w_up"]["from"].endswith(f".safetensors:{UP}")
    assert f"phases.seed: {{import: {folder}}}" in ended.out
    found = read_checkpoint(folder)
    assert (found.family, found.config) == ("bam", imported.config)
    theirs.rename(here / "moved")
    again = json.loads(bam("import", "moved", "small-llama", "--json", *NO_MLFLOW).out)
    assert (again["status"], again["key"]) == ("reused", record.key), "its place is no part"
    assert "nothing would go" in bam("gc").out
    assert bam("verify", "imported.small-llama").status == 0
    assert bam("tree", "imported.small-llama").status == 0
    assert UP in bam("blame", "imported.small-llama", "blocks.1.ffn.w_up").out


def test_a_name_stands_for_one_model(bam: Any, theirs: Path, here: Path) -> None:
    assert bam("import", "small-llama", "base", "--dtype", "bf16", *NO_MLFLOW).status == 0
    write(here / "other", "phi")
    before = snapshot(here)
    ended = bam("import", "other", "base", *NO_MLFLOW)
    assert ended.status == 2
    assert "is imported.base@" in ended.err
    assert "--replace" in ended.err
    assert snapshot(here) == before
    assert bam("import", "other", "base", "--replace", *NO_MLFLOW).status == 0
    store = ArtifactStore(str(here / "bam_store"))
    assert len(store.records("imported.base")) == 2
    kept = store.pins.get("imported-base")
    assert kept is not None
    assert kept.why.endswith("other")


def test_refusals_are_words_and_nothing_is_written(bam: Any, theirs: Path, here: Path) -> None:
    write(here / "coded", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    write(here / "odd", hidden_act="quick_gelu", rope_scaling={"rope_type": "yarn"})
    pickled = write(here / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    before = snapshot(here)
    for line, words in {
        (): "Missing argument 'DIR_OR_HUB_ID'",
        ("small-llama", "../x"): "1 to 64 letters",
        ("./nowhere",): "is no folder here and no id of the hub",
        ("small-llama", "--revision", "main"): "is for a model of the hub",
        ("small-llama/config.json",): "is a file",
        ("some/model",): "hf download some/model",
        ("coded",): "--ignore-code",
        ("pickled",): "save_pretrained",
        ("odd",): "2 problems",
        ("small-llama", "--dtype", "int8"): "'int8' is not one of",
    }.items():
        ended = bam("import", *line)
        assert (ended.status, ended.out) == (2, ""), (line, ended)
        assert words in ended.err, (line, ended.err)
        assert "Traceback" not in ended.err
        assert snapshot(here) == before, line


def test_values_that_are_not_finite_leave_no_artifact(bam: Any, here: Path) -> None:
    change(write(here / "broken"), lambda tensors: tensors[UP].fill_(torch.nan))
    ended = bam("import", "broken", "--dry-run")
    assert (ended.status, ended.out) == (2, "")
    assert f"model.safetensors:{UP}: '96 NaN of 96 values'" in ended.err
    ended = bam("import", "broken", *NO_MLFLOW)
    assert ended.status == 1
    assert UP in ended.err
    assert "Traceback" not in ended.err
    assert ArtifactStore(str(here / "bam_store")).records("imported.broken") == []
