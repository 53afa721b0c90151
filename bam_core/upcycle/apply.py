"""Follow the rules: dense models in, the mixture's tensors out, one at a time.

Invariant: nothing is made unless `coverage` holds - each target tensor is claimed by exactly one rule, each tensor of
each model is used or set aside by a rule that says so, and all shapes fit. Converters that skip what they do not
recognise lose experts in silence; this one refuses and names everything.

Memory: one target tensor and one source tensor (for a merge, what `merge` says).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from bam_core.checkpoint import TensorSource, tensor_sha256
from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem
from bam_core.nn.lm import init_tensor
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.seeds import child_seed
from bam_core.upcycle.compat import value_problem
from bam_core.upcycle.coverage import Coverage, coverage
from bam_core.upcycle.hashing import Hashing
from bam_core.upcycle.merge import Parts, merge_rule
from bam_core.upcycle.pieces import pieces
from bam_core.upcycle.router_init import INITS
from bam_core.upcycle.rules import FITTED_INITS, Rule

__all__ = ["Coverage", "Fitted", "coverage", "make_tensor", "upcycle"]


@dataclass(frozen=True)
class Fitted:
    """What was measured on text. routers: target name -> the whole tensor [E, D], in the place of a `fresh` one.
    factors: target name -> factor of what is made, in the place of its rule's (`scale: experts`)."""

    routers: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


