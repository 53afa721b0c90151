"""The experts of one branch: how many, from which dense models, in which layers, and how tokens reach them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bam_core.config.fields import booleans, choice, choice_or_plugin, is_positive, positive_ints
from bam_core.errors import Problem
from bam_core.plugins import ROUTING_RULES

Gate = Literal["softmax_topk", "topk_softmax", "softmax_topk_renorm", "softmax_topk_ste", "sample_top1"]
GATES: tuple[str, ...] = get_args(Gate)
"""A plug-in's routing rule goes by its own name beside them (`bam_core.plugins`)."""
SUM_TO_ONE = frozenset(GATES) - {"softmax_topk"}
"""Those whose gates sum to 1 by construction."""

KeysValues = Literal["expert", "shared", "value_only"]
KEYS_VALUES: tuple[str, ...] = ("expert", "shared", "value_only")


@dataclass(frozen=True)
class AttentionExperts:
    """A soft or sparse mixture of attention. `top_k == n_experts` is BAM's soft routing (BAM, section 4.1).

    kv: what each expert has of its own. `expert`: queries, keys, values, outputs, so E caches. `shared`: queries and
    outputs; one set of keys and values, one cache. `value_only`: values and outputs; queries and keys are shared, so
    attention probabilities are computed once.
    slots: the dense model of each expert, in stacking order; empty for the model's `experts`, each once.
    layers: those that have experts; None for all. router_bias: a bias in the router's logits, not trained; training
    takes it to 0 (an expert that was added starts unheard). dense_router_gradient: the router learns from experts
    that were not chosen too: the value of the sparse gate, the gradient of the soft one.
    threshold: outside training, an expert whose gate is below it is left out for that token. The other gates stay as
    they are, so the output moves by at most the left-out gates' sum times the largest expert's output; 0 leaves out
    none, 1/E at most, so that there is always one left.
    """

    n_experts: int
    top_k: int
    kv: KeysValues = "expert"
    gate: Gate = "softmax_topk"
    slots: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    router_bias: bool = False
    dense_router_gradient: bool = False
    threshold: float = 0.0

    def problems(self) -> Iterator[Problem]:
        yield from positive_ints(self, ("n_experts", "top_k"))
        yield from choice("kv", self.kv, KEYS_VALUES)
        yield from choice_or_plugin("gate", self.gate, GATES, ROUTING_RULES)
        if self.gate == "sample_top1":
            yield Problem("gate", self.gate, "is for FFN experts only", "choose softmax_topk")
        yield from booleans(self, ("router_bias", "dense_router_gradient"))
        yield from _top_k_fits(self.top_k, self.n_experts)
        yield from self._threshold_problems()

    def _threshold_problems(self) -> Iterator[Problem]:
        if self.threshold == 0 and not isinstance(self.threshold, bool):
            return
        most = 1 / self.n_experts if is_positive(self.n_experts) else 1.0
        if not (is_positive(self.threshold) and self.threshold <= most):
            expected = f"must be at least 0 and at most {most:.3g}, one in n_experts"
            yield Problem("threshold", self.threshold, expected, "0 leaves out no expert")


