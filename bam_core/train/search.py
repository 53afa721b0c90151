"""A search over numbers of a training phase: what is tried, when a trial stops, and which was best.

Trial i is a function of (seed, i), so more trials never change those before. Trials stop by asynchronous successive
halving (ASHA, arXiv 1810.05934, Algorithm 2, in its stopping form): at each rung, a fraction of the steps, a trial goes
on if its held-out loss is among the best 1/reduction of those that have been there. One after another, as in one
process, the outcome depends on nothing else; side by side, it also depends on who was at a rung first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import exp, isfinite, log
from random import Random
from typing import Any, Literal

import numpy as np

from bam_core.errors import Problem
from bam_core.protocols import TrialEnd
from bam_core.seeds import child_seed

KINDS = ("uniform", "log_uniform", "choice")
SIGNIFICANT_DIGITS = 4
"""Of a sampled number: what a person can copy, far above the last digits, in which exp and log differ by machine."""
WHOLE = frozenset({"batch_tokens"})
"""Fields of a phase that are counts."""
SHARES = frozenset({"shares", "anneal.end"})
"""Fields of a phase that are shares of domains, which sum to 1."""


@dataclass(frozen=True)
class Space:
    """Where a number is searched: between two values, evenly or on a logarithmic scale, or one of several."""

    kind: Literal["uniform", "log_uniform", "choice"]
    values: tuple[float, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[float]]) -> Space:
        [(kind, values)] = data.items()
        assert kind in KINDS, f"{kind!r} is none of {KINDS}"
        return cls(kind, tuple(values))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, list[float]]:
        return {self.kind: list(self.values)}

    def problems(self) -> Iterator[Problem]:
        values = list(self.values)
        if not all(isfinite(value) for value in values):
            yield Problem(self.kind, values, "must hold finite numbers")
        elif self.kind == "choice":
            if len(set(values)) < 2 or len(set(values)) < len(values):
                yield Problem(self.kind, values, "must list two or more different numbers")
        elif len(values) != 2 or not values[0] < values[1]:
            yield Problem(self.kind, values, "must read [lowest, highest]")
        elif self.kind == "log_uniform" and values[0] <= 0:
            yield Problem(self.kind, values, "must be above 0: it has a logarithm", "use uniform")

    def at(self, u: float) -> float:
        """The value at `u` of the way through, 0 <= u < 1."""
        if self.kind == "choice":
            return self.values[int(u * len(self.values))]
        low, high = self.values
        value = low + u * (high - low) if self.kind == "uniform" else exp(log(low) + u * (log(high) - log(low)))
        return min(high, max(low, float(f"{value:.{SIGNIFICANT_DIGITS}g}")))


def sample(spaces: Mapping[str, Space], seed: int, index: int) -> dict[str, float]:
    """The values of trial `index`. Another key or another trial never shifts them."""
    return {key: space.at(Random(child_seed(seed, f"{index}/{key}")).random()) for key, space in spaces.items()}


def with_values(phase: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, Any]:
    """The JSON of a `TrainConfig` with values of its fields; `shares.<domain>` and `adaptive.rate` are some too.

    Shares are weights: each is added to what the domain has, and all of a group are then divided by their sum.
    """
    made = deepcopy(dict(phase))
    groups: dict[str, dict[str, Any]] = {"": made, "shares": made["shares"]}
    groups |= {name: made[name] for name in ("anneal", "adaptive") if name in made}
    groups |= {"anneal.end": made["anneal"]["end"]} if "anneal" in made else {}
    for name, value in values.items():
        group, _, last = name.rpartition(".")
        assert group in groups, f"{name!r} is no field of this phase"
        here = groups[group]
        if group in SHARES:
            here[last] = here.get(last, 0.0) + value
        else:
            here[last] = int(value) if name in WHOLE else value
    for group in SHARES & {name.rpartition(".")[0] for name in values}:
        shares = groups[group]
        total = sum(shares.values())
        shares |= {domain: share / total for domain, share in shares.items()}
    return made | {"shares": dict(sorted(made["shares"].items()))}


def rung_steps(n_steps: int, n_rungs: int, reduction: int) -> tuple[int, ...]:
    """The steps at which a trial is judged: each `reduction` times the one before, and the last step."""
    first = n_steps // reduction ** (n_rungs - 1)
    assert first >= 1, f"{n_steps} steps are too few for {n_rungs} rungs {reduction} times apart"
    return (*(first * reduction**rung for rung in range(n_rungs - 1)), n_steps)


def losses_as_metrics(losses: Sequence[float]) -> dict[str, float]:
    """As `protocols.Searcher` wants them of a trial that is under way."""
    return {f"loss_{rung}": loss for rung, loss in enumerate(losses)}


def losses_of_metrics(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    """The inverse; empty for metrics that judge nothing."""
    return tuple(metrics[f"loss_{rung}"] for rung in range(len(metrics)) if f"loss_{rung}" in metrics)


@dataclass
class Cutoffs:
    """What trials have reached at each rung, by name; decides who goes on."""

    reduction: int
    _seen: dict[int, dict[str, float]] = field(default_factory=dict)

    def stops(self, trial: str, rung: int, loss: float) -> bool:
        """Take note of a trial at a rung. Asked again for the same trial and rung, it lets the trial go on."""
        others = self._seen.setdefault(rung, {})
        if trial in others:
            return False
        # Of the negatives, as Ray computes it: the same to the last bit, so that ties end alike.
        above = (1 - 1 / self.reduction) * 100
        stops = bool(others) and -loss < np.percentile([-other for other in others.values()], above)
        others[trial] = loss
        return bool(stops)


def best(ends: Sequence[TrialEnd]) -> TrialEnd | None:
    """Of the trials that got furthest, the one with the lowest loss there (the first of equals); None without any."""
    judged = [end for end in ends if end.losses and end.status != "diverged"]
    return min(judged, key=lambda end: (-len(end.losses), end.losses[-1]), default=None)
