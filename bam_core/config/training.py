"""What one phase of training is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from typing import Any, Literal

from bam_core.config.data_plan import Adaptive, Anneal, plan_problems, read_plan, shares_problems
from bam_core.config.fields import choice, identity, is_positive, positive_ints
from bam_core.errors import InvalidInput, Problem

PARTS = ("router", "attention", "ffn", "shared")
FREEZABLE = ("router", "expert", "shared")
AT_LEAST_0 = (
    *("weight_decay", "load_balancing_coef", "z_loss_coef", "balance_rate", "gumbel_rate"),
    *(f"{part}_lr_factor" for part in PARTS),
)


@dataclass(frozen=True)
class TrainConfig:
    """One phase of training. All of it defines the result, so all of it enters the artifact's key.

    tokens, batch_tokens: counted in predicted tokens; batch_tokens is the global batch, whatever the worker count.
    shares: fraction of rows drawn from each domain; sums to 1. anneal, adaptive: how they change from there, if at all.
    balance_rate: how far a balancing bias moves in a step (`FFNExperts.balance`).
    router_bias_frac: fraction of the steps over which `router_bias` goes to 0 on a straight line.
    *_lr_factor: of routers, attention experts, FFN experts and all else; of a dense model all is shared.
    *_freeze_frac: the fraction of the steps, from the first on, in which that part stands still.
    collapse_*: when an expert with too little to do is an alarm, and whether that stops the run (`train.collapse`).
    attention_soft_frac: fraction of the steps over which a top-k attention gate goes from soft to itself.
    gumbel_rate, gumbel_min: the temperature of `sample_top1` at step t is max(gumbel_min, exp(-gumbel_rate * t)).
    """

    tokens: int
    batch_tokens: int
    lr: float
    shares: Mapping[str, float]
    seq_len: int
    seed: int = 0
    warmup_frac: float = 0.02
    min_lr_frac: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    load_balancing_coef: float = 0.01
    z_loss_coef: float = 0.001
    dtype: Literal["bf16", "fp32", "fp64"] = "bf16"
    balance_rate: float = 1e-3
    router_bias_frac: float = 0.5
    gumbel_rate: float = 1e-4
    gumbel_min: float = 0.5
    router_lr_factor: float = 1.0
    attention_lr_factor: float = 1.0
    ffn_lr_factor: float = 1.0
    shared_lr_factor: float = 1.0
    router_freeze_frac: float = 0.0
    expert_freeze_frac: float = 0.0
    shared_freeze_frac: float = 0.0
    attention_soft_frac: float = 0.0
    anneal: Anneal | None = None
    adaptive: Adaptive | None = None
    collapse_stop: bool = False
    collapse_min_load: float = 0.01
    collapse_for_frac: float = 0.1

    @property
    def domains(self) -> tuple[str, ...]:
        """Those whose text is read, sorted: they have a share at some step."""
        ends = self.anneal.end if self.anneal is not None else {}
        return tuple(sorted(name for name in {*self.shares, *ends} if self.shares.get(name, 0) + ends.get(name, 0) > 0))

    @property
    def n_steps(self) -> int:
        return ceil(self.tokens / self.batch_tokens)

    @property
    def rows_per_batch(self) -> int:
        return self.batch_tokens // self.seq_len

    @property
    def has_rates_by_part(self) -> bool:
        """Whether some part of the model has a learning rate of its own at some step."""
        return any(getattr(self, f"{part}_lr_factor") != 1 for part in PARTS) or any(
            getattr(self, f"{part}_freeze_frac") for part in FREEZABLE
        )

    def problems(self) -> Iterator[Problem]:
        wrong = list(positive_ints(self, ("tokens", "batch_tokens", "seq_len")))
        yield from wrong
        if not wrong and self.batch_tokens % self.seq_len:
            yield Problem(
                "batch_tokens",
                self.batch_tokens,
                f"must be a multiple of the sequence length, {self.seq_len}",
            )
        if not (isfinite(self.lr) and self.lr > 0):
            yield Problem("lr", self.lr, "must be a positive number")
        fractions = ("warmup_frac", "min_lr_frac", "router_bias_frac", "collapse_min_load", "collapse_for_frac")
        for name in (*fractions, "attention_soft_frac", *(f"{part}_freeze_frac" for part in FREEZABLE)):
            if not 0 <= getattr(self, name) <= 1:
                yield Problem(name, getattr(self, name), "must be between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield Problem(name, getattr(self, name), "must be at least 0 and below 1")
        if not is_positive(self.gumbel_min):
            yield Problem("gumbel_min", self.gumbel_min, "must be above 0")
        for name in AT_LEAST_0:
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                yield Problem(name, getattr(self, name), "must be 0 or more")
        if not self.grad_clip > 0:
            yield Problem("grad_clip", self.grad_clip, "must be above 0")
        yield from choice("dtype", self.dtype, ("bf16", "fp32", "fp64"))
        yield from shares_problems(self.shares)
        yield from plan_problems(self.shares, self.anneal, self.adaptive)

    def to_json(self) -> dict[str, Any]:
        # Sorted, since the order of domains decides the order of batches, and a key does not see a mapping's order.
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return said | {"shares": dict(sorted(self.shares.items()))}

    def identity(self) -> dict[str, Any]:
        """What a key is made of: `to_json` without what is at its default. `from_json` reads both."""
        return identity(self) | {"shares": dict(sorted(self.shares.items()))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "training phase") -> TrainConfig:
        config = cls(**read_plan(data))
        problems = list(config.problems())
        if problems:
            raise InvalidInput(where, problems)
        return config
