"""Get the dense model of one expert back out of a mixture, tensor by tensor.

Invariant: of an untrained mixture the result equals the dense parent bit by bit. A slice is given out only if it has
the digest that was recorded when it went in; what the mixture no longer holds exactly (what it merged, scaled or drew
anew) is the parent's, with the reason. Of a trained mixture there is nothing to compare with: its slices are what was
trained, and its shared tensors go with them unless the parent's are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource, tensor_sha256
from bam_core.config import ModelConfig
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem, nearest
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.upcycle.edit import Experts

Shared = Literal["parent", "mixture"]
NARROW = (torch.bfloat16, torch.float16)
"""What a dense model may have been stored in, where that model cannot be asked."""


@dataclass(frozen=True)
class Recorded:
    """What was written down of one expert's tensors when they went into the mixture.

    digests: dense tensor -> sha256 of the parent's. factors: tensor -> what it was multiplied by.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


def expert_slots(mixture: ModelConfig, label: str) -> dict[str, int]:
    """Branch (`attn`, `ffn`; `shared` for all else, where that is routed) -> the place of the expert among its dense
    models. `law#2` is the second `law`; what is shared is there once.

    A branch that has fewer copies gives its first; one without this expert is left out. Raises InvalidInput for a
    label that no branch has.
    """
    name, _, copy = label.partition("#")
    groups = (*mixture.expert_labels("attention"), *mixture.expert_labels("ffn"))
    groups += mixture.experts if mixture.shared is not None else ()
    known = {group.partition("/")[0] for group in groups}
    if label not in known:
        remedy = nearest(label, known) if known else "give a mixture, such as mix.bam"
        raise InvalidInput("expert to extract", [Problem("name", label, "is no expert of this mixture", remedy)])
    found: dict[str, int] = {}
    for branch, experts in (("attn", mixture.attention), ("ffn", mixture.ffn)):
        models = (experts.slots or mixture.experts) if experts is not None else ()
        places = [index for index, model in enumerate(models) if model == name]
        number = int(copy or 1)
        found |= {branch: places[number - 1 if number <= len(places) else 0]} if places else {}
    return found | ({"shared": mixture.experts.index(name)} if mixture.shared is not None else {})


def extracted(
    mixture: ModelConfig,
    source: TensorSource,
    label: str,
    *,
    shared: Shared,
    parent: TensorSource | None = None,
    recorded: Recorded | None = None,
    taken: dict[str, str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Make the dense model's tensors in reading order.

    shared: whose are the tensors that the mixture does not keep per expert. parent: needed for `parent`, and where
    the mixture has lost a tensor. recorded: of an untrained mixture; None for one that was trained. taken: filled
    with dense tensor -> where it is from, `mixture` or `parent`, and why where that was not asked for.

    Raises ArtifactDamaged if a slice or the parent's tensor is not what was recorded, InvalidInput if a tensor is
    nowhere to be had.
    """
    slots = expert_slots(mixture, label)
    cutter = _Cutter(mixture, source, slots, parent, recorded)
    for name, shape in tensor_shapes(mixture.dense()).items():
        tensor, origin = cutter.tensor(name, shape, shared)
        if taken is not None:
            taken[name] = origin
        yield name, tensor
        del tensor  # or it would stay alive while the next one is made


def _branch(name: str) -> str:
    """`attn` or `ffn`, and `shared` for what is in neither."""
    found = re.match(r"blocks\.\d+\.(attn|ffn)\.", name)
    return found[1] if found else "shared"


@dataclass(frozen=True)
class _Cutter:
    mixture: ModelConfig
    source: TensorSource
    slots: Mapping[str, int]
    parent: TensorSource | None
    recorded: Recorded | None

    def tensor(self, name: str, shape: Shape, shared: Shared) -> tuple[Tensor, str]:
        """The dense tensor and where it is from."""
        if self.source.shape(name) == shape:
            return (self.source.get(name), "mixture") if shared == "mixture" else (self._of_parent(name), "parent")
        branch = _branch(name)
        if branch not in self.slots:
            return self._of_parent(name), f"parent: the mixture has no such expert in {branch}"
        cut = self._slice(name, shape, self.slots[branch])
        return (cut, "mixture") if self.recorded is None else self._checked(name, cut, self.recorded)

    def _checked(self, name: str, cut: Tensor, recorded: Recorded) -> tuple[Tensor, str]:
        """The slice if it is bit by bit what went in, else the parent's tensor."""
        factor, wanted = recorded.factors.get(name), recorded.digests.get(name)
        if wanted is None:
            return self._of_parent(name), "parent: the mixture's was drawn anew"
        dtypes = (cut.dtype, *NARROW) if self.parent is None else (self.parent.get(name).dtype,)
        for dtype in dtypes:
            exact = (cut if factor is None else cut.double() / factor).to(dtype)
            if tensor_sha256(exact) == wanted:
                return exact, "mixture"
        if factor is not None:
            return self._of_parent(name), f"parent: scaled by {factor:g} in the mixture, which rounding does not undo"
        if self.parent is None or torch.finfo(dtypes[0]).bits > torch.finfo(cut.dtype).bits:
            return self._of_parent(name), f"parent: rounded from {dtypes[0]} in the mixture"
        raise ArtifactDamaged(f"{name}: the mixture's slice is not the tensor that was mixed (sha256 {wanted[:12]})")

    def _slice(self, name: str, shape: Shape, slot: int) -> Tensor:
        """An expert's part of a stacked tensor, its column groups joined again."""
        experts: Experts | None = self.mixture.ffn if _branch(name) == "ffn" else None
        width = getattr(experts, "split", 1)
        return self.source.get(name)[slot * width : (slot + 1) * width].reshape(shape).clone()

    def _of_parent(self, name: str) -> Tensor:
        if self.parent is None:
            expected = "cannot be taken from the mixture"
            remedy = "--shared parent takes it from the dense parent, if that is still in the store"
            raise InvalidInput("expert to extract", [Problem(name, None, expected, remedy)])
        tensor = self.parent.get(name)
        wanted = self.recorded.digests.get(name) if self.recorded is not None else None
        if wanted is not None and tensor_sha256(tensor) != wanted:
            raise ArtifactDamaged(
                f"{name}: the dense parent was made again and has other bytes than those that were mixed "
                f"(sha256 {wanted[:12]}); --shared mixture does without it"
            )
        return tensor
