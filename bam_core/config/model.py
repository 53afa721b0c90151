"""What a model is: sizes, wiring, and its experts if it is a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from bam_core.config.experts import AttentionExperts, FFNExperts, at_layer, labels, placement_problems
from bam_core.config.fields import booleans, choice, identity, is_positive, positive_ints
from bam_core.config.shared import SharedExperts
from bam_core.errors import InvalidInput, Problem, nearest

LAYOUT_VERSION = 1
"""Version of our tensor names and orientations; a checkpoint carries it, a change to the layout raises it."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, dense or a mixture.

    d_ff is the hidden width of one expert's SwiGLU (the paper's Table 8 prints the fused gate+up width, twice that).
    qk_norm: norm every head's queries and keys, each channel with its own scale, before rotary embedding.
    rotary_frac: the part of a head's channels, from the first on, that rotate. rotary_pairs: `half` turns channels
    (j, j + R/2) of R together, `interleaved` (2j, 2j + 1).
    `experts` names the dense models behind a mixture, each once, in stacking order; empty for a dense model.
    `shared`: how the rest is mixed of all of them; None where it is one for all.
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
    qk_norm: bool = False
    rotary_frac: float = 1.0
    rotary_pairs: Literal["half", "interleaved"] = "half"
    attention: AttentionExperts | None = None
    ffn: FFNExperts | None = None
    experts: tuple[str, ...] = ()
    shared: SharedExperts | None = None
    layout_version: int = LAYOUT_VERSION

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that rotate."""
        return int(self.head_dim * self.rotary_frac)

    @property
    def is_mixture(self) -> bool:
        return any(part is not None for part in (self.attention, self.ffn, self.shared))

    @property
    def has_head(self) -> bool:
        """Whether the output head is a tensor of its own: untied, or mixed otherwise than the embedding that it was."""
        return not self.tie_embeddings or self.is_routed("embed") != self.is_routed("head")

    def is_routed(self, part: Literal["embed", "norms", "head"]) -> bool:
        """Whether this part of what experts share is stacked, one of every dense model, and mixed per token."""
        return self.shared is not None and getattr(self.shared, part) != "merged"

    def dense(self) -> ModelConfig:
        """The dense model that each expert of this mixture is a part of; a dense model's own."""
        return replace(self, attention=None, ffn=None, experts=(), shared=None)

    def attention_at(self, layer: int) -> AttentionExperts | None:
        """The attention experts of one layer; None where it is dense."""
        found = at_layer(self.attention, layer)
        assert not isinstance(found, FFNExperts)
        return found

    def ffn_at(self, layer: int) -> FFNExperts | None:
        """The FFN experts of one layer; None where it is dense."""
        found = at_layer(self.ffn, layer)
        assert not isinstance(found, AttentionExperts)
        return found

    def expert_labels(self, branch: Literal["attention", "ffn"]) -> tuple[str, ...]:
        """A name for each expert of a branch, in stacking order; empty where it has none."""
        experts = getattr(self, branch)
        return labels(experts, self.experts) if experts is not None else ()

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with these numbers; empty when a model can be built from them."""
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len")
        wrong_sizes = list(positive_ints(self, sizes))
        yield from wrong_sizes
        yield from choice("residual", self.residual, ("parallel", "sequential"))
        yield from choice("norm", self.norm, ("rms", "layer"))
        yield from choice("rotary_pairs", self.rotary_pairs, ("half", "interleaved"))
        yield from booleans(self, ("tie_embeddings", "qk_norm"))
        for name in ("norm_eps", "rope_theta", "rotary_frac"):
            if not is_positive(getattr(self, name)):
                yield Problem(name, getattr(self, name), "must be a positive number")
        if not {problem.path for problem in wrong_sizes} & {"d_model", "n_heads", "n_kv_heads"}:
            yield from self._head_problems()
        for part in ("attention", "ffn"):
            experts = getattr(self, part)
            if experts is not None:
                yield from (problem.under(part) for problem in experts.problems())
                if not wrong_sizes:
                    placement = placement_problems(experts, self.n_layers, self.experts)
                    yield from (problem.under(part) for problem in placement)
        if self.shared is not None:
            yield from (problem.under("shared") for problem in self.shared.problems())
            if not self.experts:
                yield Problem("experts", [], "must name the dense models that shared mixes")
        if self.ffn is not None and not wrong_sizes and self.d_ff % self.ffn.split:
            yield Problem("ffn.split", self.ffn.split, f"must divide d_ff, {self.d_ff}")
        if len(set(self.experts)) != len(self.experts):
            yield Problem("experts", self.experts, "must name each dense model once", "repeat it in slots")
        if self.layout_version != LAYOUT_VERSION:
            yield Problem("layout_version", self.layout_version, f"this version of bam reads {LAYOUT_VERSION}")

    def _head_problems(self) -> Iterator[Problem]:
        if self.d_model % self.n_heads:
            yield Problem("n_heads", self.n_heads, f"must divide d_model, {self.d_model}")
        elif is_positive(self.rotary_frac) and (self.rotary_frac > 1 or self.rotary_dim % 2 or not self.rotary_dim):
            name = "n_heads" if self.rotary_frac == 1 else "rotary_frac"
            found = f"gives {self.rotary_dim} rotary channels of {self.head_dim}"
            yield Problem(name, getattr(self, name), f"{found}; rotary embedding needs an even number of them")
        if self.n_heads % self.n_kv_heads:
            yield Problem("n_kv_heads", self.n_kv_heads, f"must divide n_heads, {self.n_heads}")

    def checked(self, where: str = "model config") -> ModelConfig:
        """This config. Raises InvalidInput with every problem at once."""
        problems = list(self.problems())
        if problems:
            raise InvalidInput(where, problems)
        return self

    def to_json(self) -> dict[str, Any]:
        """Every field; `shared` where there is one, so that a model without it is written as before it was a field."""
        found = asdict(self)
        return found if self.shared is not None else {name: found[name] for name in found if name != "shared"}

    def identity(self) -> dict[str, Any]:
        """What a key is made of: `to_json` without what is at its default. `from_json` reads both."""
        return identity(self)

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
        for part, kind in (("attention", AttentionExperts), ("ffn", FFNExperts)):
            if values.get(part):
                values[part] = kind(**{name: _frozen(value) for name, value in values[part].items()})
        if values.get("shared") is not None:
            values["shared"] = SharedExperts(**values["shared"])
        return cls(**values).checked(where)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
