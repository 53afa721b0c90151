"""Small random models for the tests of checkpoints and upcycling: as tensors in memory and as folders."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import write_model
from bam_core.config import ModelConfig
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.upcycle.apply import Fitted, upcycle
from bam_core.upcycle.variants import Variant, mixture_config, rules_for, variant_sources

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
NAMES = ("general", "code", "law", "math")

BIASED = {"qkv_bias": True, "o_bias": True, "norm_bias": True, "ffn_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "neox": BIASED | {"norm": "layer", "parallel_norms": 2, "gated": False, "activation": "gelu"},
    "phi": BIASED | {"norm": "layer", "head_bias": True, "tie_embeddings": False, "activation": "gelu_tanh"},
    "gemma": {
        "residual": "sequential",
        "norms": "around",
        "d_head": 6,
        "embed_scale": 3.0,
        "logit_softcap": 5.0,
        "attention_softcap": 3.0,
        "attention_scale": 0.3,
        "window": 4,
        "global_layers": (1,),
    },
    "olmo": {"residual": "sequential", "norms": "after", "qk_norm": True, "qk_norm_over": "all"},
    "cohere": {"norm": "layer", "window": 3, "global_layers": (0,), "unrotated_layers": (0,), "logit_scale": 0.25},
}
"""Blocks as public families have them, on any sizes."""


class InMemory:
    """A TensorSource over a dict; knows which of the tensors it gave out are still alive."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.given: list[weakref.ref[Tensor]] = []

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> Shape:
        return tuple(self.tensors[name].shape)

    def get(self, name: str) -> Tensor:
        tensor = self.tensors[name].clone()
        self.given.append(weakref.ref(tensor))
        return tensor

    def live(self) -> int:
        return sum(ref() is not None for ref in self.given)


def random_tensors(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in tensor_shapes(config).items():
        yield name, torch.randn(shape, generator=generator)


def dense_models(config: ModelConfig = DENSE, dtype: torch.dtype = torch.float32) -> dict[str, InMemory]:
    return {
        name: InMemory({tensor_name: tensor.to(dtype) for tensor_name, tensor in random_tensors(config, seed)})
        for seed, name in enumerate(NAMES)
    }


def mix(
    variant: Variant,
    sources: Mapping[str, InMemory],
    config: ModelConfig = DENSE,
    seed: int = 0,
    fitted: Fitted | None = None,
    provenance: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The mixture's tensors, from those of the models that the variant reads."""
    target = mixture_config(config, list(sources), variant)
    read = {name: sources[name] for name in variant_sources(variant, list(sources))}
    return dict(upcycle(target, rules_for(variant, target), read, seed, provenance, fitted))


def write(folder: Path, config: ModelConfig = DENSE, **options: Any) -> Path:
    """Write random tensors as a model folder; `options` of `write_model` replace the defaults."""
    options = {"tensors": random_tensors(config), "tokenizer": None, "card": "# a model\n"} | options
    write_model(folder, config, **options)
    return folder
