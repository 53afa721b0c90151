"""`bam expert` and `bam blame` on a store with three dense models and a mixture: what is refused, and how.

Nothing is trained here; the whole way, with training, is in `tests/e2e/test_edit.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bam_core.checkpoint import open_tensors, tensor_sha256, write_model
from bam_core.config import ModelConfig
from bam_core.graph.record import Record, artifact_digest
from bam_core.nn.lm import LM, init_weights
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.variants import VARIANTS, mixture_config, rules_for
from infra.store import ArtifactStore

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=12, max_seq_len=16)
EXPERTS = {"general": "seed", "law": "expert.law"}
NO_MLFLOW = ("--tracking-uri", "http://127.0.0.1:9")

LINES: dict[str, tuple[list[str], str]] = {
    "no operation": (["expert", "frobnicate"], "no command 'frobnicate'"),
    "a misspelt operation": (["expert", "ad"], "did you mean 'add'? (`bam expert --help`)"),
    "add to nothing": (["expert", "add", "train.x", "--from", "expert.law", "--name", "x"], "names no artifact"),
    "add nothing": (["expert", "add", "mix.bam", "--name", "x"], "Missing option '--from'"),
    "add without a name": (["expert", "add", "mix.bam", "--from", "expert.law"], "Missing option '--name'"),
    "add what is not there": (["expert", "add", "mix.bam", "--from", "expert.lwa", "--name", "x"], "'expert.law'?"),
    "add what is no model": (["expert", "add", "mix.bam", "--from", "tokenizer", "--name", "x"], "makes no model"),
    "add to what is no model": (["expert", "add", "tokenizer", "--from", "seed", "--name", "x"], "makes no model"),
    "add to a dense model": (["expert", "add", "seed", "--from", "expert.law", "--name", "x"], "must be a mixture"),
    "add a mixture": (["expert", "add", "mix.bam", "--from", "mix.bam", "--name", "x"], "must be a dense model"),
    "a name that is taken": (["expert", "add", "mix.bam", "--from", "expert.law", "--name", "law"], "is taken"),
    "a name that is none": (["expert", "add", "mix.bam", "--from", "expert.law", "--name", "../x"], "a-z, 0-9"),
    "an artifact's name that is none": (
        ["expert", "add", "mix.bam", "--from", "expert.law", "--name", "x", "--as", "../x"],
        "cannot be a stage's name",
    ),
    "another shape": (["expert", "add", "mix.bam", "--from", "expert.wide", "--name", "x"], "d_ff: 16"),
    "another tokenizer": (
        ["expert", "add", "mix.bam", "--from", "expert.foreign", "--name", "x"],
        "made with another tokenizer than mix.bam@",
    ),
    "another seed": (["expert", "add", "mix.bam", "--from", "expert.stray", "--name", "x"], "the expert.seed"),
    "values that are not finite": (
        ["expert", "add", "mix.bam", "--from", "expert.nan", "--name", "x"],
        "the expert.blocks.0.ffn.w_up: '1 NaN",
    ),
    "an unknown start": (
        ["expert", "add", "mix.bam", "--from", "expert.law", "--name", "x", "--router-row", "ones"],
        "'ones' is not one of",
    ),
    "no tokens": (["expert", "remove", "mix.bam", "law", "--tokens", "0"], "tokens"),
    "remove from nothing": (["expert", "remove", "train.bam", "law"], "names no artifact"),
    "remove an unknown expert": (["expert", "remove", "mix.bam", "lwa"], "did you mean 'law'?"),
    "remove from a dense model": (["expert", "remove", "expert.law", "law"], "must be a mixture"),
    "remove the last expert": (["expert", "remove", "mix.single", "general"], "is the last expert"),
    "extract an unknown expert": (["expert", "extract", "mix.bam", "lwa", "out"], "did you mean 'law'?"),
    "extract a copy that is not there": (["expert", "extract", "mix.bam", "law#2", "out"], "did you mean 'law'?"),
    "extract from a dense model": (["expert", "extract", "seed", "general", "out"], "give a mixture"),
    "extract to what exists": (["expert", "extract", "mix.bam", "law", "."], "exists already"),
    "extract to nowhere": (["expert", "extract", "mix.bam", "law", "/proc/bam/out"], "cannot be written"),
    "extract without a place": (["expert", "extract", "mix.bam", "law"], "Missing argument 'DIR'"),
    "shared by somebody else": (["expert", "extract", "mix.bam", "law", "out", "--shared", "all"], "'all' is not"),
    "blame nothing": (["blame", "mix.bma", "norm.weight"], "did you mean 'mix.bam'?"),
    "blame no model": (["blame", "tokenizer", "norm.weight"], "makes no model"),
    "blame an unknown tensor": (["blame", "mix.bam", "blocks.0.attn.wq"], "did you mean 'blocks.0.attn.w_q'?"),
    "blame an unknown expert": (["blame", "mix.bam", "blocks.0.attn.w_q[lwa]"], "did you mean 'law'?"),
    "blame an expert too far": (["blame", "mix.bam", "blocks.0.attn.w_q[2]"], "there are 2 experts, from 0"),
    "blame an expert of what has none": (["blame", "mix.bam", "norm.weight[law]"], "leave [law] out"),
    "blame an expert of a dense model": (["blame", "seed", "blocks.0.attn.w_q[0]"], "leave [0] out"),
    "half a bracket": (["blame", "mix.bam", "blocks.0.attn.w_q["], "must read TENSOR or TENSOR[EXPERT]"),
}
"""What: (the command line, words that must be in the answer)."""


class Shop:
    """A store, filled by hand."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(str(folder))
        self.made: dict[str, Record] = {}

    def commit(self, stage: str, write: Any, inputs: Mapping[str, str], **metrics: int) -> None:
        key = stage.encode().hex().ljust(64, "0")
        with self.store.scratch(stage, key) as out:
            write(out)
            outputs = self.store.hash_outputs(out)
            record = Record(
                stage=stage,
                key=key,
                payload={"config": {"init_seed": 3, "seed": 4}},
                inputs={role: self.made[parent].ref for role, parent in inputs.items()},
                outputs=outputs,
                digest=artifact_digest(outputs),
                metrics=metrics,
                provenance={},
                started=0.0,
                ended=1.0 + len(self.made),
                attempt=1,
            )
            self.store.commit(out, record)
        self.made[stage] = record

    def dense(self, stage: str, parent: str, config: ModelConfig = DENSE, vocabulary: str = "{}", **put: float) -> None:
        def write(out: Path) -> None:
            model = LM(config)
            init_weights(model, seed=len(self.made))
            for name, value in put.items():
                model.state_dict()[name.replace("__", ".")].view(-1)[0] = value
            (out / "tokenizer.json").write_text(vocabulary)
            write_model(out, config, model.state_dict().items(), tokenizer=None, card="# a model\n")

        self.commit(stage, write, {parent: parent}, train_tokens=100, lineage_tokens=200)

    def mixture(self, stage: str, experts: Mapping[str, str], spoil: bool = False) -> None:
        def write(out: Path) -> None:
            target = mixture_config(DENSE, list(experts), VARIANTS["bam"])
            folders = {name: self.store.localize(self.made[parent]) for name, parent in experts.items()}
            sources, tensors = {name: open_tensors(folder) for name, folder in folders.items()}, dict[str, Any]()
            made = upcycle(target, rules_for(VARIANTS["bam"], target), sources, 4, tensors)
            write_model(out, target, made, tokenizer=folders["general"] / "tokenizer.json", card="# a mixture\n")
            if spoil:
                tensors["blocks.0.ffn.w_up"]["from"][1]["sha256"] = "0" * 64
            (out / "mix.json").write_text(json.dumps({"experts": dict(experts), "tensors": tensors}))

        self.commit(stage, write, {parent: parent for parent in experts.values()}, lineage_tokens=500)


