"""A rule says how the target's tensors of one kind are made from the dense models' tensors.

stack   one slice per slot, in stacking order: the leading E of an expert tensor; cut in column groups if split
random  the same, of freshly initialised tensors: experts that know nothing, in the place of trained ones
mean    (or another row of `merge.MERGES`) one tensor from all models'
copy    the seed's tensor
fresh   a router, newly initialised by a row of `router_init.INITS` or fitted on text
zero    zeros

Each op reads some models' tensors and sets those of the others aside; `Rule.reads` says which. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from bam_core.config import FFNExperts, ModelConfig
from bam_core.nn.shapes import attention_names, ffn_names, norm_names
from bam_core.upcycle.specs import MERGE_METHODS, AttentionSpec, FFNSpec, MergeSpec

if TYPE_CHECKING:
    from bam_core.upcycle.variants import Variant

FITTED_INITS = ("centroid", "ridge")
ROUTER_INITS = ("random", "zero", "orthogonal", *FITTED_INITS)
"""The rows of `router_init.INITS`, then those that are fitted on text; named here, so that a plan loads no torch."""

OPS = ("stack", "random", "copy", "fresh", "zero", *MERGE_METHODS)


@dataclass(frozen=True)
class Rule:
    """pattern: target names; `*` is one component: `blocks.*.attn.w_q`. source: the models' name of it, where it is
    another, its `*` standing for the pattern's. slots: the model of each slice of a stack, () for each model once.
    split: column groups per slot; for `fresh`, that many equal rows in a row. init, std: of `fresh`. factor: of what
    is made."""

    op: str
    pattern: str = ""
    init: str = "random"
    std: float = 0.02
    slots: tuple[str, ...] = ()
    split: int = 1
    source: str = ""
    factor: float = 1.0
    merge: MergeSpec = field(default_factory=MergeSpec)

    def claims(self, name: str) -> bool:
        """Whether the target tensor `name` is made by this rule."""
        return _compiled(self.pattern).fullmatch(name) is not None

    def source_of(self, name: str) -> str | None:
        """The dense models' tensor that the target's `name` stands for; None for one that they do not have."""
        if self.op in ("fresh", "zero"):
            return None
        found = _compiled(self.pattern).fullmatch(name)
        assert found, f"{self.pattern} does not claim {name}"
        components = iter(found.groups())
        return re.sub(r"\*", lambda _: next(components), self.source) if self.source else name

    def reads(self, models: Sequence[str]) -> tuple[str, ...]:
        """The models whose tensor is read, in the order in which it is, each once; `models` begins with the seed."""
        if self.op in ("fresh", "zero", "random"):
            return ()
        if self.op in ("copy", "seed"):
            return tuple(models[:1])
        if self.op == "stack" and self.slots:
            return tuple(dict.fromkeys(self.slots))
        if self.op == "weighted":
            return tuple(model for model in models if model in self.merge.weights)
        return tuple(models)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"([^.]+)"))


def start_factor(experts: FFNExperts) -> Fraction:
    """By what an FFN branch must be multiplied to have the dense scale, under a router that tells nothing apart yet.

    E = n_experts / G dense models' FFNs, each cut into G = split groups; k = top_k counts groups. Equal probabilities
    are 1 / (E G), so k gates sum to k / (E G), on outputs that are 1 / G of a dense FFN: E G^2 / k (arXiv 2410.07524).
    Gates that are normalised over the chosen sum to 1, which leaves G.
    """
    gate_sum = Fraction(experts.top_k, experts.n_experts) if experts.gate == "softmax_topk" else Fraction(1)
    return experts.split / gate_sum


def rules_for(variant: Variant, target: ModelConfig) -> tuple[Rule, ...]:
    """List the rules that make `target`, a `mixture_config` of this variant: experts stacked, what they share merged
    (BAM, section 4, Figure 1) or with `shared` stacked too, routers new."""
    layers = [dict(_layer_rules(variant, target, layer)) for layer in range(target.n_layers)]
    return (
        replace(_shared(variant, target, "embed"), pattern="embed.weight"),
        *_shared_router(variant),
        *_under_blocks(layers),
        *(replace(rule, pattern=name) for name, rule in _norm_rules(variant, target, "norm")),
        *_head(variant, target),
    )


def _shared(variant: Variant, target: ModelConfig, part: Literal["embed", "norms", "head"]) -> Rule:
    return Rule("stack") if target.is_routed(part) else _merged(variant)


def _shared_router(variant: Variant) -> Iterator[Rule]:
    if variant.shared != "merged":
        yield replace(_router(variant), pattern="shared.router")


def _norm_rules(variant: Variant, target: ModelConfig, norm: str) -> Iterator[tuple[str, Rule]]:
    for part in ("weight", "bias")[: 1 + target.norm_bias]:
        yield f"{norm}.{part}", _shared(variant, target, "norms")


def _head(variant: Variant, target: ModelConfig) -> Iterator[Rule]:
    """Where the dense models' head is their embedding, and the mixture's is not, it is made of that."""
    if target.has_head:
        source = "embed.weight" if target.tie_embeddings else ""
        yield replace(_shared(variant, target, "head"), pattern="head.weight", source=source)
    if target.head_bias:
        yield replace(_shared(variant, target, "head"), pattern="head.bias")


def _under_blocks(layers: Sequence[dict[str, Rule]]) -> Iterator[Rule]:
    """One rule for all layers where they agree, else one per layer."""
    for name in dict.fromkeys(name for rules in layers for name in rules):
        found = [(str(layer), rules[name]) for layer, rules in enumerate(layers) if name in rules]
        same = len(found) == len(layers) and all(rule == found[0][1] for _, rule in found)
        for layer, rule in [("*", found[0][1])] if same else found:
            source = f"blocks.{layer}.{rule.source}" if rule.source else ""
            yield replace(rule, pattern=f"blocks.{layer}.{name}", source=source)


def _layer_rules(variant: Variant, target: ModelConfig, layer: int) -> Iterator[tuple[str, Rule]]:
    """Name within the block -> its rule; pattern and source are completed by `_under_blocks`."""
    merged = _merged(variant)
    for norm in norm_names(target):
        yield from _norm_rules(variant, target, norm)
    attention, ffn = target.attention_at(layer), target.ffn_at(layer)
    stacked: set[str] = set()
    if attention is not None:
        stacked = {"w_o", "b_o"}
        stacked |= {"w_q", "b_q", "q_norm"} if attention.kv != "value_only" else set()
        stacked |= {"w_k", "b_k", "k_norm"} if attention.kv == "expert" else set()
        stacked |= {"w_v", "b_v"} if attention.kv != "shared" else set()
    for name in attention_names(target):
        slots = attention.slots if attention is not None else ()
        yield f"attn.{name}", _stacked(variant.attention, slots) if name in stacked else merged
    if attention is not None:
        yield "attn.router", _router(variant)
    for name in ffn_names(target):
        yield f"ffn.{name}", merged if ffn is None else _ffn_expert(variant, ffn, name)
    if ffn is None:
        return
    if ffn.shared_expert:
        yield from ((f"ffn.shared.{name}", Rule("copy", source=f"ffn.{name}")) for name in ffn_names(target))
    yield "ffn.router", replace(_router(variant), split=ffn.split)
    if ffn.balance == "bias":
        yield "ffn.balance_bias", Rule("zero")


OUTPUT = ("w_down", "b_down")
"""What an FFN's output is made by: both are scaled, so that the output is."""


def _merged(variant: Variant) -> Rule:
    return Rule(variant.merge.method, merge=variant.merge)


def _router(variant: Variant) -> Rule:
    return Rule("fresh", init=variant.router_init, std=variant.router_std)


def _stacked(spec: Literal["merged"] | AttentionSpec | FFNSpec, slots: tuple[str, ...]) -> Rule:
    assert spec != "merged", "the target has experts where the variant has none"
    return Rule("random" if spec.experts == "random" else "stack", slots=slots)


def _ffn_expert(variant: Variant, ffn: FFNExperts, name: str) -> Rule:
    spec = variant.ffn
    assert spec != "merged", "the target has FFN experts where the variant has none"
    factor = 1.0
    if spec.scale == "weights":
        factor = float(start_factor(ffn)) ** (1 / 3)
    elif spec.scale == "experts" and name in OUTPUT:
        factor = float(start_factor(ffn))
    return replace(_stacked(spec, ffn.slots), split=ffn.split, factor=factor)
