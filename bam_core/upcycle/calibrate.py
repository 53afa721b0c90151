"""Before a mixture is written: fit its routers and scale on text, and say what it will be at step 0.

The mixture is run as it will be, layer by layer, on some rows of every domain. At each router the vectors that it will
read are at hand: a fitted initialiser (`router_init.FITS`) gets half of the rows, the other half tells how often the
best-scored expert is that of a token's own domain, for every initialiser. Where the variant makes up for small gates
(`scale: gate` or `experts`), the factor is measured there too: split / (mean sum of a token's gates). Then the stream
goes on through the layer as it will be. The dense models go along, to say how far the mixture is from each of them.

Invariant: a function of the models, the rows and the seed; what it reports holds of the mixture made with its result.
Memory: one tensor of the mixture at a time (`walk`), and the streams: two per domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, inf, isfinite, isinf
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.config.experts import SUM_TO_ONE
from bam_core.errors import InvalidInput, Problem
from bam_core.nn.block import Branch
from bam_core.nn.routing import route, router_logits
from bam_core.nn.shapes import ffn_names, tensor_shapes
from bam_core.nn.shared import shared_mix
from bam_core.upcycle.apply import Fitted, coverage, make_tensor
from bam_core.upcycle.router_init import FITS, condition
from bam_core.upcycle.rules import OUTPUT, Rule
from bam_core.upcycle.variants import Variant, with_gains
from bam_core.upcycle.walk import Tensors, Walk, stored

MAX_CONDITION = 5.0
"""Above it a router tells some experts apart far worse than others; random rows of D >> E entries are below 2."""

MAX_NLL = 700.0
"""exp of more is no float."""

BRANCHES: dict[Branch, str] = {"attn": "attention", "ffn": "ffn"}


@dataclass(frozen=True)
class Calibration:
    """fitted: for `upcycle`. gains: per layer, for `with_gains`; empty where the gates are left as they are.

    report: JSON.
      tokens_per_domain
      layers      per layer: {attention,ffn}_gate_sum: sum of a token's gates, mean over tokens and domains;
                  ffn_shrink: by what the FFN branch is scaled down, gate sum / split (a shared expert not counted);
                  both before any gain. *_accuracy: fraction of the held-out tokens of domains that have an expert
                  whose best-scored expert is their own domain's. *_condition: of the router (`router_init.condition`).
                  distance: domain -> |x_mix - x_expert| / |x_expert| of the residual stream after the layer, on text
                  of the domain, from its own expert. None where there is no router, or no finite value.
      shared      where what experts share is routed, of its router: accuracy and condition as above; own: the mean part
                  of a token's own dense model in its mix, on the same held-out tokens
      perplexity  dense model or `mixture` -> domain -> perplexity, and their `average`
      seed        which of the dense models is the seed
      warnings    sentences
    """

    fitted: Fitted
    gains: tuple[float, ...]
    report: dict[str, Any]


@torch.no_grad()
def calibrate(
    target: ModelConfig,
    rules: Sequence[Rule],
    sources: Mapping[str, TensorSource],
    variant: Variant,
    rows: Mapping[str, Tensor],
    seed: int,
) -> Calibration:
    """Run the mixture that `upcycle(target, rules, sources, seed)` makes on `rows`: domain -> tokens_BT, one token more
    than are predicted, all domains of one T. A dense model is the expert of the domain that has its name."""
    inputs = {domain: tokens_BT[:, :-1] for domain, tokens_BT in rows.items()}
    targets = {domain: tokens_BT[:, 1:] for domain, tokens_BT in rows.items()}
    dense = target.dense()
    claims = coverage(tensor_shapes(target), rules, sources).claims
    mixture = _Mixture(target, claims, sources, variant, inputs, seed)
    own = {name: Walk(dense, stored(sources[name]), {name: inputs[name]}) for name in rows if name in sources}
    layers = []
    for layer in range(target.n_layers):
        found = mixture.advance(layer)
        mixed = mixture.walk.split(mixture.walk.x_BTD)
        for walk in own.values():
            walk.advance(layer)
        layers.append(found | {"distance": {name: _distance(mixed[name], walk.x_BTD) for name, walk in own.items()}})
    nll = {name: walk.nll({name: targets[name]}) for name, walk in own.items()}
    for name in sources:
        others = {domain: tokens_BT for domain, tokens_BT in inputs.items() if domain != name}
        nll[name] = nll.get(name, {}) | _dense_nll(dense, sources[name], others, targets)
    nll = {name: nll[name] for name in sources} | {"mixture": mixture.walk.nll(targets)}
    report = {
        "tokens_per_domain": {domain: tokens_BT.numel() for domain, tokens_BT in targets.items()},
        "seed": next(iter(sources)),
        "layers": layers,
        **({} if target.shared is None else {"shared": mixture.shared}),
        "perplexity": {name: _perplexities(found, tuple(rows)) for name, found in nll.items()},
        "warnings": mixture.warnings(),
    }
    return Calibration(Fitted(mixture.routers, mixture.factors), mixture.gains, report)


def halves(h_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """h_ND to fit on and h_ND to measure on: every other row, or of a single row the two halves."""
    if len(h_BTD) > 1:
        return h_BTD[::2].flatten(0, 1), h_BTD[1::2].flatten(0, 1)
    middle = (h_BTD.shape[1] + 1) // 2
    return h_BTD[0, :middle], h_BTD[0, middle:]


class _Mixture:
    """The mixture on its way through the layers, its routers and factors found as it goes."""

    def __init__(
        self,
        target: ModelConfig,
        claims: Mapping[str, Rule],
        sources: Mapping[str, TensorSource],
        variant: Variant,
        inputs: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        self.routers: dict[str, Tensor] = {}
        self.factors: dict[str, float] = {}
        self._target, self._variant = target, variant
        scale = "none" if variant.ffn == "merged" else variant.ffn.scale
        self._scale, self._gains = scale, [1.0] * target.n_layers
        self._found: dict[str, float | None] = {}
        self._conditions: dict[Branch, list[float]] = {"attn": [], "ffn": []}
        self.shared: dict[str, float | None] = {}
        fitted = Fitted(self.routers, self.factors)  # a view: it has what is found later, too
        self._tensor: Tensors = lambda name: make_tensor(name, target, claims, sources, seed, fitted)
        self.walk = Walk(target, self._tensor, inputs, self._at_shared)

    @property
    def gains(self) -> tuple[float, ...]:
        is_scaled = self._scale == "gate" and any(gain != 1 for gain in self._gains)
        return tuple(self._gains) if is_scaled else ()

    def advance(self, layer: int) -> dict[str, float | None]:
        """Through one layer; what was measured there."""
        per_branch = [
            f"{branch}_{what}" for what in ("gate_sum", "accuracy", "condition") for branch in BRANCHES.values()
        ]
        self._found = dict.fromkeys((*per_branch, "ffn_shrink"))
        self.walk.advance(layer, self._at_branch)
        return self._found

    def _at_shared(self, text: dict[str, Tensor]) -> None:
        """Fit and measure the router of what experts share. text: domain -> m_BTD, what it reads."""
        models = self._target.experts
        half = {domain: halves(m_BTD) for domain, m_BTD in text.items() if domain in models}
        fit, held = ({domain: pair[i] for domain, pair in half.items()} for i in (0, 1))
        if self._variant.router_init in FITS:
            self.routers["shared.router"] = _fit(self._variant.router_init, models, fit)
        router_ED, shared = self._tensor("shared.router"), self._target.shared
        assert shared is not None, "nothing is shared by routing"
        own = [
            shared_mix(m_ND, router_ED, shared)[:, models.index(domain)].double().mean().item()
            for domain, m_ND in held.items()
        ]
        self.shared = {
            "accuracy": _accuracy(router_ED, models, held),
            "own": fsum(own) / len(own) if own else None,
            "condition": _finite(condition(router_ED)),
        }

    def _at_branch(self, layer: int, part: Branch, h_BTD: Tensor) -> None:
        experts = self._target.attention_at(layer) if part == "attn" else self._target.ffn_at(layer)
        if experts is None:
            return
        name = f"blocks.{layer}.{part}.router"
        slots, split = self._slots(experts)
        half = {domain: halves(rows_BTD) for domain, rows_BTD in self.walk.split(h_BTD).items() if domain in slots}
        fit, held = ({domain: pair[i] for domain, pair in half.items()} for i in (0, 1))
        if self._variant.router_init in FITS:
            self.routers[name] = _fit(self._variant.router_init, slots, fit)
        router_ED = self._tensor(name)
        gate_sum = self._gate_sum(experts, router_ED, h_BTD)
        self._conditions[part].append(condition(router_ED))
        self._found[f"{BRANCHES[part]}_gate_sum"] = gate_sum
        self._found[f"{BRANCHES[part]}_accuracy"] = _accuracy(router_ED, slots, held)
        self._found[f"{BRANCHES[part]}_condition"] = _finite(self._conditions[part][-1])
        if part == "ffn":
            self._found["ffn_shrink"] = gate_sum / split
            self._make_up(layer, split / gate_sum)

    def _make_up(self, layer: int, factor: float) -> None:
        """Bring the FFN branch to the dense scale, in the way of the variant."""
        if self._scale == "gate":
            self._gains[layer] = factor
            self.walk.config = with_gains(self._target, self._gains)
        elif self._scale == "experts":
            self.factors |= {f"blocks.{layer}.ffn.{name}": factor for name in OUTPUT if name in ffn_names(self._target)}

    def _slots(self, experts: AttentionExperts | FFNExperts) -> tuple[tuple[str, ...], int]:
        """The dense model of each row of the router, and how many rows a dense FFN is cut into."""
        split = experts.split if isinstance(experts, FFNExperts) else 1
        return tuple(slot for slot in experts.slots or self._target.experts for _ in range(split)), split

    def _gate_sum(self, experts: AttentionExperts | FFNExperts, router_ED: Tensor, h_BTD: Tensor) -> float:
        if experts.gate in SUM_TO_ONE or experts.top_k == experts.n_experts:
            return 1.0  # by construction; measured, it would be off by rounding
        sums_BT: Tensor = route(router_logits(h_BTD, router_ED), experts).weights_NK.double().sum(-1)
        means = [sums.mean().item() for sums in self.walk.split(sums_BT).values()]
        return fsum(means) / len(means)

    def warnings(self) -> list[str]:
        return [*self._condition_warnings(), *self._copy_warnings()]

    def _condition_warnings(self) -> Iterator[str]:
        for part, branch in BRANCHES.items():
            experts = self._target.attention if part == "attn" else self._target.ffn
            found = self._conditions[part]
            ties, high = sum(map(isinf, found)), [value for value in found if MAX_CONDITION < value < inf]
            if experts is not None and ties and experts.top_k < experts.n_experts:
                yield (
                    f"{branch} routers of {ties} of {len(found)} layers give some experts equal logits on every input, "
                    "and a top-k gate takes the first of them"
                )
            if high:
                yield (
                    f"{branch} routers of {len(high)} of {len(found)} layers tell some experts apart far worse than "
                    f"others: condition number up to {max(high):.3g}, above {MAX_CONDITION:g}"
                )

    def _copy_warnings(self) -> Iterator[str]:
        for part, branch in BRANCHES.items():
            experts = self._target.attention if part == "attn" else self._target.ffn
            if experts is None or self._variant.router_init not in FITS:
                continue
            copied = sorted({slot for slot in experts.slots if experts.slots.count(slot) > 1})
            if copied and experts.top_k < experts.n_experts:
                yield (
                    f"{branch} routers: copies of {', '.join(copied)} start with equal rows, so they tie, and a top-k "
                    "gate takes the first of them; router_init: random tells copies apart"
                )


def _fit(init: str, slots: Sequence[str], inputs: Mapping[str, Tensor]) -> Tensor:
    """router_ED: each domain's row to every slot of its expert; zeros to an expert that has no text."""
    if not inputs:
        raise InvalidInput(
            "calibration",
            [Problem("router_init", init, f"needs text of at least one of {', '.join(sorted(set(slots)))}")],
        )
    fitted = dict(zip(inputs, FITS[init](tuple(inputs.values())), strict=True))
    nothing_D = torch.zeros_like(next(iter(fitted.values())))
    return torch.stack([fitted.get(slot, nothing_D) for slot in slots])


def _accuracy(router_ED: Tensor, slots: Sequence[str], inputs: Mapping[str, Tensor]) -> float | None:
    """Mean over domains of the fraction of tokens whose best-scored expert is the domain's own."""
    found = []
    for domain, h_ND in inputs.items():
        own_E = torch.tensor([slot == domain for slot in slots])
        found.append(own_E[router_logits(h_ND, router_ED).argmax(-1)].double().mean().item())
    return fsum(found) / len(found) if found else None


def _dense_nll(
    dense: ModelConfig, source: TensorSource, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> dict[str, float]:
    if not inputs:
        return {}
    walk = Walk(dense, stored(source), inputs)
    for layer in range(dense.n_layers):
        walk.advance(layer)
    return walk.nll({domain: targets[domain] for domain in inputs})


def _perplexities(nll: Mapping[str, float], domains: Sequence[str]) -> dict[str, float | None]:
    found = {domain: exp(nll[domain]) if nll[domain] < MAX_NLL else None for domain in domains}
    finite = [value for value in found.values() if value is not None]
    return found | {"average": fsum(finite) / len(finite) if len(finite) == len(found) else None}


def _distance(mixed_BTD: Tensor, expert_BTD: Tensor) -> float | None:
    return _finite(float((mixed_BTD - expert_BTD).norm() / expert_BTD.norm()))


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if isfinite(value) else None
