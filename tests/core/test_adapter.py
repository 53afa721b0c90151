"""LoRA adapters: exact algebra on a few numbers, and what is refused. peft's own merge: tests/oracles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bam_core.errors import InvalidInput
from bam_core.upcycle.adapter import read_adapter
from bam_core.upcycle.adapter_merge import merged_tensors

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q"], "base_model_name_or_path": "org/base"}
A, B = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
NAMES = {"base_model.model.layer.q.lora_A.weight": A, "base_model.model.layer.q.lora_B.weight": B}
W = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)


class Base:
    """The tensors of a base, under its own names."""

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = {name.replace("__", "."): tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


BASE = Base(layer__q__weight=W, layer__norm__weight=torch.ones(3, dtype=torch.float64))


def write(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5), ({"lora_alpha": 1}, 0.5)]
)
def test_the_sum_is_exact(tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    merged = merged_tensors(read_adapter(write(tmp_path / "a", NAMES, **changes)), BASE)
    wanted = W + scale * (B.double() @ A.double())
    torch.testing.assert_close(merged.get("layer.q.weight"), wanted, rtol=1e-15, atol=0)
    assert merged.get("layer.norm.weight") is BASE.get("layer.norm.weight")
    assert merged.names() == BASE.names()


def test_matrices_of_the_other_orientation(tmp_path: Path) -> None:
    turned = Base(layer__q__weight=W.T.contiguous())
    adapter = read_adapter(write(tmp_path / "a", NAMES, fan_in_fan_out=True))
    found = merged_tensors(adapter, turned).get("layer.q.weight")
    torch.testing.assert_close(found, (W + 3 * (B.double() @ A.double())).T, rtol=1e-15, atol=0)


def test_a_small_difference_is_not_rounded_to_bf16(tmp_path: Path) -> None:
    base = Base(layer__q__weight=torch.full((4, 3), 64.0, dtype=torch.bfloat16))
    tiny = {name: tensor * 1e-2 for name, tensor in NAMES.items()}
    found = merged_tensors(read_adapter(write(tmp_path / "a", tiny)), base).get("layer.q.weight")
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": 0}, "r"),
        ({"lora_alpha": "6"}, "lora_alpha"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_a_kind_that_is_more_than_a_sum_is_refused(tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_adapter(write(tmp_path / "a", NAMES, **changes))
    assert [problem.path for problem in caught.value.problems] == [path]


def test_settings_that_change_nothing_are_none(tmp_path: Path) -> None:
    neutral = {"init_lora_weights": True, "layer_replication": None, "trainable_token_indices": None, "use_dora": False}
    assert read_adapter(write(tmp_path / "a", NAMES, **neutral, lora_dropout=0.1, task_type="CAUSAL_LM")).rank == 2


@pytest.mark.parametrize(
    ("tensors", "path"),
    [
        ({"base_model.model.layer.q.lora_A.weight": A}, "layer.q"),
        ({**NAMES, "base_model.model.layer.q.lora_C.weight": A}, "base_model.model.layer.q.lora_C.weight"),
        ({**NAMES, "base_model.prompt": A}, "base_model.prompt"),
    ],
)
def test_every_tensor_is_used_or_refused(tmp_path: Path, tensors: dict[str, Tensor], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_adapter(write(tmp_path / "a", tensors))
    assert [problem.path for problem in caught.value.problems] == [path]


def test_every_misfit_with_the_base_is_named(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.layer.q.lora_A.weight": A[:, :2],
        "base_model.model.layer.q.lora_B.weight": B,
        "base_model.model.gone.lora_A.weight": A,
        "base_model.model.gone.lora_B.weight": B,
        "base_model.model.layer.norm.weight": torch.ones(4),
        "base_model.model.head.weight": torch.ones(4, 3),
    }
    base = Base(layer__q__weight=W, layer__norm__weight=torch.ones(3), other__q__weight=W)
    with pytest.raises(InvalidInput) as caught:
        merged_tensors(read_adapter(write(tmp_path / "a", tensors)), base)
    assert [problem.path for problem in caught.value.problems] == [
        "gone",
        "layer.q.weight",
        "head.weight",
        "layer.norm.weight",
        "other.q",
    ]


def test_a_pickle_and_a_missing_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", NAMES)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidInput, match="is a pickle"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(InvalidInput, match="is missing"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(InvalidInput, match="cannot be read as safetensors"):
        read_adapter(folder)