def upcycle(
    target: ModelConfig,
    rules: Sequence[Rule],
    sources: Mapping[str, TensorSource],
    seed: int,
    provenance: dict[str, Any] | None = None,
    fitted: Fitted | None = None,
    digests: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Make the target's tensors, float32, one at a time in reading order.

    sources: dense model -> its tensors, in stacking order, the seed's first (`variant_sources`). seed: of new routers
    and experts and of `dare`. provenance: filled as the tensors are made, for `mix.json`: target tensor -> {op, from:
    [{expert, tensor, sha256}], sha256}, where the sums are of the raw little-endian bytes, those of a source as it is
    stored. An entry of a stack's `from` is one slot, in stacking order; `slot` is its place where it is not cut into
    groups. `init` says how a router started, `factor` what the tensor was multiplied by. A tensor's own sum is
    computed while it is in use, and is there when the next one is asked for. digests: dense model -> the sums of its
    tensors, if they are known to hold: these are not hashed again.

    Raises InvalidInput, before anything is made, if the coverage check fails, the models are not the target's or a
    router was to be fitted and is not; while it is made, for a source tensor that is not finite.
    """
    if target.is_mixture and tuple(sources) != target.experts:
        expected = f"must be the target's, in order: {list(target.experts)}"
        raise InvalidInput("upcycling", [Problem("experts", list(sources), expected)])
    shapes = tensor_shapes(target)
    claims = coverage(shapes, rules, sources).claims
    fitted = fitted or Fitted()
    if problems := list(_fitted_problems(shapes, claims, fitted)):
        raise InvalidInput("upcycling", problems)
    return _made(_Maker(target, shapes, claims, sources, seed, fitted, digests or {}), provenance)


def make_tensor(
    name: str,
    target: ModelConfig,
    claims: Mapping[str, Rule],
    sources: Mapping[str, TensorSource],
    seed: int,
    fitted: Fitted | None = None,
) -> Tensor:
    """Make one tensor of the target, as `upcycle` would. claims: `coverage(tensor_shapes(target), ...).claims`."""
    return _Maker(target, tensor_shapes(target), claims, sources, seed, fitted or Fitted()).make(name, None)


def _fitted_problems(shapes: Mapping[str, Shape], claims: Mapping[str, Rule], fitted: Fitted) -> Iterator[Problem]:
    for name, rule in claims.items():
        if rule.op == "fresh" and rule.init in FITTED_INITS and name not in fitted.routers:
            remedy = f"measure first (upcycle.calibrate), or choose {', '.join(INITS)}"
            yield Problem(name, rule.init, "is fitted on text, and no router was", remedy)
    for name, router in fitted.routers.items():
        if name not in claims or claims[name].op != "fresh":
            yield Problem(name, list(router.shape), "was fitted, and is no new router of the target")
        elif tuple(router.shape) != shapes[name]:
            yield Problem(name, list(router.shape), f"must be {list(shapes[name])}")
        elif problem := value_problem("fitted", name, router):
            yield problem
    for name in fitted.factors.keys() - claims.keys():
        yield Problem(name, fitted.factors[name], "is the factor of no tensor of the target")


def _made(maker: _Maker, provenance: dict[str, Any] | None) -> Iterator[tuple[str, Tensor]]:
    if provenance is None:
        for name in maker.shapes:
            yield name, maker.make(name, None)
        return
    with ThreadPoolExecutor(1, "hashing") as thread:
        for name in maker.shapes:
            origins: list[dict[str, Any]] = []
            hashing = Hashing(thread)
            tensor = maker.make(name, origins, hashing.add)
            rule, factor = maker.claims[name], maker.factor(name)
            entry: dict[str, Any] = {"op": rule.op, "from": origins}
            entry |= {"init": rule.init} if rule.op == "fresh" else {}
            entry |= {"factor": factor} if factor != 1 else {}
            provenance[name] = entry
            yield name, tensor
            entry["sha256"] = hashing.hexdigest()
            del tensor  # or it would stay alive while the next one is made


def _unseen(part: Tensor) -> None:
    pass


@dataclass(frozen=True)
class _Maker:
    target: ModelConfig
    shapes: Mapping[str, Shape]
    claims: Mapping[str, Rule]
    sources: Mapping[str, TensorSource]
    seed: int
    fitted: Fitted
    digests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def factor(self, name: str) -> float:
        return self.fitted.factors.get(name, self.claims[name].factor)

    def make(
        self, name: str, origins: list[dict[str, Any]] | None, at_part: Callable[[Tensor], None] = _unseen
    ) -> Tensor:
        """One target tensor. origins: filled with where it came from, unless None. at_part: sees it part by part, in
        order, each when its values are final."""
        shape, rule = self.shapes[name], self.claims[name]
        if rule.op in ("stack", "random"):
            return self._stack(name, shape, rule, origins, at_part)
        tensor = self._unscaled(name, shape, origins)
        assert tensor.shape == shape, f"{name}: made {tuple(tensor.shape)}, not {shape}"
        self._scale(name, tensor)
        at_part(tensor)
        return tensor

    def _scale(self, name: str, tensor: Tensor) -> None:
        factor = self.factor(name)
        if factor != 1:
            for part_N in pieces(tensor):
                part_N.copy_(part_N.double() * factor)  # rounded once

    def _unscaled(self, name: str, shape: Shape, origins: list[dict[str, Any]] | None) -> Tensor:
        rule = self.claims[name]
        if rule.op == "zero":
            return torch.zeros(shape, dtype=torch.float32)
        if rule.op == "fresh":
            return self._router(name, shape, rule)
        if rule.op == "copy":
            seed = next(iter(self.sources))
            return self._read(name, rule, seed, origins).to(torch.float32, copy=True)
        generator = Generator().manual_seed(child_seed(self.seed, name))
        return merge_rule(rule.op)(self._parts(name, rule, origins), rule.merge, generator)

    def _parts(self, name: str, rule: Rule, origins: list[dict[str, Any]] | None) -> Parts:
        for model in rule.reads(tuple(self.sources)):
            yield model, self._read(name, rule, model, origins)

    def _read(self, name: str, rule: Rule, model: str, origins: list[dict[str, Any]] | None, **more: int) -> Tensor:
        source = rule.source_of(name)
        assert source is not None, f"{rule.op} reads nothing"
        tensor = self.sources[model].get(source)
        if problem := value_problem(model, source, tensor):
            raise InvalidInput("upcycling", [problem])
        if origins is not None:
            sha256 = self.digests.get(model, {}).get(source) or tensor_sha256(tensor)
            origins.append({"expert": model, "tensor": source, "sha256": sha256, **more})
        return tensor

    def _router(self, name: str, shape: Shape, rule: Rule) -> Tensor:
        """Groups of one dense model start with equal rows, so that the `split` best are the groups of one model."""
        if name in self.fitted.routers:
            return self.fitted.routers[name].to(torch.float32, copy=True)
        if rule.init in FITTED_INITS:
            raise InvalidInput("upcycling", _fitted_problems(self.shapes, {name: rule}, Fitted()))
        generator = Generator().manual_seed(child_seed(self.seed, name))
        rows_ED = INITS[rule.init]((shape[0] // rule.split, *shape[1:]), generator, rule.std)
        return rows_ED.repeat_interleave(rule.split, dim=0)

    def _stack(
        self,
        name: str,
        shape: Shape,
        rule: Rule,
        origins: list[dict[str, Any]] | None,
        at_part: Callable[[Tensor], None],
    ) -> Tensor:
        stacked = torch.from_numpy(np.empty(shape, np.float32))  # numpy asks for large pages: half the time to fill
        slots = rule.slots or tuple(self.sources)
        dense_shape = (shape[1] * rule.split, *shape[2:])
        for index, (slot, model) in enumerate(zip(stacked.view(len(slots), *dense_shape), slots, strict=True)):
            if rule.op == "random":
                own_seed = child_seed(self.seed, f"random expert {index}")
                slot.copy_(init_tensor(name, dense_shape, self.target.n_layers, own_seed))
            else:
                place = {"slot": index} if rule.split == 1 else {}
                slot.copy_(self._read(name, rule, model, origins, **place))
            self._scale(name, slot)
            at_part(slot)
        return stacked
