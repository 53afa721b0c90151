"""A variant says which parts of the dense models become experts; here it turns into rules and a config.

BAM, BTX and the soup differ only in their rows of `VARIANTS`; a new kind of upcycling is a new row. Imports
no torch: a plan counts mixtures that it does not make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from bam_core.config import AttentionExperts, FFNExperts, Gate, ModelConfig
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.upcycle.rules import ROUTER_INITS, Rule


@dataclass(frozen=True)
class AttentionSpec:
    """One attention expert per dense model. `soft` sends every token to all of them (BAM, section 4.1).

    kv: `expert` - each brings its own keys and values; `shared` - these are merged.
    """

    routing: Literal["soft", "top_k"] = "soft"
    top_k: int | None = None
    kv: Literal["expert", "shared"] = "expert"
    gate: Gate = "softmax_topk"
    experts: Literal["per-domain"] = "per-domain"

    def problems(self) -> Iterator[Problem]:
        if self.routing not in ("soft", "top_k"):
            yield Problem("routing", self.routing, "must be soft or top_k")
        elif (self.routing == "top_k") != (self.top_k is not None):
            yield Problem("top_k", self.top_k, "is given with routing: top_k, and only then")
        yield from _experts_problems(self.experts)


@dataclass(frozen=True)
class FFNSpec:
    """One FFN expert per dense model; a token goes to its `top_k` best (BAM and its BTX: 1; section 4.2)."""

    top_k: int = 1
    gate: Gate = "softmax_topk"
    experts: Literal["per-domain"] = "per-domain"

    def problems(self) -> Iterator[Problem]:
        yield from _experts_problems(self.experts)


def _experts_problems(experts: str) -> Iterator[Problem]:
    if experts != "per-domain":
        yield Problem("experts", experts, "must be per-domain: one expert from each dense model")


@dataclass(frozen=True)
class Variant:
    """`merged` averages a part over the dense models instead of keeping it as experts."""

    name: str
    attention: Literal["merged"] | AttentionSpec
    ffn: Literal["merged"] | FFNSpec
    router_init: str = "random"

    def problems(self) -> Iterator[Problem]:
        """What is wrong before the number of experts is known; `mixture_config` finds the rest."""
        for part in ("attention", "ffn"):
            spec = getattr(self, part)
            if spec != "merged":
                yield from (problem.under(part) for problem in spec.problems())
        if self.router_init not in ROUTER_INITS:
            remedy = nearest(str(self.router_init), ROUTER_INITS)
            yield Problem("router_init", self.router_init, f"must be one of {', '.join(ROUTER_INITS)}", remedy)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Variant:
        """The inverse of `to_json`. Raises InvalidInput for unknown or missing fields and wrong values."""
        specs: dict[str, type] = {"attention": AttentionSpec, "ffn": FFNSpec}
        required = ("name", *specs)
        problems = list(_unknown(data, cls))
        problems += [Problem(name, None, "is missing") for name in required if name not in data]
        for name, spec in specs.items():
            part = data.get(name, "merged")
            if isinstance(part, Mapping):
                problems += [problem.under(name) for problem in _unknown(part, spec)]
            elif part != "merged":
                problems.append(Problem(name, part, "must be merged or a mapping"))
        if not problems:
            parts = {name: spec(**data[name]) for name, spec in specs.items() if data[name] != "merged"}
            variant = cls(**{**data, **parts})
            problems = list(variant.problems())
        if problems:
            raise InvalidInput(f"variant {data.get('name')!r}", problems)
        return variant


def _unknown(data: Mapping[str, Any], kind: type) -> Iterator[Problem]:
    known = {field.name for field in fields(kind)}
    for name in data:
        if name not in known:
            yield Problem(str(name), data[name], "unknown field", nearest(str(name), known))


VARIANTS: dict[str, Variant] = {
    "bam": Variant("bam", AttentionSpec(kv="expert"), FFNSpec()),
    "bam_shared_kv": Variant("bam_shared_kv", AttentionSpec(kv="shared"), FFNSpec()),
    "btx": Variant("btx", "merged", FFNSpec()),
    "soup": Variant("soup", "merged", "merged"),
}
"""The variants of BAM, section 4.2. Its BTX baseline is top-1; the original has top-2 and `topk_softmax`."""


def common_config(configs: Mapping[str, ModelConfig]) -> ModelConfig:
    """Return the one dense config that all experts have.

    Raises InvalidInput naming every field in which an expert differs from the first: tensors of equal shapes
    trained under another rotary base or norm would be mixed without an error and give nonsense.
    """
    first, *others = configs
    seed = configs[first]
    problems = [
        Problem(f"{expert}.{field.name}", value, f"must be as in {first}, {wanted!r}")
        for expert in others
        for field in fields(ModelConfig)
        if (value := getattr(configs[expert], field.name)) != (wanted := getattr(seed, field.name))
    ]
    if seed.is_mixture:
        problems.append(Problem(first, "a mixture", "must be a dense model"))
    if problems:
        raise InvalidInput("experts to mix", problems)
    return seed


def mixture_config(dense: ModelConfig, experts: Sequence[str], variant: Variant) -> ModelConfig:
    """Describe the mixture of `experts`, in stacking order; a dense config when all is merged.

    Raises InvalidInput when the variant does not fit the number of experts, or a name is used twice.
    """
    where = f"variant {variant.name!r}"
    n = len(experts)
    problems = list(variant.problems())
    if n == 0 or len(set(experts)) != n:
        problems.append(Problem("experts", list(experts), "must be at least one name, each used once"))
    if problems:
        raise InvalidInput(where, problems)
    attention, ffn = variant.attention, variant.ffn
    target = replace(
        dense,
        attention=None if attention == "merged" else _attention_experts(attention, n),
        ffn=None if ffn == "merged" else FFNExperts(n, ffn.top_k, ffn.gate),
    )
    return replace(target, experts=tuple(experts) if target.is_mixture else ()).checked(where)


def _attention_experts(spec: AttentionSpec, n: int) -> AttentionExperts:
    return AttentionExperts(n, n if spec.top_k is None else spec.top_k, spec.kv, spec.gate)


def rules_for(variant: Variant, residual: str, tie_embeddings: bool) -> tuple[Rule, ...]:
    """List the rules: experts stacked, all else merged, routers new (BAM, section 4, Figure 1)."""
    norms = ("norm",) if residual == "parallel" else ("attn_norm", "ffn_norm")
    heads = () if tie_embeddings else ("head.weight",)
    shared = ("embed.weight", *(f"blocks.*.{norm}.weight" for norm in norms), "norm.weight", *heads)
    branches = {f"attn.{name}": op for name, op in _attention_ops(variant.attention).items()}
    branches |= {f"ffn.{name}": op for name, op in _ffn_ops(variant.ffn).items()}
    return (
        *(Rule(pattern, "mean") for pattern in shared),
        *(Rule(f"blocks.*.{name}", op, variant.router_init) for name, op in branches.items()),
    )


def _attention_ops(attention: Literal["merged"] | AttentionSpec) -> dict[str, str]:
    if attention == "merged":
        return dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), "mean")
    kv = "stack" if attention.kv == "expert" else "mean"
    return {"w_q": "stack", "w_k": kv, "w_v": kv, "w_o": "stack", "router": "fresh"}


def _ffn_ops(ffn: Literal["merged"] | FFNSpec) -> dict[str, str]:
    names = ("w_gate", "w_up", "w_down")
    if ffn == "merged":
        return dict.fromkeys(names, "mean")
    return dict.fromkeys(names, "stack") | {"router": "fresh"}
