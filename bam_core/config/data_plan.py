"""How the shares of a training's data change while it trains: by a plan (`Anneal`) or by the losses (`Adaptive`).

Where neither is given, the shares of `TrainConfig` hold from the first step to the last; otherwise they are the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from bam_core.config.fields import choice
from bam_core.errors import Problem

SHAPES = ("linear", "cosine", "step")
RULES = ("excess_loss", "loss_slope")
REFERENCES = ("specialists", "seed", "none")
SUM_TOLERANCE = 1e-6
"""How far the sum of shares may be from 1."""


@dataclass(frozen=True)
class Anneal:
    """Shares go from those of the phase to `end` between the fractions `begin` and `until` of the steps.

    shape: on a straight line, along half a cosine, or in one step half-way. All three give a domain the same rows on
    the whole.
    """

    end: Mapping[str, float]
    shape: Literal["linear", "cosine", "step"] = "linear"
    begin: float = 0.0
    until: float = 1.0

    def problems(self) -> Iterator[Problem]:
        yield from shares_problems(self.end, "end")
        yield from choice("shape", self.shape, SHAPES)
        for name in ("begin", "until"):
            if not 0 <= getattr(self, name) <= 1:
                yield Problem(name, getattr(self, name), "must be between 0 and 1")
        if not self.begin < self.until:
            yield Problem("until", self.until, f"must be above where the change begins, {self.begin:g}")


@dataclass(frozen=True)
class Adaptive:
    """Every so often the shares follow the model's loss on each domain; `bam_core.train.adapt` has the formula.

    rule: what raises a domain's share: `excess_loss`, how far the loss is above the reference; `loss_slope`, how far
    it fell since the update before.
    every: steps between two updates; below 1, as a fraction of the steps. rate: per nat. floor: of each share.
    eval_tokens: of each domain at most, from training text that is not trained on.
    reference: whose loss: of each domain's own dense model, of the seed, or 0. Of `loss_slope` none.
    """

    rule: Literal["excess_loss", "loss_slope"] = "excess_loss"
    every: float = 0.05
    rate: float = 1.0
    floor: float = 0.05
    eval_tokens: int = 4096
    reference: Literal["specialists", "seed", "none"] = "specialists"

    @property
    def compares(self) -> bool:
        """Whether other models are measured too."""
        return self.rule == "excess_loss" and self.reference != "none"

    def steps_between(self, n_steps: int) -> int:
        """Steps between two updates of a run of n_steps."""
        return max(1, round(self.every * n_steps if self.every < 1 else self.every))

    def problems(self, n_domains: int | None = None) -> Iterator[Problem]:
        """n_domains: how many share the data, where that is known."""
        yield from choice("rule", self.rule, RULES)
        yield from choice("reference", self.reference, REFERENCES)
        if not (isfinite(self.every) and self.every > 0):
            yield Problem("every", self.every, "must be above 0: steps, or below 1 a fraction of them")
        elif self.every > 1 and self.every != int(self.every):
            yield Problem("every", self.every, "must be whole steps, or below 1 a fraction of them")
        if not (isfinite(self.rate) and self.rate >= 0):
            yield Problem("rate", self.rate, "must be 0 or more")
        if not 0 <= self.floor <= 1:
            yield Problem("floor", self.floor, "must be between 0 and 1")
        elif n_domains and self.floor * n_domains > 1 + SUM_TOLERANCE:
            most = f"must be at most {1 / n_domains:.4g}: {n_domains} domains share the data"
            yield Problem("floor", self.floor, most)
        if self.eval_tokens < 1:
            yield Problem("eval_tokens", self.eval_tokens, "must be at least 1")


def shares_problems(shares: Mapping[str, float], path: str = "shares") -> Iterator[Problem]:
    """What is wrong with a data mixture: a negative share, or shares that do not sum to 1 (to 1e-6)."""
    for name, share in shares.items():
        if not (isinstance(share, int | float) and isfinite(share) and share >= 0):
            yield Problem(f"{path}.{name}", share, "must be 0 or more")
    total = sum(share for share in shares.values() if isinstance(share, int | float))
    if abs(total - 1) > SUM_TOLERANCE:
        yield Problem(path, dict(shares), f"must sum to 1, and sum to {total:g}")


def plan_problems(shares: Mapping[str, float], anneal: Anneal | None, adaptive: Adaptive | None) -> Iterator[Problem]:
    """What is wrong with how the shares change, under the names of `TrainConfig`'s fields."""
    if anneal is not None:
        yield from (problem.under("anneal") for problem in anneal.problems())
    if adaptive is not None:
        yield from (problem.under("adaptive") for problem in adaptive.problems(len(shares)))
        if anneal is not None:
            yield Problem("adaptive", adaptive, "shares follow a plan or the losses, not both")
        for name, share in shares.items():
            if share == 0:
                yield Problem(f"shares.{name}", share, "must be above 0 where shares adapt", "leave the domain out")


def read_plan(data: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a `TrainConfig` with the objects of this module in place of their JSON."""
    made = dict(data)
    for name, kind in (("anneal", Anneal), ("adaptive", Adaptive)):
        if isinstance(made.get(name), Mapping):
            made[name] = kind(**made[name])
    return made
