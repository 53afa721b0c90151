"""What a model and a training phase are, as frozen values that count, check themselves and turn into JSON.

A `ModelConfig` without experts is a dense model; the same config with `attention` and/or `ffn` experts is a mixture.
Nothing here does I/O and nothing changes after construction: use `dataclasses.replace`.
Constraints live beside the fields (`problems`), so a recipe, a checkpoint and a Python caller get the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil, isfinite
from typing import Any, Literal

from bam_core.errors import InvalidInput, Problem, nearest

LAYOUT_VERSION = 1
"""Version of our tensor names and orientations; a checkpoint carries it, a change to the layout raises it."""

Gate = Literal["softmax_topk", "topk_softmax", "softmax_topk_renorm"]
GATES: tuple[str, ...] = ("softmax_topk", "topk_softmax", "softmax_topk_renorm")


def _choice(path: str, value: object, allowed: tuple[str, ...]) -> Iterator[Problem]:
    if value not in allowed:
        yield Problem(path, value, f"must be one of {', '.join(allowed)}", nearest(str(value), allowed))


def _positive_ints(config: object, names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield Problem(name, value, "must be a whole number of at least 1")


@dataclass(frozen=True)
class AttentionExperts:
    """A soft or sparse mixture of attention. `top_k == n_experts` is BAM's soft routing (BAM, section 4.1).

    kv: `expert` - each expert has its own keys and values, so E caches; `shared` - one set, one cache.
    """

    n_experts: int
    top_k: int
    kv: Literal["expert", "shared"] = "expert"
    gate: Gate = "softmax_topk"

    def problems(self) -> Iterator[Problem]:
        yield from _positive_ints(self, ("n_experts", "top_k"))
        yield from _choice("kv", self.kv, ("expert", "shared"))
        yield from _choice("gate", self.gate, GATES)
        yield from _top_k_fits(self.top_k, self.n_experts)


@dataclass(frozen=True)
class FFNExperts:
    """Dropless FFN experts. BAM and its BTX baseline: top-1, softmax then top-k, not renormalised (BAM, 4.2)."""

    n_experts: int
    top_k: int = 1
    gate: Gate = "softmax_topk"

    def problems(self) -> Iterator[Problem]:
        yield from _positive_ints(self, ("n_experts", "top_k"))
        yield from _choice("gate", self.gate, GATES)
        yield from _top_k_fits(self.top_k, self.n_experts)


def _top_k_fits(top_k: int, n_experts: int) -> Iterator[Problem]:
    if isinstance(top_k, int) and isinstance(n_experts, int) and top_k > n_experts >= 1:
        yield Problem("top_k", top_k, f"must be at most the number of experts, {n_experts}")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, dense or a mixture.

    d_ff is the hidden width of one expert's SwiGLU (the paper's Table 8 prints the fused gate+up width, twice that).
    `experts` names the experts in stacking order; empty for a dense model.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    max_seq_len: int
    residual: Literal["parallel", "sequential"] = "parallel"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True
    attention: AttentionExperts | None = None
    ffn: FFNExperts | None = None
    experts: tuple[str, ...] = ()
    layout_version: int = LAYOUT_VERSION

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def is_mixture(self) -> bool:
        return self.attention is not None or self.ffn is not None

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with these numbers; empty when a model can be built from them."""
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len")
        wrong_sizes = list(_positive_ints(self, sizes))
        yield from wrong_sizes
        yield from _choice("residual", self.residual, ("parallel", "sequential"))
        yield from _choice("norm", self.norm, ("rms", "layer"))
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and isfinite(value) and value > 0):
                yield Problem(name, value, "must be a positive number")
        if not {problem.path for problem in wrong_sizes} & {"d_model", "n_heads", "n_kv_heads"}:
            yield from self._head_problems()
        for part in ("attention", "ffn"):
            experts = getattr(self, part)
            if experts is not None:
                yield from (problem.under(part) for problem in experts.problems())
                if len(self.experts) != experts.n_experts:
                    yield Problem("experts", self.experts, f"must name the {experts.n_experts} experts of {part}")
        if self.layout_version != LAYOUT_VERSION:
            yield Problem("layout_version", self.layout_version, f"this version of bam reads {LAYOUT_VERSION}")

    def _head_problems(self) -> Iterator[Problem]:
        if self.d_model % self.n_heads:
            yield Problem("n_heads", self.n_heads, f"must divide d_model, {self.d_model}")
        elif self.head_dim % 2:
            yield Problem(
                "n_heads",
                self.n_heads,
                f"gives heads of {self.head_dim}; rotary embedding needs an even size",
            )
        if self.n_heads % self.n_kv_heads:
            yield Problem("n_kv_heads", self.n_kv_heads, f"must divide n_heads, {self.n_heads}")

    def checked(self, where: str = "model config") -> ModelConfig:
        """This config. Raises InvalidInput with every problem at once."""
        problems = list(self.problems())
        if problems:
            raise InvalidInput(where, problems)
        return self

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "model config") -> ModelConfig:
        """The inverse of `to_json`. Raises InvalidInput for unknown or missing fields and impossible values."""
        known = {field.name for field in fields(cls)}
        required = {"vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len"}
        problems = [
            Problem(name, data[name], "unknown field", nearest(name, known)) for name in sorted(data.keys() - known)
        ]
        problems += [Problem(name, None, "is missing") for name in sorted(required - data.keys())]
        if problems:
            raise InvalidInput(where, problems)
        values = dict(data)
        values["experts"] = tuple(values.get("experts") or ())
        if values.get("attention"):
            values["attention"] = AttentionExperts(**values["attention"])
        if values.get("ffn"):
            values["ffn"] = FFNExperts(**values["ffn"])
        return cls(**values).checked(where)


@dataclass(frozen=True)
class TrainConfig:
    """One phase of training. All of it defines the result, so all of it enters the artifact's key.

    tokens, batch_tokens: counted in predicted tokens; batch_tokens is the global batch, whatever the worker count.
    shares: fraction of rows drawn from each domain; sums to 1.
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

    @property
    def n_steps(self) -> int:
        return ceil(self.tokens / self.batch_tokens)

    @property
    def rows_per_batch(self) -> int:
        return self.batch_tokens // self.seq_len

    def problems(self) -> Iterator[Problem]:
        wrong = list(_positive_ints(self, ("tokens", "batch_tokens", "seq_len")))
        yield from wrong
        if not wrong and self.batch_tokens % self.seq_len:
            yield Problem(
                "batch_tokens",
                self.batch_tokens,
                f"must be a multiple of the sequence length, {self.seq_len}",
            )
        if not (isfinite(self.lr) and self.lr > 0):
            yield Problem("lr", self.lr, "must be a positive number")
        for name in ("warmup_frac", "min_lr_frac"):
            if not 0 <= getattr(self, name) <= 1:
                yield Problem(name, getattr(self, name), "must be between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield Problem(name, getattr(self, name), "must be at least 0 and below 1")
        for name in ("weight_decay", "load_balancing_coef", "z_loss_coef"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                yield Problem(name, getattr(self, name), "must be 0 or more")
        if not self.grad_clip > 0:
            yield Problem("grad_clip", self.grad_clip, "must be above 0")
        yield from _choice("dtype", self.dtype, ("bf16", "fp32", "fp64"))
        yield from shares_problems(self.shares)

    def to_json(self) -> dict[str, Any]:
        # Sorted, since the order of domains decides the order of batches, and a key does not see a mapping's order.
        return asdict(self) | {"shares": dict(sorted(self.shares.items()))}

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
