"""`bam export`: what it writes and says, and what it refuses without touching what is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bam_core.checkpoint import open_tensors, read_config, read_digests, write_model
from bam_core.config import ModelConfig
from bam_core.graph.record import Record, artifact_digest
from bam_core.hf.export import export_model
from infra.store import ArtifactStore
from tests.export_kit import BAM, BTX, random_tensors
from tests.task_kit import TOKENIZER

KEY = "a" * 64


def commit(store: ArtifactStore, stage: str, write: Callable[[Path], Any], **inputs: Record) -> Record:
    with store.scratch(stage, KEY) as out:
        write(out)
        outputs = store.hash_outputs(out)
        refs = {role: record.ref for role, record in inputs.items()}
        record = Record(stage, KEY, {}, refs, outputs, artifact_digest(outputs), {}, {}, 1.0, 2.0, 1)
        store.commit(out, record)
    return record


def write_random(config: ModelConfig, tokenizer: Path) -> Callable[[Path], None]:
    def write(out: Path) -> None:
        tensors = ((name, tensor.float()) for name, tensor in random_tensors(config))
        write_model(out, config, tensors, tokenizer=tokenizer, card="# A mixture\n")

    return write


@pytest.fixture
def store(here: Path) -> ArtifactStore:
    """`train.bam`, which needs its own code, `train.btx`, which is a Cohere2-MoE, an export, and `tokenizer`."""
    from dataclasses import replace

    (here / "tokenizer.json").write_text(TOKENIZER)
    store = ArtifactStore(str(here / "bam_store"))
    for name, config in {"bam": BAM, "btx": BTX}.items():
        commit(store, f"train.{name}", write_random(replace(config, vocab_size=320), here / "tokenizer.json"))
    commit(store, "tokenizer", lambda out: (out / "tokenizer.json").write_text(TOKENIZER))
    bam_model = store.records("train.bam")[0]
    source = store.localize(bam_model)
    commit(store, "export.bam", lambda out: export_model(source, out / "model", to="bam"), model=bam_model)
    return store


def test_every_tensor_is_accounted_for_by_digest(bam, store: ArtifactStore, here: Path):
    """From the report alone: each tensor of ours, by the digest that it was written with, and each file as it is."""
    ended = bam("export", "train.bam", "out", "--json")
    answer = json.loads(ended.out)
    assert (answer["to"], answer["class"], answer["model"]) == ("bam", "BamForCausalLM", f"train.bam@{KEY[:12]}")
    assert answer["refused"]["cohere2_moe"] == {
        "field": "attention",
        "value": "3 experts",
        "reason": "Cohere2MoeForCausalLM has one attention, no experts",
    }
    report = json.loads((here / "out" / "export.json").read_text())
    source = store.localize(store.records("train.bam")[0])
    read = {entry["tensor"]: entry["sha256"] for made in report["tensors"].values() for entry in made["from"]}
    assert read == read_digests(source)
    assert report["model"] == {"stage": "train.bam", "key": KEY, "digest": store.records("train.bam")[0].digest}
    theirs = open_tensors(here / "out")
    assert sorted(report["tensors"]) == theirs.names()
    from bam_core.checkpoint import tensor_sha256

    assert {name: tensor_sha256(theirs.get(name)) for name in theirs.names()} == {
        name: made["sha256"] for name, made in report["tensors"].items()
    }
    kept = [name for name, made in report["tensors"].items() if made["how"] == "as it is"]
    assert all(report["tensors"][name]["sha256"] == report["tensors"][name]["from"][0]["sha256"] for name in kept)
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.router.weight"} <= set(kept)
    written = {path.name for path in (here / "out").iterdir()}
    assert written == set(report["files"]) | {"export.json"}
    assert written >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"}
    assert "configuration_bam.py" in written


def test_people_are_told_why(bam, store: ArtifactStore, here: Path):
    own = bam("export", "train.bam", "own").out
    assert "cohere2_moe: attention 3 experts: Cohere2MoeForCausalLM has one attention, no experts" in own
    assert "AutoModelForCausalLM.from_pretrained('own', trust_remote_code=True)" in own
    known = bam("export", "train.btx", "known").out
    assert "Cohere2MoeForCausalLM computes the same" in known
    assert known.splitlines()[-1].endswith("from_pretrained('known')")
    assert not list((here / "known").glob("*.py"))
    card = (here / "known" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "## Open it" in card


def test_equal_models_give_equal_bytes(bam, store: ArtifactStore, here: Path):
    for name in ("one", "two"):
        assert bam("export", "train.btx", name).status == 0
    files = {path.name: path.read_bytes() for path in (here / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (here / "two").iterdir()}


def test_what_a_run_exported_is_copied(bam, store: ArtifactStore, here: Path):
    answer = json.loads(bam("export", "export.bam", "out", "--json").out)
    assert (answer["model"], answer["to"]) == (f"train.bam@{KEY[:12]}", "bam")
    source = store.localize(store.records("export.bam")[0]) / "model"
    assert (here / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    other = bam("export", "export.bam", "other", "--dtype", "bf16")
    assert (other.status, (here / "other").exists()) == (2, False)
    assert f"is an export of train.bam@{KEY[:12]} already" in other.err
    assert "makes no model" in bam("card", "export.bam").err


def test_a_template_goes_along(bam, store: ArtifactStore, here: Path):
    (here / "template.jinja").write_text("{{ messages[0].content }}")
    answer = json.loads(bam("export", "train.btx", "out", "--chat-template", "template.jinja", "--json").out)
    assert answer["chat_template"]
    assert (here / "out" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    missing = bam("export", "train.btx", "other", "--chat-template", "nowhere.jinja")
    assert (missing.status, "is no file" in missing.err, (here / "other").exists()) == (2, True, False)


LINES: dict[str, tuple[list[str], str]] = {
    "what is no model": (["tokenizer", "out"], "tokenizer makes no model"),
    "what is not there": (["train.bma", "out"], "did you mean 'train.bam'"),
    "an unknown class": (["train.bam", "out", "--to", "mixtrall"], "did you mean 'mixtral'"),
    "a class that is another model": (["train.bam", "out", "--to", "mixtral"], "attention: '3 experts'"),
    "a file": (["train.bam", "tokenizer.json"], "is no folder"),
    "a folder in a file": (["train.bam", "tokenizer.json/out"], "cannot be written"),
    "a folder with something in it": (["train.bam", "full"], "full is not empty"),
    "an unknown dtype": (["train.bam", "out", "--dtype", "int4"], "'int4' is not one of"),
}


@pytest.mark.parametrize("name", LINES)
def test_what_is_refused_leaves_all_as_it_was(name: str, bam, store: ArtifactStore, here: Path):
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("years of work")
    before = sorted(path for path in here.rglob("*") if "bam_store" not in path.parts)
    words, expected = LINES[name]
    ended = bam("export", *words)
    assert (ended.status, ended.out) == (2, "")
    assert expected in ended.err
    assert sorted(path for path in here.rglob("*") if "bam_store" not in path.parts) == before


def test_force_moves_aside_and_loses_nothing(bam, store: ArtifactStore, here: Path):
    (here / "out").mkdir()
    assert bam("export", "train.btx", "out").status == 0  # an empty folder is in nobody's way
    (here / "out" / "notes.txt").write_text("mine")
    for number in (1, 2):
        answer = json.loads(bam("export", "train.btx", "out", "--force", "--json").out)
        assert answer["kept"] == f"out.before-{number}"
    assert (here / "out.before-1" / "notes.txt").read_text() == "mine"
    assert (here / "out.before-1" / "model.safetensors").is_file()
    assert not (here / "out" / "notes.txt").exists()


def test_a_disk_that_is_too_small_is_told_before(bam, store: ArtifactStore, here: Path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    ended = bam("export", "train.bam", "out")
    assert (ended.status, list(here.glob("*out*"))) == (2, [])
    assert "MiB are needed" in ended.err


def test_a_disk_that_fills_up_leaves_nothing_behind(bam, store: ArtifactStore, here: Path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("bam_core.checkpoint.save_file", full)
    (here / "out").mkdir()
    (here / "out" / "notes.txt").write_text("mine")
    ended = bam("export", "train.bam", "out", "--force")
    assert (ended.status, [path.name for path in here.glob("*out*")]) == (2, ["out"])
    assert "No space left" in ended.err
    assert "free some space" in ended.err
    assert (here / "out" / "notes.txt").read_text() == "mine"


def test_a_tensor_that_changed_is_no_export(bam, store: ArtifactStore, here: Path):
    """The store's own check finds it first; so does the export's, for a folder that nobody checked."""
    source = store.localize(store.records("train.btx")[0])
    config = read_config(source)
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    from bam_core.errors import ArtifactDamaged

    with pytest.raises(ArtifactDamaged, match="is not what was written"):
        export_model(source, here / "direct")
    ended = bam("export", "train.btx", "out")
    assert ended.status != 0
    assert not (here / "out").exists()
    assert config.ffn is not None
