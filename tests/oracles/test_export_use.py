"""What people do with an export in transformers: save it again, place it on devices, narrow it, fine-tune it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agreement import EXACT, Agreement
from safetensors import safe_open

from bam_core.checkpoint import open_tensors
from bam_core.config import AttentionExperts, ModelConfig, SharedExperts
from bam_core.hf import export
from bam_core.hf.export import export_model
from bam_core.hf.to_bam import CODE
from tests.core.upcycle_models import InMemory
from tests.export_kit import BAM, DENSE, ROUTED, code_cache, exported, opened, our_logits, some_tokens, write_random

__all__ = ["code_cache"]

UNTIED = replace(BAM, tie_embeddings=False)
SHARED_KV = replace(ROUTED, attention=AttentionExperts(3, 2, "shared"))


@pytest.mark.parametrize("config", [UNTIED, ROUTED], ids=["untied", "routed"])
def test_what_is_saved_again_is_the_same(config: ModelConfig, tmp_path: Path):
    """Weights, config and code; a tied head is stored once."""
    _, theirs, _ = exported(tmp_path, config, to="bam")
    theirs.save_pretrained(tmp_path / "again")
    names = []
    for folder in ("export", "again"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            names.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert names[0].keys() == names[1].keys()
    assert all(tensor.equal(names[1][name]) for name, tensor in names[0].items())
    assert ("lm_head.weight" in names[0]) == (not config.tie_embeddings)
    assert [(tmp_path / "again" / name).read_bytes() for name in CODE] == [
        (tmp_path / "export" / name).read_bytes() for name in CODE
    ]
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("export", "again")]
    for name, value in configs[0].items():
        assert name == "transformers_version" or configs[1].get(name) == value, name
    tokens = some_tokens(config)
    with torch.no_grad():
        assert opened(tmp_path / "again")(tokens).logits.equal(theirs(tokens).logits)


def test_shards_are_written_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the model's size, a shard and the tensor at hand are in memory."""
    sources: list[InMemory] = []

    def watched(folder: Path) -> InMemory:
        stored = open_tensors(folder)
        sources.append(InMemory({name: stored.get(name) for name in stored.names()}))
        return sources[-1]

    most = []
    write = export.write_shard
    monkeypatch.setattr(export, "open_tensors", watched)
    monkeypatch.setattr(export, "write_shard", lambda *args: (most.append(sources[-1].live()), write(*args)))
    _, theirs, _ = exported(tmp_path, BAM, to="bam", max_shard_bytes=10_000)
    assert max(most) <= 3
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert files == {path.name for path in (tmp_path / "export").glob("*.safetensors")}
    export_model(tmp_path / "source", tmp_path / "whole", to="bam")
    tokens = some_tokens(BAM)
    with torch.no_grad():
        found, wanted = opened(tmp_path / "whole")(tokens).logits, theirs(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)  # mapped files lie where products round otherwise


def test_a_tied_head_is_one_parameter(tmp_path: Path):
    _, theirs, _ = exported(tmp_path, BAM, to="bam")
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    theirs.resize_token_embeddings(110)
    assert theirs(some_tokens(BAM)).logits.shape[-1] == 110
    _, routed, _ = exported(tmp_path / "routed", ROUTED, to="bam")
    assert routed.lm_head.weight is routed.model.embed_tokens.weight
    _, apart, _ = exported(tmp_path / "apart", replace(ROUTED, shared=SharedExperts(embed="merged")), to="bam")
    assert apart.lm_head.weight.shape == (3, 101, 32)
    assert apart.model.embed_tokens.weight.shape == (101, 32)


def test_routers_stay_wide(tmp_path: Path):
    """In bfloat16, stored or read as such: a choice of experts hangs on the last digits."""
    source = write_random(tmp_path / "source", ROUTED, dtype=torch.float32)
    export_model(source, tmp_path / "narrow", dtype=torch.bfloat16)
    export_model(source, tmp_path / "wide")
    with safe_open(tmp_path / "wide" / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys() if "router" in name}  # noqa: SIM118
    for model in (opened(tmp_path / "narrow"), opened(tmp_path / "wide", dtype=torch.bfloat16)):
        assert model.dtype == torch.bfloat16
        found = {name: tensor for name, tensor in model.state_dict().items() if "router" in name}
        assert len(found) == 5
        assert all(tensor.equal(stored[name]) for name, tensor in found.items())
        assert torch.isfinite(model(some_tokens(ROUTED)).logits).all()


