"""A recipe whose seed and experts are checkpoints that transformers and peft wrote: nothing of them is trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from bam_core.checkpoint import load_model, open_tensors
from bam_core.data.tokenize import train_bpe
from tests.e2e.kit import GENERAL, SPECIALISTS, Place, lines_of, merged, recipe_dict, write_recipe, write_texts

pytestmark = pytest.mark.filterwarnings("ignore")
V = 300
LLAMA = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    vocab_size=V,
    tie_word_embeddings=False,
)
SAME_LOGITS = 2e-5
"""Of logits up to 5, in float32: sums in another order (docs/deviations.md)."""


def write_checkpoints(folder: Path) -> Any:
    """A base with a tokenizer of its own; the same moved a little, as fine-tuning does, for `code`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    tokenizer = train_bpe(lines_of(GENERAL), V)
    for name in ("base", "copy", "code"):
        if name == "code":
            for parameter in model.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        (folder / name / "tokenizer.json").write_text(tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder / "base")


def write_adapter(folder: Path, base: Any) -> None:
    torch.manual_seed(1)
    tuned = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(folder)


def importing(texts: Path, base: Path, **experts: Path) -> dict[str, Any]:
    recipe = recipe_dict(texts)
    for name in ("tokenizer", "model"):
        del recipe[name]
    recipe["phases"] = {"seed": {"import": str(base)}, "mixture": {"tokens": 0}}
    own = {name: {"expert": {"import": str(folder)}} for name, folder in experts.items()}
    return merged(recipe, {"domains": own, "evaluate": {"tokens": 400, "routing": False}})


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Place]:
    def made(recipe: dict[str, Any]) -> Place:
        write_texts(tmp_path / "texts")
        return Place(write_recipe(tmp_path / "imported.yaml", recipe), tmp_path / "store")

    return made


def test_checkpoints_and_an_adapter_are_mixed_without_training(tmp_path: Path, place: Callable[..., Place]) -> None:
    write_adapter(tmp_path / "law", write_checkpoints(tmp_path))
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    recipe = importing(tmp_path / "texts", tmp_path / "base", code=tmp_path / "code", law=tmp_path / "law")
    del recipe["variants"]["btx"]
    here = place(recipe)
    planned = here.plan()
    assert planned.status == 0, planned.err
    assert not {"expert.math", "train.bam", "train.btx", "dense"} & planned.stages().keys()
    answer = here.run()
    assert answer.status == 0, answer.err
    record, perplexity = here.record("expert.law"), json.loads(here.perplexity())["models"]
    assert record["provenance"]["imported_from"] == str(tmp_path / "law")
    assert here.record("seed")["provenance"]["licence"] == "apache-2.0"
    assert record["payload"]["config"]["import"]["adapter"] == {"rank": 2, "modules": 14}
    assert "LoRA of rank 2" in (here.artifact("expert.law") / "MODEL_CARD.md").read_text()
    assert str(tmp_path) not in (here.artifact("seed") / "MODEL_CARD.md").read_text()
    assert perplexity.keys() == {"seed", "expert.code", "expert.law", "mix.bam", "ensemble"}
    blamed = here.bam("blame", "mix.bam", "blocks.1.ffn.w_up[law]")
    assert blamed.status == 0, blamed.err
    assert "model.safetensors:model.layers.1.mlp.up_proj.weight, adapter merged; llama" in blamed.out
    assert "expert.law" in here.bam("lineage", "mix.bam").out
    assert here.plan().actions().keys() == planned.actions().keys()
    assert set(here.plan().actions().values()) == {"reuse"}
    checked = here.bam("check", "seed", "expert.code", "expert.law", "--json")
    assert checked.status == 0, checked.err
    assert checked.json["distances"].keys() == {"expert.code", "expert.law"}
    mixed = here.bam("check", "seed", "mix.bam")
    assert (mixed.status, "is a mixture of general, code, law" in mixed.out) == (1, True)
    # Moving a checkpoint changes nothing; one other byte does.
    moved = (tmp_path / "code").rename(tmp_path / "elsewhere")
    recipe["domains"]["code"]["expert"] = {"import": str(moved)}
    here.set_recipe(recipe)
    assert set(here.plan().actions().values()) == {"reuse"}
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"_name_or_path": "other"}))
    assert here.plan().actions()["expert.code"] == "run"
    assert here.plan().actions()["expert.law"] == "reuse"


