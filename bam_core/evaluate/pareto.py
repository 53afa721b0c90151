"""What a model's attention costs and what it is worth in several forms, and which of them are worth having.

A form is Pareto-optimal if no other one is at least as good in perplexity, FLOPs, cache and speed, and better in one.
The first three are numbers; speed is measured, so one form counts as faster only if it was in every round.

FLOPs are those of decoding, which computes only the attention experts that a token has a gate for
(`bam_core.nn.decode`): how many these are is counted on the text that is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bam_core.config import AttentionExperts, ModelConfig, Sparser
from bam_core.evaluate.perplexity import DomainScore, average_perplexity
from bam_core.evaluate.routing import RoutingSums
from bam_core.nn.costs import cache_bytes_per_token, flops_by_operation, flops_per_token

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
PER_CHOSEN = ("queries", "scores", "weighted_values", "outputs")
"""Operations that an attention expert costs only where it is used. A later token may ask for any one's keys and values,
so those are made of all. Experts that share queries (`value_only`) are computed at once, and none is left out."""


@dataclass(frozen=True)
class Form:
    """One way to run a mixture's attention. sparser: None for as it is. threshold: of `AttentionExperts`."""

    sparser: Sparser | None = None
    threshold: float = 0.0


def attention_forms(attention: AttentionExperts, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, Form]:
    """Name -> a form that a trained mixture can take as it is: itself, and all that is cheaper.

    Thresholds above one in n_experts are left out: they could leave a token without any expert.
    """
    n, how = attention.n_experts, "soft" if attention.top_k == attention.n_experts else f"top-{attention.top_k}"
    forms = {how: Form()}
    forms |= {f"threshold {value:g}": Form(threshold=value) for value in thresholds if value * n <= 1}
    for top_k in (k for k in (2, 1) if k < attention.top_k):
        forms[f"top-{top_k}"] = Form(Sparser(top_k=top_k))
        if attention.gate == "softmax_topk":
            forms[f"top-{top_k}, renormalised"] = Form(Sparser(top_k=top_k, gate="softmax_topk_renorm"))
    if attention.kv == "expert":
        forms["shared keys and values"] = Form(Sparser(kv="shared"))
    return forms


@dataclass(frozen=True)
class Row:
    """One form of one model. perplexity: by domain. experts: attention experts that a token uses, a mean over layers.

    flops, cache_bytes: per token, the first one with the model's whole context to attend to. rates: new tokens per
    second in each round; round i is of one moment for all forms, so that what slows the machine slows all of them.
    """

    name: str
    perplexity: Mapping[str, float]
    average: float
    experts: float | None
    flops: float
    cache_bytes: int
    rates: tuple[float, ...] = ()

    @property
    def rate(self) -> float | None:
        return median(self.rates) if self.rates else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "perplexity": dict(self.perplexity),
            "average_perplexity": self.average,
            "attention_experts_per_token": self.experts,
            "flops_per_token": self.flops,
            "cache_bytes_per_token": self.cache_bytes,
            "tokens_per_s": self.rate,
            "tokens_per_s_of_rounds": list(self.rates),
        }


def row(name: str, model: ModelConfig, scores: Mapping[str, DomainScore], used_L: Sequence[float | None]) -> Row:
    """Without a speed. used_L: attention experts that a token used, for each layer; None where it is dense."""
    counted = [used for used in used_L if used is not None]
    return Row(
        name=name,
        perplexity={domain: score.perplexity for domain, score in scores.items()},
        average=average_perplexity(scores),
        experts=sum(counted) / len(counted) if counted else None,
        flops=used_flops_per_token(model, model.max_seq_len, used_L),
        cache_bytes=cache_bytes_per_token(model),
    )


def used_experts(sums: Iterable[RoutingSums], n_layers: int) -> list[float | None]:
    """For each layer the mean over all tokens of the attention experts that a token used; None where it is dense."""
    counts = [found.attention_used() for found in sums]
    used_L: list[float | None] = []
    for layer in range(n_layers):
        n_used, n_tokens = (sum(count[part][layer] for count in counts) for part in (0, 1))
        used_L.append(n_used / n_tokens if n_tokens else None)
    return used_L


def used_flops_per_token(config: ModelConfig, context: int, used_L: Sequence[float | None]) -> float:
    """`nn.costs.flops_per_token`, of attention experts only those that are used."""
    saved = 0.0
    for layer, used in enumerate(used_L):
        experts = config.attention_at(layer)
        if used is not None and experts is not None and experts.kv != "value_only":
            flops = flops_by_operation(config, context, layer=layer)
            per_chosen = sum(flops.get(name, 0) for name in PER_CHOSEN)
            saved += per_chosen * (1 - used / experts.n_experts)
    return flops_per_token(config, context) - saved


def dominates(one: Row, other: Row) -> bool:
    """Whether one is at least as good in everything, and better in something."""
    ours, theirs = _numbers(one), _numbers(other)
    if any(a > b for a, b in zip(ours, theirs, strict=True)) or is_faster(other, one):
        return False
    return ours != theirs or is_faster(one, other)


def is_faster(one: Row, other: Row) -> bool:
    """In every round."""
    return bool(one.rates) and all(a > b for a, b in zip(one.rates, other.rates, strict=True))


def optimal(rows: Sequence[Row]) -> list[bool]:
    """Of each row, whether no other one dominates it. Equal rows do not dominate each other."""
    return [not any(dominates(other, row) for other in rows) for row in rows]


def _numbers(row: Row) -> tuple[float, ...]:
    """The less the better."""
    return row.average, row.flops, row.cache_bytes