def test_blocks_are_placed_whole(tmp_path: Path, agree: Agreement):
    """On devices as they have room; here a block on the disk, read when it is its turn."""
    from accelerate import infer_auto_device_map

    ours, theirs, _ = exported(tmp_path, SHARED_KV, to="bam")
    block = sum(p.nbytes for p in theirs.model.layers[0].parameters())
    rest = sum(p.nbytes for p in theirs.parameters()) - 2 * block

    def cut_blocks(whole: set[str]) -> list[str]:
        rooms = [{"cpu": rest + int(part * block), "disk": 10**9} for part in (0.3, 0.8, 1.3, 1.8)]
        placed = [name for room in rooms for name in infer_auto_device_map(theirs, room, no_split_module_classes=whole)]
        return [name for name in placed if name.startswith("model.layers.") and name.count(".") > 2]

    assert cut_blocks(theirs._no_split_modules) == []
    assert cut_blocks(set()), "room was made so that blocks would be cut"
    kept = ("model.embed_tokens", "model.shared_router", "model.layers.0", "model.norm", "lm_head")
    where = dict.fromkeys(kept, "cpu")
    apart = opened(
        tmp_path / "export", device_map=where | {"model.layers.1": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    tokens = some_tokens(SHARED_KV)
    with torch.no_grad():
        agree(apart(tokens).logits, our_logits(ours, tokens), EXACT, "logits")
    greedy = {"max_new_tokens": 4, "do_sample": False}
    assert apart.generate(tokens, **greedy).equal(theirs.generate(tokens, **greedy))


def test_a_trainer_fine_tunes_it(tmp_path: Path):
    """By its own loop, with accumulation, checkpointing and router losses; what it saves is what it trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments
    source = write_random(tmp_path / "source", BAM, dtype=torch.float32)
    export_model(source, tmp_path / "export", to="bam")
    model = opened(tmp_path / "export")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = some_tokens(BAM, 16, 12)
    items = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=6,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(model=model, args=arguments, train_dataset=items)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    moved = [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]
    assert {"model.layers.0.mlp.router.weight", "model.layers.0.self_attn.router.weight"} <= set(moved)
    trainer.save_model(str(tmp_path / "tuned"))
    tuned = opened(tmp_path / "tuned")
    with torch.no_grad():
        assert tuned(rows[:2]).logits.equal(model.eval()(rows[:2]).logits)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 asks for a name that transformers 5.23 renamed
def test_low_rank_adapters_find_its_layers(tmp_path: Path):
    """Attention projections are plain linear layers, the folded experts' too."""
    peft = pytest.importorskip("peft")
    _, theirs, _ = exported(tmp_path, replace(BAM, ffn=None), to="bam")
    tokens = some_tokens(BAM)
    with torch.no_grad():
        before = theirs(tokens).logits
    model = peft.get_peft_model(theirs, peft.LoraConfig(target_modules="all-linear", r=2))
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    with torch.no_grad():
        assert model.eval()(tokens).logits.allclose(before)  # an adapter starts at zero


def test_a_fresh_model_is_initialised(tmp_path: Path):
    """From the config alone, as people do who train one from nothing: finite, and no parameter forgotten."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for number, config in enumerate((ROUTED, replace(DENSE, norm_bias=True, qk_norm=True))):
        _, _, _ = exported(tmp_path / str(number), config, to="bam")
        read = AutoConfig.from_pretrained(tmp_path / str(number) / "export", trust_remote_code=True)
        assert (read.hidden_size, read.num_hidden_layers, read.max_position_embeddings) == (32, 2, 64)
        torch.manual_seed(0)
        fresh = AutoModelForCausalLM.from_config(read, trust_remote_code=True, dtype=torch.float32)
        assert torch.isfinite(fresh(some_tokens(config)).logits).all()
        weights = {name: p for name, p in fresh.named_parameters() if "norm" not in name and "bias" not in name}
        assert not [name for name, weight in weights.items() if not weight.any()]