@pytest.fixture
def shop(here: Path) -> Shop:
    shop = Shop(here / "bam_store")
    shop.commit("tokenizer", lambda out: (out / "tokenizer.json").write_text("{}"), {})
    shop.dense("seed", "tokenizer")
    shop.dense("expert.law", "seed")
    shop.mixture("mix.bam", EXPERTS)
    return shop


@pytest.fixture
def misfits(shop: Shop) -> Shop:
    """Models that cannot be put into `mix.bam`, and one that nothing can be taken from."""
    shop.dense("expert.wide", "seed", replace(DENSE, d_ff=16))
    shop.dense("expert.nan", "seed", blocks__0__ffn__w_up=float("nan"))
    shop.mixture("mix.single", {"general": "seed"})
    usual = shop.made["seed"]
    shop.dense("seed", "tokenizer", vocabulary='{"other": 1}')
    shop.dense("expert.foreign", "seed", vocabulary='{"other": 1}')
    shop.made["seed"] = replace(usual, key="f" * 64)
    shop.dense("expert.stray", "seed")
    return shop


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_everything_that_cannot_be_meant_is_refused_in_words(bam: Any, misfits: Shop, here: Path) -> None:
    before = snapshot(here)
    wrong = []
    for what, (line, words) in LINES.items():
        ended = bam(*line, *(NO_MLFLOW if line[0] == "expert" and len(line) > 2 else ()))
        if (ended.status, ended.out) != (2, "") or words not in ended.err or "Traceback" in ended.err:
            wrong.append((what, ended))
        assert snapshot(here) == before, what
    assert wrong == []


