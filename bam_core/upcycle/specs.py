"""The parts of a variant: what becomes experts in a branch, and how what is shared is merged.

`problems` says what is wrong before the dense models are known; `variants.mixture_config` finds the rest. Imports no
torch: a plan counts mixtures that it does not make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import Any, Literal, get_args

from bam_core.config import Gate, KeysValues
from bam_core.config.fields import choice, choice_or_plugin, is_positive, positive_ints
from bam_core.errors import Problem
from bam_core.plugins import MERGE_RULES

Slots = Literal["per-domain", "random"] | tuple[str, ...]
"""One expert per dense model, in stacking order; as many, freshly initialised, in the place of trained ones (the
ablation of BAM); or a list of dense models, an expert each, repeats allowed."""

SCALES = ("none", "gate", "experts", "weights")
MergeMethod = Literal["mean", "weighted", "seed", "slerp", "ties", "dare"]
MERGE_METHODS: tuple[str, ...] = get_args(MergeMethod)
"""The rows of `merge.MERGES`, named here too, so that planning a variant loads no torch."""

WEIGHTS_TOLERANCE = 1e-6
"""Of the sum of merge weights about 1: room for 0.333333, none for a forgotten model."""


@dataclass(frozen=True)
class AttentionSpec:
    """`soft` sends every token to all attention experts (BAM, section 4.1).

    kv: what each expert has of its own, as in `config.AttentionExperts`; the rest is merged. layers: those that have
    experts, None for all; the others are merged.
    """

    routing: Literal["soft", "top_k"] = "soft"
    top_k: int | None = None
    kv: KeysValues = "expert"
    gate: Gate = "softmax_topk"
    experts: Slots = "per-domain"
    layers: tuple[int, ...] | None = None
    dense_router_gradient: bool = False

    def problems(self) -> Iterator[Problem]:
        yield from choice("routing", self.routing, ("soft", "top_k"))
        if self.routing in ("soft", "top_k") and (self.routing == "top_k") != (self.top_k is not None):
            yield Problem("top_k", self.top_k, "is given with routing: top_k, and only then")
        elif self.top_k is not None:
            yield from positive_ints(self, ("top_k",))
        yield from _slots_problems(self.experts)
        yield from _layers_problems("layers", self.layers)


@dataclass(frozen=True)
class FFNSpec:
    """A token goes to its `top_k` best experts (BAM and its BTX: 1; section 4.2), or with `soft` to all.

    scale: what makes up for gates that sum to less than 1 at the start, by the factor split / (sum of gates): `gate`
    multiplies the gates, `experts` the output matrices, both exactly and by the measured factor where there is text to
    measure on; `weights` each of the three matrices by the cube root of the factor of an untrained router
    (`start_factor`; arXiv 2410.07524). shared_expert: the seed's FFN, always on. The rest: as in `config.FFNExperts`.
    """

    routing: Literal["top_k", "soft"] = "top_k"
    top_k: int = 1
    gate: Gate = "softmax_topk"
    experts: Slots = "per-domain"
    scale: Literal["none", "gate", "experts", "weights"] = "none"
    shared_expert: bool = False
    layers: tuple[int, ...] | None = None
    soft_layers: tuple[int, ...] = ()
    split: int = 1
    capacity_factor: float | None = None
    balance: Literal["loss", "bias"] = "loss"
    dense_router_gradient: bool = False

    def problems(self) -> Iterator[Problem]:
        yield from choice("routing", self.routing, ("top_k", "soft"))
        yield from choice("scale", self.scale, SCALES)
        yield from positive_ints(self, ("top_k", "split"))
        if self.routing == "soft" and self.top_k != 1:
            yield Problem("top_k", self.top_k, "is given with routing: top_k, and only then")
        yield from _slots_problems(self.experts)
        yield from _layers_problems("layers", self.layers)
        yield from _layers_problems("soft_layers", self.soft_layers)


@dataclass(frozen=True)
class MergeSpec:
    """How one shared tensor is made from the dense models' tensors of its name: a row of `merge.MERGES`.

    weights: dense model -> its part, for `weighted`, summing to 1; a model that is not named is not read. density: the
    part of each difference from the seed that `ties` keeps. drop: the part that `dare` leaves out.
    """

    method: MergeMethod = "mean"
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    density: float = 0.2
    drop: float = 0.5

    def problems(self) -> Iterator[Problem]:
        yield from choice_or_plugin("method", self.method, MERGE_METHODS, MERGE_RULES)
        weights: Any = self.weights
        if not isinstance(weights, Mapping):
            yield Problem("weights", weights, "must map dense models to numbers that sum to 1")
            return
        if (self.method == "weighted") != bool(self.weights):
            yield Problem("weights", self.weights, "are given with method: weighted, and only then")
        yield from self._weights_problems()
        if not is_positive(self.density) or self.density > 1:
            yield Problem("density", self.density, "must be above 0 and at most 1: the part of a difference to keep")
        if (self.drop != 0 and not is_positive(self.drop)) or self.drop >= 1:
            yield Problem("drop", self.drop, "must be from 0 to below 1: the part of a difference to leave out")

    def _weights_problems(self) -> Iterator[Problem]:
        wrong = {name: weight for name, weight in self.weights.items() if not is_positive(weight)}
        for name, weight in wrong.items():
            remedy = "leave out a model that has no part"
            yield Problem(f"weights.{name}", weight, "must be a number above 0", remedy)
        if self.weights and not wrong and abs((total := fsum(self.weights.values())) - 1) > WEIGHTS_TOLERANCE:
            halves = ", ".join(f"{name}: {weight / total:.6g}" for name, weight in self.weights.items())
            yield Problem("weights", dict(self.weights), f"must sum to 1; their sum is {total:.6g}", f"try {halves}")


def spec_warnings(part: str, spec: AttentionSpec | FFNSpec) -> Iterator[str]:
    """What is allowed in a branch and likely not meant."""
    slots = () if isinstance(spec.experts, str) else spec.experts
    if repeated := [slot for slot in dict.fromkeys(slots) if slots.count(slot) > 1]:
        counts = ", ".join(f"{slot} {slots.count(slot)} times" for slot in repeated)
        yield (
            f"{part}.experts has copies ({counts}): copies of the seed made BTX worse than 4 different experts "
            "(BAM, Table 4: average perplexity 10.7 with 4, 11.7 with 5, 11.4 with 6, 11.2 with 8)"
        )
    weight_is_1 = spec.gate in ("topk_softmax", "softmax_topk_renorm") and spec.top_k == 1 and spec.routing == "top_k"
    if weight_is_1 and not spec.dense_router_gradient:
        yield (
            f"{part}.gate {spec.gate} with top_k 1 gives the chosen expert weight 1, so the router gets no gradient "
            "from the language model's loss; choose softmax_topk or softmax_topk_ste"
        )
    if isinstance(spec, FFNSpec) and spec.shared_expert and spec.scale != "none":
        yield (
            f"{part}.scale brings the experts to the dense scale: with shared_expert the branch starts at twice that"
        )


def _slots_problems(experts: Any) -> Iterator[Problem]:
    if isinstance(experts, str):
        if experts not in ("per-domain", "random"):
            yield Problem("experts", experts, "must be per-domain, random or a list of dense models")
    elif not experts or not all(isinstance(name, str) for name in experts):
        yield Problem("experts", experts, "must list at least one dense model by name")


def _layers_problems(path: str, layers: Any) -> Iterator[Problem]:
    if layers is not None and not (isinstance(layers, tuple) and all(type(layer) is int for layer in layers)):
        yield Problem(path, layers, "must be a list of layer numbers, from 0 on")
