"""Small random models, exported and opened by transformers, for the tests of exports."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bam_core.checkpoint import load_model, write_model
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.hf.export import Exported, export_model
from bam_core.nn.attention import Cache
from bam_core.nn.lm import LM
from bam_core.nn.shapes import tensor_shapes
from tests.task_kit import TOKENIZER

DENSE = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, max_seq_len=64)
EXPERTS = ("general", "code", "law")
ATTENTION = AttentionExperts(3, 3)
FFN = FFNExperts(3, 2)
BAM = replace(DENSE, attention=ATTENTION, ffn=FFN, experts=EXPERTS)
TOP_1 = replace(BAM, ffn=FFNExperts(3))
BTX = replace(DENSE, ffn=FFNExperts(3, 2, gate="topk_softmax"), experts=EXPERTS)
ROUTED = replace(BAM, shared=SharedExperts())


def write_random(folder: Path, config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Path:
    """A model folder with random weights, in which no two tensors and no two experts are alike."""
    tensors = [(name, tensor.to(dtype)) for name, tensor in random_tensors(config, seed)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "tokenizer.json").write_text(TOKENIZER)
    tokenizer = folder.parent / "tokenizer.json" if config.vocab_size == 320 else None
    write_model(folder, config, tensors, tokenizer=tokenizer, card="---\nlicense: other\n---\n\n# A model\n")
    return folder


def random_tensors(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in tensor_shapes(config).items():
        tensor = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        yield name, 1 + tensor if "norm" in name and not name.endswith("bias") else tensor


def exported(folder: Path, config: ModelConfig, **options: Any) -> tuple[LM, Any, Exported]:
    """(our model in float64, transformers' model of its export, what was said)."""
    source = write_random(folder / "source", config)
    found = export_model(source, folder / "export", **options)
    return load_model(source), opened(folder / "export"), found


def opened(folder: Path, **options: Any) -> Any:
    """By AutoModelForCausalLM, with nothing missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    faults = {name: value for name, value in told.items() if value}
    assert not faults, faults
    if hasattr(model.config, "num_experts") or hasattr(model.config, "num_local_experts"):
        model.set_experts_implementation("eager")  # the grouped kernel has no float64
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What transformers copies of a folder's code goes into a folder of this process, the same for all who ask: a
    package that was imported from one folder does not look into another."""
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    if not _CODE:
        _CODE.append(str(tmp_path_factory.mktemp("modules")))
    dynamic.HF_MODULES_CACHE = _CODE[0]  # type: ignore[attr-defined]
    importlib.import_module("transformers.utils.logging").disable_progress_bar()


_CODE: list[str] = []


@torch.no_grad()
def our_logits(model: LM, tokens_BT: Tensor, pads: list[int] | None = None) -> Tensor:
    """logits_BTV; pads: how many positions each row starts with that stand for nothing."""
    cache = None
    if pads is not None:
        dtype = model.embed.weight.dtype
        cache = Cache(model.config, len(tokens_BT), tokens_BT.shape[1], dtype, pad_B=torch.tensor(pads))
    output = model(tokens_BT, cache)
    return model.logits(output.hidden_BTD, output.mix_BTE)


def some_tokens(config: ModelConfig, rows: int = 2, time: int = 13, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab_size, (rows, time), generator=torch.Generator().manual_seed(seed))
