"""A variant says which parts of the dense models become experts; here it turns into a config and warnings.

BAM, BTX and the soup differ only in their rows of `VARIANTS`; a new kind of upcycling is a new row. `rules.rules_for`
turns a variant into rules. Imports no torch: a plan counts mixtures that it does not make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import sqrt
from typing import Any, Literal

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.config.fields import choice, identity, is_positive
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.upcycle.compat import config_problems
from bam_core.upcycle.rules import FITTED_INITS, ROUTER_INITS, rules_for, start_factor
from bam_core.upcycle.specs import AttentionSpec, FFNSpec, MergeSpec, spec_warnings

__all__ = [
    "VARIANTS",
    "AttentionSpec",
    "FFNSpec",
    "MergeSpec",
    "Variant",
    "common_config",
    "mixture_config",
    "rules_for",
    "variant_sources",
]

PARTS: dict[str, type] = {"attention": AttentionSpec, "ffn": FFNSpec}
"""Branches, and what their experts are."""

SPECS: dict[str, type] = {**PARTS, "shared": SharedExperts, "merge": MergeSpec}


@dataclass(frozen=True)
class Variant:
    """`merged` merges a part over the dense models, as `merge` says, instead of keeping it as experts.

    router_std: of a new router's entries; `zero` does without. shared: what is no branch (embedding, norms, head) kept
    of every dense model and mixed by a router of the text so far (`routed`, in JSON, for its defaults). router_input:
    what the routers of attention and FFN experts read, as in `ModelConfig`.
    """

    name: str
    attention: Literal["merged"] | AttentionSpec
    ffn: Literal["merged"] | FFNSpec
    router_init: str = "random"
    router_std: float = 0.02
    merge: MergeSpec = field(default_factory=MergeSpec)
    shared: Literal["merged"] | SharedExperts = "merged"
    router_input: Literal["token", "text"] = "token"

    def problems(self) -> Iterator[Problem]:
        """What is wrong before the dense models are known; `mixture_config` finds the rest."""
        for part in SPECS:
            spec = getattr(self, part)
            if spec != "merged":
                yield from (problem.under(part) for problem in spec.problems())
        if self.router_init not in ROUTER_INITS:
            remedy = nearest(str(self.router_init), ROUTER_INITS)
            yield Problem("router_init", self.router_init, f"must be one of {', '.join(ROUTER_INITS)}", remedy)
        yield from choice("router_input", self.router_input, ("token", "text"))
        if self.router_input == "text" and self.attention == self.ffn == "merged":
            yield Problem("router_input", "text", "no branch has experts, so none has a router", "leave it out")
        if not is_positive(self.router_std):
            yield Problem(
                "router_std", self.router_std, "must be above 0", "router_init: zero starts all experts equal"
            )

    def warnings(self, models: Sequence[str]) -> list[str]:
        """What is allowed and likely not meant, for a mixture of these dense models, the seed's first."""
        specs = {part: getattr(self, part) for part in PARTS if getattr(self, part) != "merged"}
        found = [warning for part, spec in specs.items() for warning in spec_warnings(part, spec)]
        if len(models) == 1 and specs:
            found.append(f"{models[0]} is the only dense model: every expert starts as a copy of it")
        if self.shared != "merged" and self.router_init not in FITTED_INITS and len(models) > 1:
            found.append(
                f"shared is routed by a router that has seen no text (router_init {self.router_init}): every token "
                f"starts with about 1/{len(models)} of each model, and a head by chance; choose ridge or centroid"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Every field; the last two where they are not at their default, so that what was written before they were
        fields stays as it is."""
        found = asdict(self)
        default = {"shared": "merged", "router_input": "token"}
        return {name: value for name, value in found.items() if name not in default or value != default[name]}

    def identity(self) -> dict[str, Any]:
        """What a key is made of: `to_json` without what is at its default. `from_json` reads both."""
        return identity(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Variant:
        """The inverse of `to_json` and `identity`; `merge` may be a method's name, `shared` the word `routed`.

        Raises InvalidInput for unknown or missing fields and wrong values.
        """
        values = dict(data)
        if isinstance(values.get("merge"), str):
            values["merge"] = {"method": values["merge"]}
        if values.get("shared") == "routed":
            values["shared"] = {}
        problems = list(_unknown(values, cls))
        problems += [Problem(name, None, "is missing") for name in ("name", *PARTS) if name not in values]
        for name, spec in SPECS.items():
            part = values.get(name, {} if name == "merge" else "merged")
            if isinstance(part, Mapping):
                problems += [problem.under(name) for problem in _unknown(part, spec)]
                values[name] = part
            elif part != "merged" or name == "merge":
                words = {"merge": "a method", "shared": "merged, routed"}.get(name, "merged")
                problems.append(Problem(name, part, f"must be {words} or a mapping"))
        if not problems:
            for name, spec in SPECS.items():
                if isinstance(values.get(name), Mapping):
                    values[name] = spec(**{key: _frozen(value) for key, value in values[name].items()})
            variant = cls(**values)
            problems = list(variant.problems())
        if problems:
            raise InvalidInput(f"variant {data.get('name')!r}", problems)
        return variant


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


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
    problems = list(config_problems(configs))
    if problems:
        raise InvalidInput("experts to mix", problems)
    return next(iter(configs.values()))


def variant_sources(variant: Variant, models: Sequence[str]) -> tuple[str, ...]:
    """The dense models that the mixture is made from, in the order of `models`: the seed, which is the first, and all
    that a slot or the merge reads. So sparse upcycling of the seed alone needs no expert to be trained."""
    seed, *_ = models
    wanted = {seed}
    for spec in (variant.attention, variant.ffn):
        if spec != "merged":
            wanted |= set(models if isinstance(spec.experts, str) else spec.experts)
    if variant.merge.method == "weighted":
        wanted |= set(variant.merge.weights)
    elif variant.merge.method != "seed":
        wanted |= set(models)
    if variant.shared != "merged":
        wanted |= set(models)
    return tuple(model for model in models if model in wanted)


def mixture_config(dense: ModelConfig, experts: Sequence[str], variant: Variant) -> ModelConfig:
    """Describe the mixture of these dense models, the seed's first; a dense config when all is merged.

    Raises InvalidInput when the variant does not fit them, or a name is used twice.
    """
    where = f"variant {variant.name!r}"
    problems = list(variant.problems())
    if not experts or len(set(experts)) != len(experts):
        remedy = "to have an expert twice, repeat it in the variant's list of experts"
        problems.append(Problem("experts", list(experts), "must be at least one name, each used once", remedy))
    problems = problems or [
        *_unknown_models(variant, experts),
        *_router_std_problems(variant, dense.d_model),
        *_scale_problems(variant, dense),
    ]
    if problems:
        raise InvalidInput(where, problems)
    sources = variant_sources(variant, experts)
    attention, ffn = variant.attention, variant.ffn
    target = replace(
        dense,
        attention=None if attention == "merged" else _attention_experts(attention, sources),
        ffn=None if ffn == "merged" else _ffn_experts(ffn, sources, dense.n_layers),
        shared=None if variant.shared == "merged" else variant.shared,
        router_input=variant.router_input,
    )
    target = replace(target, experts=sources if target.is_mixture else ()).checked(where)
    if ffn != "merged" and ffn.scale == "gate":
        return with_gains(target)
    return target


def with_gains(target: ModelConfig, gains: Sequence[float] | None = None) -> ModelConfig:
    """The same mixture, its FFN gates multiplied per layer: by `gains`, or by what an untrained router needs."""
    assert target.ffn is not None, "only FFN experts have a gain"
    if gains is None:
        at_layer = [target.ffn_at(layer) for layer in range(target.n_layers)]
        gains = [1.0 if experts is None else float(start_factor(experts)) for experts in at_layer]
    gain = tuple(gains) if any(value != 1 for value in gains) else ()
    return replace(target, ffn=replace(target.ffn, gain=gain)).checked("gains")


def _unknown_models(variant: Variant, models: Sequence[str]) -> Iterator[Problem]:
    for part in PARTS:
        spec = getattr(variant, part)
        if spec != "merged" and not isinstance(spec.experts, str):
            for unknown in dict.fromkeys(name for name in spec.experts if name not in models):
                yield Problem(f"{part}.experts", unknown, "is none of the dense models", nearest(unknown, models))
    for name in variant.merge.weights:
        if name not in models:
            yield Problem("merge.weights", name, "is none of the dense models", nearest(name, models))


MAX_LOGIT_STD = 2.0
"""Of four experts the largest probability is 2/3 on average then; at sqrt(D), the std of entries of std 1, it is 1."""


def _router_std_problems(variant: Variant, d_model: int) -> Iterator[Problem]:
    logit_std = variant.router_std * sqrt(d_model)
    if variant.router_init != "zero" and logit_std > MAX_LOGIT_STD:
        reason = (
            f"gives logits of std {logit_std:.3g} (a router reads vectors of squared length d_model, {d_model}); above"
            f" {MAX_LOGIT_STD:g} the gate is saturated before any training, and most experts get neither tokens nor"
            " gradient"
        )
        most = MAX_LOGIT_STD / sqrt(d_model)
        yield Problem("router_std", variant.router_std, reason, f"set it to {most:.2g} or less, as 0.02")


def _scale_problems(variant: Variant, dense: ModelConfig) -> Iterator[Problem]:
    if variant.ffn != "merged" and variant.ffn.scale == "weights" and not dense.is_swiglu:
        form = f"activation: {dense.activation}, gated: {dense.gated}, ffn_bias: {dense.ffn_bias}"
        reason = f"scales the three matrices of a SwiGLU without biases alike, and this model has {form}"
        yield Problem("ffn.scale", "weights", reason, "experts scales the output of any FFN; gate its gates")


def _slots(spec: AttentionSpec | FFNSpec, sources: tuple[str, ...]) -> tuple[str, ...]:
    return sources if isinstance(spec.experts, str) else spec.experts


def _attention_experts(spec: AttentionSpec, sources: tuple[str, ...]) -> AttentionExperts:
    slots = _slots(spec, sources)
    return AttentionExperts(
        n_experts=len(slots),
        top_k=len(slots) if spec.top_k is None else spec.top_k,
        kv=spec.kv,
        gate=spec.gate,
        slots=() if slots == sources else slots,
        layers=spec.layers,
        dense_router_gradient=spec.dense_router_gradient,
    )


def _ffn_experts(spec: FFNSpec, sources: tuple[str, ...], n_layers: int) -> FFNExperts:
    slots = _slots(spec, sources)
    n_experts = len(slots) * spec.split
    return FFNExperts(
        n_experts=n_experts,
        top_k=n_experts if spec.routing == "soft" else spec.top_k,
        gate=spec.gate,
        slots=() if slots == sources else slots,
        layers=spec.layers,
        soft_layers=spec.soft_layers,
        split=spec.split,
        shared_expert=spec.shared_expert,
        capacity_factor=spec.capacity_factor,
        balance=spec.balance,
        dense_router_gradient=spec.dense_router_gradient,
    )