@dataclass(frozen=True)
class FFNExperts:
    """FFN experts, dropless. BAM and its BTX baseline: top-1, softmax then top-k, not renormalised (BAM, 4.2).

    slots, layers, router_bias, dense_router_gradient: as in `AttentionExperts`.
    soft_layers: layers in which every token goes to all experts (BTX's Sample Top-1: the first).
    split: each dense FFN is cut into this many column groups, an expert each, of width d_ff / split; n_experts counts
    them all, the groups of one dense model side by side.
    shared_expert: one more expert that every token uses, with weight 1.
    capacity_factor: in training a row's expert takes at most ceil(factor * T * top_k / n_experts) of its tokens, the
    earliest; the others lose that expert. None: dropless.
    gain: per layer, a factor of all gates; empty for 1.
    balance: `loss` is the load-balancing loss; `bias` adds a bias for the choice of experts, moved after every step.
    """

    n_experts: int
    top_k: int = 1
    gate: Gate = "softmax_topk"
    slots: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    soft_layers: tuple[int, ...] = ()
    split: int = 1
    shared_expert: bool = False
    capacity_factor: float | None = None
    gain: tuple[float, ...] = ()
    balance: Literal["loss", "bias"] = "loss"
    router_bias: bool = False
    dense_router_gradient: bool = False

    def problems(self) -> Iterator[Problem]:
        yield from positive_ints(self, ("n_experts", "top_k", "split"))
        yield from choice_or_plugin("gate", self.gate, GATES, ROUTING_RULES)
        yield from choice("balance", self.balance, ("loss", "bias"))
        yield from booleans(self, ("shared_expert", "router_bias", "dense_router_gradient"))
        yield from _top_k_fits(self.top_k, self.n_experts)
        if self.gate == "sample_top1" and self.top_k != 1:
            yield Problem("top_k", self.top_k, "sample_top1 chooses one expert", "set it to 1")
        if self.capacity_factor is not None and not is_positive(self.capacity_factor):
            yield Problem("capacity_factor", self.capacity_factor, "must be above 0, or left out for dropless")
        if not all(is_positive(gain) for gain in self.gain):
            yield Problem("gain", self.gain, "must be above 0 in every layer")


Experts = AttentionExperts | FFNExperts


def at_layer(experts: Experts | None, layer: int) -> Experts | None:
    """The experts as one layer has them, or None where it is dense; a soft layer's top_k is all."""
    if experts is None or (experts.layers is not None and layer not in experts.layers):
        return None
    if isinstance(experts, FFNExperts) and layer in experts.soft_layers:
        return replace(experts, top_k=experts.n_experts, gate="softmax_topk")
    return experts


def placement_problems(experts: Experts, n_layers: int, models: Sequence[str]) -> Iterator[Problem]:
    """What does not fit the model that these experts are part of."""
    soft = experts.soft_layers if isinstance(experts, FFNExperts) else ()
    for name, layers in (("layers", experts.layers), ("soft_layers", soft)):
        wrong = [layer for layer in layers or () if isinstance(layer, bool) or layer not in range(n_layers)]
        if wrong or len(set(layers or ())) != len(layers or ()):
            yield Problem(name, layers, f"must be different layers from 0 to {n_layers - 1}")
    if experts.layers == ():
        yield Problem("layers", [], "must name at least one layer", "leave it out for all layers")
    split = experts.split if isinstance(experts, FFNExperts) else 1
    if unknown := sorted(set(experts.slots) - set(models)):
        yield Problem("slots", unknown, f"must be among the model's experts: {', '.join(models)}")
    n_slots = len(experts.slots or models)
    if n_slots * split != experts.n_experts:
        each = f", each split in {split}" if split > 1 else ""
        yield Problem("n_experts", experts.n_experts, f"must be that of the dense models, {n_slots}{each}")
    if isinstance(experts, FFNExperts) and len(experts.gain) not in (0, n_layers):
        yield Problem("gain", experts.gain, f"must be one factor for each of {n_layers} layers, or none")


def labels(experts: Experts, models: Sequence[str]) -> tuple[str, ...]:
    """A name for each expert, in stacking order, each once: `law`, `law#2` for a copy, `law/1` for a column group."""
    split = experts.split if isinstance(experts, FFNExperts) else 1
    seen: dict[str, int] = {}
    found = []
    for slot in experts.slots or models:
        seen[slot] = seen.get(slot, 0) + 1
        name = slot if seen[slot] == 1 else f"{slot}#{seen[slot]}"
        found += [name] if split == 1 else [f"{name}/{group + 1}" for group in range(split)]
    return tuple(found)


def _top_k_fits(top_k: int, n_experts: int) -> Iterator[Problem]:
    if isinstance(top_k, int) and isinstance(n_experts, int) and top_k > n_experts >= 1:
        yield Problem("top_k", top_k, f"must be at most the number of experts, {n_experts}")
