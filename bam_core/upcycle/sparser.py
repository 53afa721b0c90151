"""A trained mixture of attention made cheaper, without any training: fewer experts per token, fewer keys and values.

What an expert had of its own and now is one for all is the mean over the experts, as where dense models are merged;
every other tensor is the same one. So the start of a distillation, and a look at what it costs to do without one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource, open_tensors, read_config
from bam_core.config import ModelConfig, Sparser
from bam_core.nn.lm import LM
from bam_core.nn.shapes import Shape, tensor_shapes


class Merged:
    """The tensors of a model as its cheaper form has them, one at a time: a `TensorSource`."""

    def __init__(self, target: ModelConfig, source: TensorSource) -> None:
        self._shapes, self._source = tensor_shapes(target), source

    def names(self) -> list[str]:
        return sorted(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def get(self, name: str) -> Tensor:
        """The mean over experts is the exact one, rounded once."""
        wanted, found = self._shapes[name], self._source.shape(name)
        tensor = self._source.get(name)
        if wanted == found:
            return tensor
        if wanted == found[1:]:
            return mean_of_experts(tensor)
        assert wanted[1:] == found, f"{name}: {list(found)} cannot become {list(wanted)}"
        return tensor.expand(wanted).contiguous()


def mean_of_experts(stacked: Tensor) -> Tensor:
    """Over the leading dimension; one expert after another, so that no wider copy of the stack is made."""
    total = stacked[0].to(torch.float64)
    for part in stacked[1:]:
        total += part
    return total.div_(len(stacked)).to(stacked.dtype)


def open_sparser(folder: Path, sparser: Sparser, *, device: str = "cpu") -> tuple[LM, TensorSource]:
    """The cheaper form of a folder's model, on `device` without its weights, and what reads one of them by its name.

    Raises InvalidInput for what cannot be made of it; else as `open_tensors`.
    """
    config = sparser.config(read_config(folder))
    with torch.device(device):
        model = LM(config)
    return model, Merged(config, open_tensors(folder))


def load_sparser(folder: Path, sparser: Sparser, dtype: torch.dtype | None = None) -> LM:
    """The same with its weights, in evaluation mode. dtype: as for `bam_core.checkpoint.load_model`."""
    model, source = open_sparser(folder, sparser)
    model.cast(dtype or torch.promote_types(source.get("embed.weight").dtype, torch.float32))
    for name, parameter in model.state_dict().items():
        parameter.copy_(source.get(name))
    return model.eval()
