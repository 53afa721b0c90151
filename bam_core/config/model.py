"""What a model is: sizes, wiring, and its experts if it is a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from bam_core.config.block import OPTIONS, Activation, Norms, RopeScaling, option_problems
from bam_core.config.experts import AttentionExperts, FFNExperts, at_layer, labels, placement_problems
from bam_core.config.fields import booleans, choice, identity, is_positive, positive_ints
from bam_core.config.shared import SharedExperts
from bam_core.errors import InvalidInput, Problem, nearest

LAYOUT_VERSION = 1
"""Version of our tensor names and orientations; a checkpoint carries it, a change to the layout raises it."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, dense or a mixture.

    d_ff is the hidden width of one expert's FFN (the paper's Table 8 prints the fused gate+up width, twice that).
    qk_norm: norm every head's queries and keys, each channel with its own scale, before rotary embedding.
    rotary_frac: the part of a head's channels, from the first on, that rotate. rotary_pairs: `half` turns channels
    (j, j + R/2) of R together, `interleaved` (2j, 2j + 1).
    `experts` names the dense models behind a mixture, each once, in stacking order; empty for a dense model.
    `shared`: how the rest is mixed of all of them; None where it is one for all.
    router_input: what routers of attention and FFN experts read: the `token`'s vector, or with `text` beside it the
    mean of the embeddings of the text so far (`nn.shared.text_so_far`).

    What public families have beside that, at its default not there:
    d_head: channels of a head; None for d_model / n_heads. *_bias: of queries, keys and values; of the attention's
    output; of all norms but those of queries and keys; of the FFN; of the output head.
    activation, gated: FFN(x) = (act(x W_gate^T) * (x W_up^T)) W_down, or act(x W_up^T) W_down without a gate.
    norms: y = x + f(norm x) `before`, x + norm(f(x)) `after`, x + norm(f(norm x)) `around`. parallel_norms: 2 gives the
    FFN of a parallel block a norm of its own. qk_norm_over: `head`, or `all` heads' channels together.
    embed_scale, logit_scale: factors of the embeddings read and of the logits. *_softcap: cap * tanh(x / cap) of the
    logits (after their scale) and of attention scores. attention_scale: of scores; None for head_dim ** -0.5.
    window: a query sees itself and the window - 1 positions before it, but in global_layers all of the past.
    unrotated_layers: those without rotary embedding. rope_scaling: of rotary frequencies.
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
    router_input: Literal["token", "text"] = "token"
    d_head: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    norm_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    norms: Norms = "before"
    parallel_norms: Literal[1, 2] = 1
    qk_norm_over: Literal["head", "all"] = "head"
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    attention_softcap: float | None = None
    attention_scale: float | None = None
    window: int | None = None
    global_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    rope_scaling: RopeScaling | None = None
    layout_version: int = LAYOUT_VERSION

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def router_width(self) -> int:
        """Channels that the router of a branch reads."""
        return self.d_model * (2 if self.router_input == "text" else 1)

    @property
    def reads_text(self) -> bool:
        """Whether some router reads the text so far."""
        return self.shared is not None or self.router_input == "text"

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

    @property
    def is_swiglu(self) -> bool:
        """Whether an FFN is the plain one: silu, a gate, no bias."""
        return self.gated and self.activation == "silu" and not self.ffn_bias

    @property
    def has_linear_logits(self) -> bool:
        """Whether logits are the product with one head matrix, times `logit_scale`, and nothing else."""
        return not self.head_bias and self.logit_softcap is None and not self.is_routed("head")

    def window_at(self, layer: int) -> int | None:
        """How many positions a query of one layer sees; None for all of the past."""
        return None if layer in self.global_layers else self.window

    def is_routed(self, part: Literal["embed", "norms", "head"]) -> bool:
        """Whether this part of what experts share is stacked, one of every dense model, and mixed per token."""
        return self.shared is not None and getattr(self.shared, part) != "merged"

    def dense(self) -> ModelConfig:
        """The dense model that each expert of this mixture is a part of; a dense model's own."""
        return replace(self, attention=None, ffn=None, experts=(), shared=None, router_input="token")

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
        wrong_sizes = list(positive_ints(self, sizes if self.d_head is None else (*sizes, "d_head")))
        yield from wrong_sizes
        yield from choice("residual", self.residual, ("parallel", "sequential"))
        yield from choice("norm", self.norm, ("rms", "layer"))
        yield from choice("rotary_pairs", self.rotary_pairs, ("half", "interleaved"))
        yield from booleans(self, ("tie_embeddings", "qk_norm"))
        for name in ("norm_eps", "rope_theta", "rotary_frac"):
            if not is_positive(getattr(self, name)):
                yield Problem(name, getattr(self, name), "must be a positive number")
        if not {problem.path for problem in wrong_sizes} & {"d_model", "n_heads", "n_kv_heads", "d_head"}:
            yield from self._head_problems()
        if not wrong_sizes:
            yield from option_problems(self)
        yield from self._experts_problems(sizes_are_right=not wrong_sizes)
        if self.layout_version != LAYOUT_VERSION:
            yield Problem("layout_version", self.layout_version, f"this version of bam reads {LAYOUT_VERSION}")

    def _experts_problems(self, *, sizes_are_right: bool) -> Iterator[Problem]:
        for part in ("attention", "ffn"):
            experts = getattr(self, part)
            if experts is not None:
                yield from (problem.under(part) for problem in experts.problems())
                if sizes_are_right:
                    placement = placement_problems(experts, self.n_layers, self.experts)
                    yield from (problem.under(part) for problem in placement)
        yield from choice("router_input", self.router_input, ("token", "text"))
        if self.router_input == "text" and self.attention is None and self.ffn is None:
            yield Problem("router_input", "text", "no branch has a router", "leave it out")
        if self.shared is not None:
            yield from (problem.under("shared") for problem in self.shared.problems())
            if not self.experts:
                yield Problem("experts", [], "must name the dense models that shared mixes")
        if self.ffn is not None and sizes_are_right and self.d_ff % self.ffn.split:
            yield Problem("ffn.split", self.ffn.split, f"must divide d_ff, {self.d_ff}")
        if len(set(self.experts)) != len(self.experts):
            yield Problem("experts", self.experts, "must name each dense model once", "repeat it in slots")

    def _head_problems(self) -> Iterator[Problem]:
        if self.d_head is None and self.d_model % self.n_heads:
            yield Problem("n_heads", self.n_heads, f"must divide d_model, {self.d_model}")
        elif is_positive(self.rotary_frac) and (self.rotary_frac > 1 or self.rotary_dim % 2 or not self.rotary_dim):
            size = "n_heads" if self.d_head is None else "d_head"
            name = size if self.rotary_frac == 1 else "rotary_frac"
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
        """Every field; `shared`, `router_input` and OPTIONS where they are not at their default, so that a model
        without them is written as before they were fields."""
        found = asdict(self)
        default = {field.name: field.default for field in fields(self)}
        left_out = {name for name in ("shared", "router_input", *OPTIONS) if getattr(self, name) == default[name]}
        return {name: value for name, value in found.items() if name not in left_out}

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
        for name in ("global_layers", "unrotated_layers"):
            values[name] = _frozen(values.get(name, ()))
        if isinstance(values.get("rope_scaling"), Mapping):
            values["rope_scaling"] = _rope_scaling(values["rope_scaling"], where)
        return cls(**values).checked(where)


def _rope_scaling(data: Mapping[str, Any], where: str) -> RopeScaling:
    known = {field.name for field in fields(RopeScaling)}
    problems = [Problem(f"rope_scaling.{name}", data[name], "unknown field") for name in sorted(data.keys() - known)]
    problems += [Problem(f"rope_scaling.{name}", None, "is missing") for name in ("kind", "factor") if name not in data]
    if problems:
        raise InvalidInput(where, problems)
    return RopeScaling(**data)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
