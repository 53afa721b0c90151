"""Small folders as `save_pretrained` leaves them, without transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bam_core.hf import FAMILIES

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
UP = "model.layers.1.mlp.up_proj.weight"


def tensors_of(config: dict[str, Any]) -> dict[str, Tensor]:
    family = FAMILIES[config["model_type"]]
    generator = torch.Generator().manual_seed(0)
    shapes = {name: shape for link in family.links(family.config(config)) for name, shape in link.theirs.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = list(tensors)
    parts = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write(folder: Path, model_type: str = "llama", shards: int = 1, **changes: Any) -> Path:
    """A folder as save_pretrained leaves it. changes: of config.json."""
    folder.mkdir(parents=True)
    config = SIZES | {"model_type": model_type, "architectures": [FAMILIES[model_type].architecture]}
    save(folder, tensors_of(config), shards)
    (folder / "config.json").write_text(json.dumps(config | changes))
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 10, "content": "<s>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder
