"""Shares that follow the losses: the rule, as arithmetic on numbers.

Every so many steps (`Adaptive.every`) the loss of each domain is measured on text that is not trained on, and the share
s_d of each of n domains becomes

    s_d <- floor + (1 - n floor) s_d exp(rate x_d) / sum_e s_e exp(rate x_e)

the exponentiated-gradient update of DoReMi (arXiv 2305.10429, Algorithm 1), whose smoothing towards uniform is the
floor. What a domain is paid for, x_d, is by the rule: its loss less that of the reference (`excess_loss`, DoReMi's; not
cut off at 0: what all domains have in common has no effect), or how far its loss has fallen since the update before
(`loss_slope`: learning progress, close to ODM, arXiv 2312.02406). Before the first update the shares are those of the
phase.

A segment, from one update to the next, takes whole rows of each domain, nearest to s_d and what earlier rounding left
owing: its shares are these rows over all. So they are exact, and one may be below the floor by a part of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp
from typing import Any

from bam_core.config import ModelConfig, TrainConfig
from bam_core.data.schedule import whole_parts
from bam_core.nn.costs import training_flops

Losses = Mapping[str, float]
"""Domain -> mean negative log likelihood per token, in nats."""


@dataclass(frozen=True)
class Segment:
    """The steps from one update to the next. losses: at its start. aim: the shares before rounding to whole rows."""

    step: int
    n_steps: int
    losses: Losses
    aim: Mapping[str, float]
    rows: Mapping[str, int]

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.rows.values())
        return {domain: count / total for domain, count in self.rows.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Segment:
        return cls(**data)


def next_segment(config: TrainConfig, path: Sequence[Segment], losses: Losses, reference: Losses) -> Segment:
    """The segment after those of `path`, where the losses are these. reference: of each domain; {} for 0."""
    adaptive = config.adaptive
    assert adaptive is not None, "the shares of this phase do not adapt"
    step = path[-1].step + path[-1].n_steps if path else 0
    n_steps = min(adaptive.steps_between(config.n_steps), config.n_steps - step)
    assert n_steps > 0, f"the run ends at step {config.n_steps}"
    if not path:
        aim = {domain: config.shares[domain] for domain in config.domains}
    else:
        before = path[-1]
        if adaptive.rule == "loss_slope":
            paid = {domain: before.losses[domain] - losses[domain] for domain in config.domains}
        else:
            paid = {domain: losses[domain] - reference.get(domain, 0.0) for domain in config.domains}
        aim = updated(before.aim, paid, adaptive.rate, adaptive.floor)
    owed = [sum(_owed(segment, domain) for segment in path) for domain in config.domains]
    parts = whole_parts(n_steps * config.rows_per_batch, [aim[domain] for domain in config.domains], owed)
    return Segment(step, n_steps, dict(losses), aim, dict(zip(config.domains, parts, strict=True)))


def updated(shares: Mapping[str, float], paid: Losses, rate: float, floor: float) -> dict[str, float]:
    """The formula above. The largest exponent is taken out, so that nothing overflows."""
    highest = max(rate * paid[domain] for domain in shares)
    weights = {domain: share * exp(rate * paid[domain] - highest) for domain, share in shares.items()}
    total = sum(weights.values())
    left = max(0.0, 1 - len(shares) * floor)
    return {domain: floor + left * weight / total for domain, weight in weights.items()}


def _owed(segment: Segment, domain: str) -> float:
    """Rows of the aim that the segment did not give."""
    return segment.aim[domain] * sum(segment.rows.values()) - segment.rows[domain]


def forward_flops(model: ModelConfig, tokens: int, seq_len: int) -> int:
    """FLOPs of one forward pass over `tokens` in rows of seq_len: a third of training on them."""
    if model.ffn is not None and model.ffn.dense_router_gradient:  # a matter of training alone
        model = replace(model, ffn=replace(model.ffn, dense_router_gradient=False))
    return training_flops(model, tokens, seq_len) // 3


def judging_flops(model: ModelConfig, dense: ModelConfig, config: TrainConfig, tokens: int | None = None) -> int:
    """FLOPs of measuring losses in a whole run: the model at each update, and each domain's reference once.

    tokens: of all domains together, at one update; by default as many as the phase allows.
    """
    adaptive = config.adaptive
    if adaptive is None:
        return 0
    rows = max(1, adaptive.eval_tokens // config.seq_len)
    tokens = rows * config.seq_len * len(config.domains) if tokens is None else tokens
    n_times = -(-config.n_steps // adaptive.steps_between(config.n_steps))
    own = n_times * forward_flops(model, tokens, config.seq_len)
    return own + (forward_flops(dense, tokens, config.seq_len) if adaptive.compares else 0)
