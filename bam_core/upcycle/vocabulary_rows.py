"""A model's tensors with the rows of a common vocabulary (`vocabulary.py`): of its embedding, head and head bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource
from bam_core.nn.shapes import Shape
from bam_core.upcycle.vocabulary import Rows

PER_TOKEN = ("embed.weight", "head.weight", "head.bias")
"""The tensors of a dense model that have a row for each token."""


class CommonRows:
    """A `TensorSource`. Means are made in float32 and stay so."""

    def __init__(self, model: str, rows: Rows, tensors: Mapping[str, TensorSource]) -> None:
        """tensors: of this model and of all that `rows` names, each with the rows of its own vocabulary."""
        self._own, self._rows, self._tensors = tensors[model], rows, tensors

    def names(self) -> list[str]:
        return self._own.names()

    def shape(self, name: str) -> Shape:
        shape = self._own.shape(name)
        return (len(self._rows.own), *shape[1:]) if name in PER_TOKEN else shape

    def get(self, name: str) -> Tensor:
        tensor = self._own.get(name)
        if name not in PER_TOKEN or self._rows.as_they_are:
            return tensor
        made = tensor[torch.tensor(self._rows.own).clamp_min(0)]  # [V, ...]; rows of others are set below
        if not self._rows.others:
            return made
        targets = torch.tensor(list(self._rows.others))
        return made.float().index_copy(0, targets, self._means(name, made.shape[1:]))

    def _means(self, name: str, rest: torch.Size) -> Tensor:
        """[rows of others, ...], in their order; one model's tensor is read at a time."""
        sources = list(self._rows.others.values())
        summed = torch.zeros((len(sources), *rest), dtype=torch.float64)
        for model in dict.fromkeys(model for places in sources for model, _ in places):
            at = [(i, row) for i, places in enumerate(sources) for other, row in places if other == model]
            to, rows = torch.tensor([i for i, _ in at]), torch.tensor([row for _, row in at])
            summed.index_add_(0, to, self._tensors[model].get(name)[rows].double())
        counts = torch.tensor([len(places) for places in sources], dtype=torch.float64)
        return (summed / counts.view(-1, *[1] * len(rest))).float()
