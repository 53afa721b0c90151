"""Adapters merged while they are read, against peft's own `merge_and_unload`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from bam_core.errors import InvalidInput
from bam_core.hf import read_checkpoint
from bam_core.upcycle.adapter import is_adapter, read_adapter
from bam_core.upcycle.adapter_merge import adapted
from bam_core.upcycle.opening import open_checkpoint

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 101,
}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
NEOX = GPTNeoXConfig(**SIZES, max_position_embeddings=64)
CLOSE = 2e-6
"""Of weights up to 1: the sum is the same, in another order of products."""


def saved(folder: Path, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def adapter_of(model: Any, folder: Path, **options: Any) -> dict[str, Tensor]:
    """An adapter with random weights, saved; what peft merges it to."""
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(**options))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=1.0 if "magnitude" in name else 0.0, std=0.3)
    tuned.save_pretrained(folder)
    return dict(tuned.merge_and_unload().state_dict())


QKV = ["q_proj", "k_proj", "v_proj", "o_proj"]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 5, "target_modules": QKV},
    "rslora": {"r": 3, "lora_alpha": 5, "target_modules": QKV, "use_rslora": True},
    "all": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
    "patterns": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 7},
    },
    "dora": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "saved": {"r": 3, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    "embedding": {"r": 3, "target_modules": ["embed_tokens", "v_proj"]},
    "some layers": {"r": 3, "target_modules": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_it_is_what_peft_merges(tmp_path: Path, way: str) -> None:
    model = saved(tmp_path / "base", LLAMA)
    base = read_checkpoint(tmp_path / "base")
    wanted = adapter_of(model, tmp_path / "adapter", **WAYS[way])
    assert is_adapter(tmp_path / "adapter")
    merged = adapted(base, read_adapter(tmp_path / "adapter"))
    compared = 0
    for link in base.links:
        ours = link.to_ours([wanted[theirs] for theirs in link.theirs])
        for name, tensor in zip(link.ours, ours, strict=True):
            torch.testing.assert_close(merged.tensors.get(name), tensor, rtol=0, atol=CLOSE)
            compared += not torch.equal(base.tensors.get(name), tensor)
    assert compared, "the adapter changed nothing"


@pytest.mark.filterwarnings("ignore")
def test_packed_matrices_and_biases(tmp_path: Path) -> None:
    """Of GPT-NeoX: queries, keys and values are one module there and three tensors here."""
    model = saved(tmp_path / "base", NEOX)
    wanted = adapter_of(model, tmp_path / "adapter", r=3, target_modules=["query_key_value"], lora_bias=True)
    base = read_checkpoint(tmp_path / "base")
    merged = adapted(base, read_adapter(tmp_path / "adapter"))
    wanted["embed_out.weight"] = wanted["lm_head.weight"]  # its name in the file
    for link in base.links:
        for name, tensor in zip(link.ours, link.to_ours([wanted[theirs] for theirs in link.theirs]), strict=True):
            torch.testing.assert_close(merged.tensors.get(name), tensor, rtol=0, atol=CLOSE)


@pytest.mark.filterwarnings("ignore")
def test_what_fits_no_module_is_refused_by_name(tmp_path: Path) -> None:
    adapter_of(saved(tmp_path / "llama", LLAMA), tmp_path / "adapter", r=3, target_modules=["q_proj"])
    saved(tmp_path / "neox", NEOX)
    with pytest.raises(InvalidInput) as caught:
        open_checkpoint(tmp_path / "adapter", open_checkpoint(tmp_path / "neox"))
    found = {problem.path for problem in caught.value.problems}
    assert found == {f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)}
