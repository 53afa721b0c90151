"""A LoRA adapter merged into its base while that is read: W' = W + scale * B A (Hu et al. 2021).

Invariant: every tensor of the adapter changes a tensor of the base, or all of it is refused by name; what it has no
tensor for is the base's. Names are those of the base's own files, before any conversion. The sum is made in float32, or
the base's dtype where that is wider, and stays so: rounding it to bf16 would lose most of a small difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource
from bam_core.errors import InvalidInput, Problem
from bam_core.hf.files import Weights
from bam_core.hf.links import Link
from bam_core.hf.reading import Imported
from bam_core.nn.shapes import Shape
from bam_core.upcycle.adapter import MERGE_FIRST, Adapter, Delta

OTHER_BASE = "it was trained on another base, or on one whose modules have other names"


def adapted(base: Imported, adapter: Adapter) -> Imported:
    """The base with the adapter merged in, each tensor when it is asked for. Raises as `merged_tensors`."""
    if not base.links:
        expected = "is a folder of bam, whose modules have other names than the adapter's"
        remedy = "give the folder or id that the adapter was trained on, as its tools wrote it"
        raise InvalidInput(f"adapter {adapter.folder.name}", [Problem("base", base.family, expected, remedy)])
    files = {name: base.weights.files[name] for link in base.links for name in link.theirs}
    merged = merged_tensors(adapter, _Held(files))
    return replace(base, tensors=_InOurNames(base, merged), weights=Weights(files, []))


class _Held:
    """The base's tensors under its own names."""

    def __init__(self, files: Mapping[str, tuple[str, Any]]) -> None:
        self._files = files

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> Shape:
        return tuple(self._files[name][1].get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name][1].get_tensor(name)
        return tensor


class _InOurNames:
    """`theirs`, which has tensors of a base, as the base's links make them ours."""

    def __init__(self, base: Imported, theirs: TensorSource) -> None:
        self._base, self._theirs = base, theirs
        self._links: dict[str, tuple[Link, int]] = {
            name: (link, place) for link in base.links for place, name in enumerate(link.ours)
        }

    def names(self) -> list[str]:
        return self._base.tensors.names()

    def shape(self, name: str) -> Shape:
        return self._base.tensors.shape(name)

    def get(self, name: str) -> Tensor:
        link, place = self._links[name]
        return link.to_ours([self._theirs.get(theirs) for theirs in link.theirs])[place]


def merged_tensors(adapter: Adapter, base: TensorSource) -> TensorSource:
    """The base's tensors with the adapter merged in, each when it is asked for.

    Raises InvalidInput naming every delta that no tensor of the base takes, and every target without one.
    """
    problems = list(_fit_problems(adapter, base))
    if problems:
        raise InvalidInput(f"adapter {adapter.folder.name}", problems)
    return _Merged(adapter, base)


def _fit_problems(adapter: Adapter, base: TensorSource) -> Iterator[Problem]:
    names = set(base.names())
    for module, delta in adapter.deltas.items():
        weight = f"{module}.weight"
        if weight not in names:
            yield Problem(module, None, "is no module of the base; its change would be lost", OTHER_BASE)
            continue
        wanted, found = base.shape(weight), _delta_shape(adapter, delta)
        if found != wanted:
            yield Problem(weight, list(found), f"must be {list(wanted)}, as in the base", OTHER_BASE)
        if delta.bias is not None and f"{module}.bias" not in names:
            yield Problem(f"{module}.bias", None, "the base has no such bias to add to", MERGE_FIRST)
    for name, own in adapter.full.items():
        if name not in names:
            yield Problem(name, None, "is no tensor of the base; it would be lost", OTHER_BASE)
        elif adapter.tensors.shape(own) != base.shape(name):
            found = adapter.tensors.shape(own)
            yield Problem(name, list(found), f"must be {list(base.shape(name))}, as in the base", MERGE_FIRST)
    for target in adapter.targets:
        for name in sorted(names):
            module = name.removesuffix(".weight")
            is_meant = module != name and (module == target or module.endswith(f".{target}"))
            is_used = module in adapter.deltas or name in adapter.full
            if is_meant and not is_used and len(base.shape(name)) == 2:
                expected = "has no delta, though target_modules names it"
                yield Problem(module, None, expected, "save the adapter again, or say exclude_modules")


def _delta_shape(adapter: Adapter, delta: Delta) -> Shape:
    """Of B A, as the base has it."""
    (_, n_in), (n_out, _) = adapter.tensors.shape(delta.a), adapter.tensors.shape(delta.b)
    return (n_in, n_out) if delta.is_embedding or adapter.transposed else (n_out, n_in)


class _Merged:
    """A `TensorSource`: no more than one tensor of the base is held."""

    def __init__(self, adapter: Adapter, base: TensorSource) -> None:
        self._adapter, self._base = adapter, base
        self._biases = {f"{module}.bias": delta for module, delta in adapter.deltas.items() if delta.bias is not None}

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> Shape:
        return self._base.shape(name)

    def get(self, name: str) -> Tensor:
        full = self._adapter.full.get(name)
        tensor = self._base.get(name) if full is None else self._adapter.tensors.get(full)
        if (delta := self._biases.get(name)) is not None and delta.bias is not None:
            return _wide(tensor) + delta.scale * self._read(delta.bias, tensor)
        delta = self._adapter.deltas.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return tensor if delta is None else self._changed(tensor, delta)

    def _changed(self, tensor: Tensor, delta: Delta) -> Tensor:
        product = self._read(delta.b, tensor) @ self._read(delta.a, tensor) * delta.scale
        is_turned = delta.is_embedding or self._adapter.transposed
        changed = _wide(tensor) + (product.T if is_turned else product)
        if delta.magnitude is None:
            return changed
        # DoRA: the norm of each output's row is the magnitude that was trained.
        rows = changed.T if is_turned else changed
        scaled: Tensor = rows * (self._read(delta.magnitude, tensor).reshape(-1) / rows.norm(dim=1))[:, None]
        return (scaled.T if is_turned else scaled).contiguous()

    def _read(self, name: str, like: Tensor) -> Tensor:
        return self._adapter.tensors.get(name).to(_wide_dtype(like))


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))