def test_three_equal_copies_make_the_dense_model(tmp_path: Path, place: Callable[..., Place]) -> None:
    """With gates that sum to 1, whatever the routers do."""
    base = write_checkpoints(tmp_path)
    recipe = importing(tmp_path / "texts", tmp_path / "base", code=tmp_path / "copy", law=tmp_path / "copy")
    recipe["variants"] = {
        "bam": {"attention": {"kv": "expert"}, "ffn": {"top_k": 2, "gate": "topk_softmax"}, "router_init": "random"},
        "btx": {"attention": "merged", "ffn": {"top_k": 2, "gate": "topk_softmax"}, "router_init": "random"},
    }
    here = place(recipe)
    answer = here.run("--until", "mix.bam", "--until", "mix.btx")
    assert answer.status == 0, answer.err
    tokens_BT = torch.arange(24)[None] * 7 % V
    with torch.inference_mode():
        wanted = base(tokens_BT).logits
        for name in ("mix.bam", "mix.btx"):
            mixture = load_model(here.artifact(name))
            output = mixture(tokens_BT)
            found = mixture.logits(output.hidden_BTD, output.mix_BTE)
            torch.testing.assert_close(found, wanted, rtol=0, atol=SAME_LOGITS)
    seed = open_tensors(here.artifact("seed"))
    assert torch.equal(seed.get("embed.weight"), base.get_input_embeddings().weight)


def test_tokens_that_only_some_know(tmp_path: Path, place: Callable[..., Place]) -> None:
    """`vocabulary: union`: a token that the expert for code was given, and the base was not."""
    write_checkpoints(tmp_path)
    code = AutoModelForCausalLM.from_pretrained(tmp_path / "code")
    code.resize_token_embeddings(V + 1)
    code.save_pretrained(tmp_path / "code")
    definition = json.loads((tmp_path / "code" / "tokenizer.json").read_text())
    definition["added_tokens"].append(definition["added_tokens"][0] | {"id": V, "content": "<|im_start|>"})
    (tmp_path / "code" / "tokenizer.json").write_text(json.dumps(definition))
    recipe = importing(tmp_path / "texts", tmp_path / "base", code=tmp_path / "code", law=tmp_path / "copy")
    here = place(recipe)
    refused = here.plan()
    assert refused.status == 2
    assert "domains.code.expert.import" in refused.err
    assert "it has 1 tokens more than the seed (say vocabulary: union" in refused.err
    here.set_recipe(recipe | {"vocabulary": "union"})
    answer = here.run("--until", "mix.btx")
    assert answer.status == 0, answer.err
    row = code.get_output_embeddings().weight[V]
    for stage in ("seed", "expert.code", "expert.law"):
        assert torch.equal(open_tensors(here.artifact(stage)).get("head.weight")[V], row)
    assert open_tensors(here.artifact("mix.btx")).shape("embed.weight") == (V + 1, 16)
    made = json.loads((here.artifact("seed") / "import.json").read_text())
    assert made["vocabulary"] == {"rule": "union", "size": V + 1, "added": 1}
    tokenizer = json.loads((here.artifact("mix.btx") / "tokenizer.json").read_text())
    assert tokenizer["added_tokens"][-1]["content"] == "<|im_start|>"


def test_all_that_is_wrong_with_folders_is_said_at_once(tmp_path: Path, place: Callable[..., Place]) -> None:
    write_checkpoints(tmp_path)
    (tmp_path / "code" / "model.safetensors").rename(tmp_path / "code" / "pytorch_model.bin")
    recipe = importing(tmp_path / "texts", tmp_path / "base", code=tmp_path / "code", law=tmp_path / "nowhere")
    recipe["evaluate"]["tokens"] = 1
    answer = place(recipe).plan()
    assert answer.status == 2
    assert "3 problems" in answer.err
    assert f"domains.code.expert.import: {str(tmp_path / 'code')!r}: pytorch_model.bin: 'a pickle'" in answer.err
    assert f"domains.law.expert.import: {str(tmp_path / 'nowhere')!r}: is no folder here" in answer.err
    assert "evaluate.tokens: 1: must be at least one row, 32 tokens" in answer.err


def test_an_imported_expert_and_a_seed_are_trained_on(tmp_path: Path, place: Callable[..., Place]) -> None:
    write_checkpoints(tmp_path)
    recipe = importing(tmp_path / "texts", tmp_path / "base", code=tmp_path / "code")
    phase = {"batch_tokens": 64, "lr": 1e-3}
    recipe["phases"]["seed"] |= phase | {"tokens": 128}
    recipe["phases"]["expert"] = phase | {"tokens": 64}
    recipe["domains"]["code"]["expert"] |= {"tokens": 128}
    here = place(recipe)
    answer = here.run("--until", "expert.*")
    assert answer.status == 0, answer.err
    assert set(answer.stages()) >= {f"import.{GENERAL}", "import.code", "seed", *(f"expert.{d}" for d in SPECIALISTS)}
    law, code, seed = here.record("expert.law"), here.record("expert.code"), here.record("seed")
    assert set(code["inputs"]) == {"import", "data.code"}
    assert code["inputs"]["import"]["stage"] == "import.code"
    assert seed["inputs"]["import"]["stage"] == f"import.{GENERAL}"
    assert "import" not in law["inputs"]
    assert (seed["metrics"]["train_tokens"], code["metrics"]["lineage_tokens"]) == (128, 128)