def test_adding_and_removing_make_artifacts_once(bam: Any, shop: Shop) -> None:
    add = ("expert", "add", "mix.bam", "--from", "expert.law", "--name", "more", "--json", *NO_MLFLOW)
    first, again = json.loads(bam(*add).out), json.loads(bam(*add).out)
    assert (first["stage"], first["status"], again["status"]) == ("edit.bam-more", "done", "reused")
    assert again["key"] == first["key"]
    assert first["edit"]["logit_difference"] <= 1e-6
    assert first["edit"]["experts"]["after"] == ["general", "law", "more"]
    mean = json.loads(bam(*add, "--router-row", "mean").out)
    assert mean["key"] != first["key"], "another way to start is another artifact"

    removed = bam("expert", "remove", f"edit.bam-more@{first['key']}", "general", "--as", "no.general", *NO_MLFLOW)
    assert removed.status == 0, removed.err
    assert "experts: law, more; largest change of a logit: " in removed.out
    assert "edit.no.general@" in removed.out
    (record,) = shop.store.records("edit.no.general")
    assert record.inputs["base"].key == first["key"]
    assert record.metrics["lineage_tokens"] == 600


def test_extract_says_what_came_from_where(bam: Any, shop: Shop, here: Path) -> None:
    ended = bam("expert", "extract", "mix.bam", "law", "deep/down/law", "--json")
    assert ended.status == 0, ended.err
    answer = json.loads(ended.out)
    assert (answer["expert"], answer["shared"], answer["folder"]) == ("law", "parent", "deep/down/law")
    assert answer["taken"]["blocks.0.attn.w_q"] == "mixture"
    assert answer["taken"]["norm.weight"] == "parent"
    made, parent = here / "deep/down/law", shop.store.localize(shop.made["expert.law"])
    assert (made / "model.safetensors").read_bytes() == (parent / "model.safetensors").read_bytes()
    by_hand = json.loads((made / "config.json").read_text())["bam"]["extracted"]
    assert by_hand == {"stage": "mix.bam", "key": shop.made["mix.bam"].key, "expert": "law", "shared": "parent"}


def test_extract_leaves_nothing_half_written(bam: Any, shop: Shop, here: Path) -> None:
    """A slice that is not what mix.json says, found when some tensors are on the disk already."""
    shop.mixture("mix.spoilt", EXPERTS, spoil=True)
    before = snapshot(here)
    ended = bam("expert", "extract", "mix.spoilt", "law", "law")
    assert (ended.status, ended.out) == (1, "")
    assert "blocks.0.ffn.w_up: the mixture's slice is not the tensor that was mixed" in ended.err
    assert snapshot(here) == before


def test_a_damaged_mixture_is_not_read(bam: Any, shop: Shop, here: Path) -> None:
    weights = shop.store.localize(shop.made["mix.bam"]) / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    for line in (["extract", "mix.bam", "law", "law"], ["extract", "mix.bam", "law", "law", "--shared", "mixture"]):
        ended = bam("expert", *line)
        assert ended.status == 1
        assert "model.safetensors has other bytes than recorded" in ended.err
    assert not (here / "law").exists()
    removed = bam("expert", "remove", "mix.bam", "law", *NO_MLFLOW)
    assert removed.status == 1
    assert "model.safetensors has other bytes than recorded" in removed.err
    assert shop.store.records("edit.bam-without-law") == []


def test_blame_is_a_tree_or_json(bam: Any, shop: Shop) -> None:
    text = bam("blame", "mix.bam", "layers.0.attn.w_q[law]").out.splitlines()
    assert [line.split("@")[0].strip("└─ ") for line in text[:3]] == ["mix.bam", "expert.law", "seed"]
    assert "random initialisation: init seed 3" in text[3]
    tree = json.loads(bam("blame", "mix.bam", "blocks.0.attn.w_q[1]", "--json").out)
    assert tree["expert"] == "1: law"
    assert tree["parents"][0]["digest"][:12] in text[1]
    source = open_tensors(shop.store.localize(shop.made["expert.law"])).get("blocks.0.attn.w_q")
    assert tree["parents"][0]["digest"] == tensor_sha256(source)
    assert torch.equal(source, open_tensors(shop.store.localize(shop.made["mix.bam"])).get("blocks.0.attn.w_q")[1])


@pytest.mark.parametrize("words", [(), ("add",), ("remove",), ("extract",)])
def test_help_needs_no_store(bam: Any, words: tuple[str, ...], here: Path) -> None:
    ended = bam("expert", *words, "--help")
    assert ended.status == 0
    assert "Usage: bam expert" in ended.out
    assert list(here.iterdir()) == []
