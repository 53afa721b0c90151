"""What one phase of training is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from typing import Any, Literal

from bam_core.config.fields import choice, identity, is_positive, positive_ints
from bam_core.errors import InvalidInput, Problem


@dataclass(frozen=True)
class TrainConfig:
    """One phase of training. All of it defines the result, so all of it enters the artifact's key.

    tokens, batch_tokens: counted in predicted tokens; batch_tokens is the global batch, whatever the worker count.
    shares: fraction of rows drawn from each domain; sums to 1.
    balance_rate: how far a balancing bias moves in a step (`FFNExperts.balance`).
    router_bias_frac: fraction of the steps over which `router_bias` goes to 0 on a straight line.
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

    @property
    def n_steps(self) -> int:
        return ceil(self.tokens / self.batch_tokens)

    @property
    def rows_per_batch(self) -> int:
        return self.batch_tokens // self.seq_len

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
        for name in ("warmup_frac", "min_lr_frac", "router_bias_frac"):
            if not 0 <= getattr(self, name) <= 1:
                yield Problem(name, getattr(self, name), "must be between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield Problem(name, getattr(self, name), "must be at least 0 and below 1")
        if not is_positive(self.gumbel_min):
            yield Problem("gumbel_min", self.gumbel_min, "must be above 0")
        for name in ("weight_decay", "load_balancing_coef", "z_loss_coef", "balance_rate", "gumbel_rate"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                yield Problem(name, getattr(self, name), "must be 0 or more")
        if not self.grad_clip > 0:
            yield Problem("grad_clip", self.grad_clip, "must be above 0")
        yield from choice("dtype", self.dtype, ("bf16", "fp32", "fp64"))
        yield from shares_problems(self.shares)

    def to_json(self) -> dict[str, Any]:
        # Sorted, since the order of domains decides the order of batches, and a key does not see a mapping's order.
        return asdict(self) | {"shares": dict(sorted(self.shares.items()))}

    def identity(self) -> dict[str, Any]:
        """What a key is made of: `to_json` without what is at its default. `from_json` reads both."""
        return identity(self) | {"shares": dict(sorted(self.shares.items()))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "training phase") -> TrainConfig:
        config = cls(**data)
        problems = list(config.problems())
        if problems:
            raise InvalidInput(where, problems)
        return config


def shares_problems(shares: Mapping[str, float], path: str = "shares") -> Iterator[Problem]:
    """What is wrong with a data mixture: a negative share, or shares that do not sum to 1 (to 1e-6)."""
    for name, share in shares.items():
        if not (isinstance(share, int | float) and isfinite(share) and share >= 0):
            yield Problem(f"{path}.{name}", share, "must be 0 or more")
    total = sum(share for share in shares.values() if isinstance(share, int | float))
    if abs(total - 1) > 1e-6:
        yield Problem(path, dict(shares), f"must sum to 1, and sum to {total:g}")
