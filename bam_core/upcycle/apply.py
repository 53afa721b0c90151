"""Follow the rules: dense experts in, the mixture's tensors out, one at a time.

Invariant: nothing is made unless the coverage check holds - each target tensor is claimed by exactly one
rule, each tensor of each expert is used (or set aside by a `copy` rule), and all shapes fit. Converters that
skip what they do not recognise lose experts in silence; this one refuses and names everything.

Memory: one target tensor and one source tensor (for a merge, a float64 total and one source tensor).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from bam_core.checkpoint import TensorSource, tensor_sha256
from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.seeds import child_seed
from bam_core.upcycle.merge import MERGES
from bam_core.upcycle.router_init import INITS
from bam_core.upcycle.rules import Rule

OPS = ("stack", "copy", "fresh", *MERGES)


@dataclass(frozen=True)
class Coverage:
    """claims: target tensor -> its rule. set_aside: expert -> tensors that a `copy` rule leaves unused."""

    claims: Mapping[str, Rule]
    set_aside: Mapping[str, tuple[str, ...]]


def coverage(target: Mapping[str, Shape], rules: Sequence[Rule], sources: Mapping[str, TensorSource]) -> Coverage:
    """Match rules, targets and sources completely. Raises InvalidInput listing all that does not match."""
    problems = list(_rule_problems(rules, target))
    claims: dict[str, Rule] = {}
    for name in target:
        claiming = [rule for rule in rules if rule.claims(name)]
        if len(claiming) == 1:
            claims[name] = claiming[0]
        else:
            found = [f"{rule.pattern} ({rule.op})" for rule in claiming]
            problems.append(Problem(name, found, "must be claimed by exactly one rule"))
    problems += _source_problems(target, claims, sources)
    if problems:
        raise InvalidInput("upcycling", problems)
    copied = tuple(name for name, rule in claims.items() if rule.op == "copy")
    _, *others = sources
    set_aside = {expert: tuple(name for name in copied if name in sources[expert].names()) for expert in others}
    return Coverage(claims, set_aside)


def _rule_problems(rules: Sequence[Rule], target: Mapping[str, Shape]) -> Iterator[Problem]:
    for rule in rules:
        if rule.op not in OPS:
            yield Problem(rule.pattern, rule.op, f"must be one of {', '.join(OPS)}", nearest(rule.op, OPS))
        if rule.op == "fresh" and rule.init not in INITS:
            yield Problem(rule.pattern, rule.init, f"must be one of {', '.join(INITS)}", nearest(rule.init, INITS))
        if not any(rule.claims(name) for name in target):
            yield Problem(rule.pattern, rule.op, "matches no tensor of the target")


def _source_problems(
    target: Mapping[str, Shape], claims: Mapping[str, Rule], sources: Mapping[str, TensorSource]
) -> Iterator[Problem]:
    if not sources:
        yield Problem("experts", [], "must be at least one dense model")
    read = {name: rule for name, rule in claims.items() if rule.op != "fresh"}
    for index, (expert, source) in enumerate(sources.items()):
        held = set(source.names())
        for name, rule in read.items():
            if rule.op == "copy" and index > 0:
                continue
            if name not in held:
                yield Problem(f"{expert}.{name}", None, f"is missing; {rule.op} needs it")
                continue
            shape = source.shape(name)
            made = (len(sources), *shape) if rule.op == "stack" else shape
            if made != target[name]:
                wanted = f"{rule.op} gives {list(made)} of it, and the target has {list(target[name])}"
                yield Problem(f"{expert}.{name}", list(shape), wanted)
        for name in sorted(held - read.keys()):
            # A target that no single rule claims is reported once, above, not again for each expert.
            if name not in target or name in claims:
                yield Problem(f"{expert}.{name}", list(source.shape(name)), "would be lost: no rule uses it")


def upcycle(
    target: ModelConfig,
    rules: Sequence[Rule],
    sources: Mapping[str, TensorSource],
    seed: int,
    provenance: dict[str, Any] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Make the target's tensors, float32, one at a time in reading order.

    sources: expert -> its tensors, in stacking order, the seed's first. seed: of the new routers. provenance:
    filled as the tensors are made, for `mix.json`: target tensor -> {op, from: [{expert, tensor, sha256}],
    sha256}, where the sums are of the raw little-endian bytes, those of a source as it is stored.

    Raises InvalidInput, before anything is made, if the coverage check fails or the experts are not the
    target's.
    """
    if target.is_mixture and tuple(sources) != target.experts:
        raise InvalidInput(
            "upcycling",
            [Problem("experts", list(sources), f"must be the target's, in order: {list(target.experts)}")],
        )
    shapes = tensor_shapes(target)
    return _made(shapes, coverage(shapes, rules, sources).claims, sources, seed, provenance)


def _made(
    shapes: Mapping[str, Shape],
    claims: Mapping[str, Rule],
    sources: Mapping[str, TensorSource],
    seed: int,
    provenance: dict[str, Any] | None,
) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        origins: list[dict[str, str]] | None = None if provenance is None else []
        tensor = _make(name, shape, claims[name], sources, seed, origins)
        assert tensor.shape == shape, f"{name}: made {tuple(tensor.shape)}, not {shape}"
        if provenance is not None:
            provenance[name] = {"op": claims[name].op, "from": origins, "sha256": tensor_sha256(tensor)}
        yield name, tensor
        del tensor  # or it would stay alive while the next one is made


def _make(
    name: str,
    shape: Shape,
    rule: Rule,
    sources: Mapping[str, TensorSource],
    seed: int,
    origins: list[dict[str, str]] | None,
) -> Tensor:
    def read(expert: str) -> Tensor:
        tensor = sources[expert].get(name)
        if origins is not None:
            origins.append({"expert": expert, "tensor": name, "sha256": tensor_sha256(tensor)})
        return tensor

    if rule.op == "fresh":
        return INITS[rule.init](shape, Generator().manual_seed(child_seed(seed, name)))
    if rule.op == "copy":
        return read(next(iter(sources))).to(torch.float32, copy=True)
    if rule.op == "stack":
        stacked = torch.empty(shape, dtype=torch.float32)
        for slot, expert in zip(stacked, sources, strict=True):
            slot.copy_(read(expert))
        return stacked
    return MERGES[rule.op](read(expert) for expert in sources)
