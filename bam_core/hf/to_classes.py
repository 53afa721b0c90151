"""What it takes to write a mixture as a class of transformers: a `Class` says what the class can have, what its
config.json is and where each tensor goes. The classes themselves are in `classes.py`.

FFN experts behind a gate, attention, norms and embeddings merged, are what those classes have. Which gate is the whole
difference: softmax over the chosen (all of ours whose weights sum to 1) or the chosen of a softmax over all.
Tensors are named as checkpoints of transformers name them, an expert each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

from bam_core.config import FFNExperts, ModelConfig
from bam_core.config.experts import SUM_TO_ONE
from bam_core.errors import Problem
from bam_core.hf import moves
from bam_core.hf.moves import Move
from bam_core.hf.rope import RopeNames, write_rope
from bam_core.hf.to_bam import unknown_parts
from bam_core.nn.shapes import tensor_shapes

DEFAULTS = {known.name: known.default for known in fields(ModelConfig)}
ANY = frozenset({
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len", "norm_eps", "rope_theta"),
    *("tie_embeddings", "rotary_pairs", "attention", "ffn", "experts", "shared", "layout_version"),
})  # fmt: skip
"""Fields of which a class can have all values, or that are looked at by themselves."""
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True)
class Class:
    """norms: our norms of a layer and theirs. wanted: field of our config -> the values that the class can have.

    (): any; a field of a block that is not named must be at its default. describe: config.json beside what all have.
    gates: our gates that it has. dense_layers: whether layers may be without experts. shared_expert, mlp, parts: names
    inside a layer. interleaved: rotary pairs are (2j, 2j + 1) there. qk_norm: `all` heads together, or `one` scale for
    all heads.
    """

    model_type: str
    architecture: str
    norms: Mapping[str, str]
    wanted: Mapping[str, tuple[Any, ...]]
    describe: Callable[[ModelConfig], dict[str, Any]]
    gates: frozenset[str] = SUM_TO_ONE
    dense_layers: bool = False
    shared_expert: str | None = None
    mlp: str = "mlp"
    parts: Mapping[str, str] = field(default_factory=lambda: _MLP)
    interleaved: bool = False
    qk_norm: str | None = None

    def problems(self, config: ModelConfig) -> list[Problem]:
        """Why a model of this config is none of this class: field, value and reason."""
        return [
            *unknown_parts(config),
            *self._branch_problems(config),
            *self._option_problems(config),
            *self._layer_problems(config),
        ]

    def _branch_problems(self, config: ModelConfig) -> Iterator[Problem]:
        name = self.architecture
        if config.attention is not None:
            yield Problem("attention", f"{config.attention.n_experts} experts", f"{name} has one attention, no experts")
        if config.shared is not None:
            yield Problem("shared", "routed", f"{name} has one embedding, one set of norms and one head")
        experts = config.ffn
        if experts is None:
            if not self.dense_layers:
                yield Problem("ffn", None, f"{name} has FFN experts in every layer")
            return
        is_soft = experts.top_k == experts.n_experts
        if experts.gate not in self.gates and not is_soft:
            words = "brings the weights of the chosen to a sum of 1" if self.gates == SUM_TO_ONE else "has other gates"
            yield Problem("ffn.gate", experts.gate, f"{name} {words}; its gates: {', '.join(sorted(self.gates))}")
        if experts.soft_layers and not is_soft:
            yield Problem("ffn.soft_layers", list(experts.soft_layers), f"{name} has one top_k for all layers")
        if experts.shared_expert and self.shared_expert is None:
            yield Problem("ffn.shared_expert", True, f"{name} has none that every token uses")
        if not self.dense_layers and experts.layers is not None and len(experts.layers) < config.n_layers:
            yield Problem("ffn.layers", list(experts.layers), f"{name} has experts in every layer")

    def _option_problems(self, config: ModelConfig) -> Iterator[Problem]:
        """A field is for all classes, named in `wanted`, or at its default: a new one is refused by itself."""
        for name in [name for name in DEFAULTS if name not in ANY]:
            allowed = self.wanted.get(name, (DEFAULTS[name],))
            value = getattr(config, name)
            if allowed and value not in allowed:
                shown = " or ".join(str(choice) for choice in allowed)
                yield Problem(name, value, f"must be {shown} for {self.architecture}")
        if self.wanted.get("qkv_bias") and config.qkv_bias != config.o_bias:
            yield Problem(
                "o_bias", config.o_bias, f"must be as qkv_bias, {config.qkv_bias}: {self.architecture} has one"
            )
        if self.qk_norm == "all" and config.d_head not in (None, config.d_model // config.n_heads):
            yield Problem("d_head", config.d_head, f"must be d_model / n_heads for {self.architecture}")

    def _layer_problems(self, config: ModelConfig) -> Iterator[Problem]:
        """Only Cohere's class has windows and rotary embedding by layer, and there they go together."""
        if not self.interleaved:
            return
        turning = [layer for layer in range(config.n_layers) if layer not in config.unrotated_layers]
        if wrong := [layer for layer in config.unrotated_layers if config.window_at(layer) is not None]:
            yield Problem("unrotated_layers", wrong, f"{self.architecture} has no window where nothing rotates")
        if len({config.window_at(layer) for layer in turning}) > 1:
            reason = f"{self.architecture} has one window in all layers that rotate"
            yield Problem("global_layers", list(config.global_layers), reason)

    def config(self, config: ModelConfig) -> dict[str, Any]:
        """config.json, special tokens and dtype aside."""
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "max_position_embeddings": config.max_seq_len,
            "tie_word_embeddings": not config.has_head,
            "hidden_act": "silu",
            **write_rope(config, RopeNames()),
            **self.describe(config),
        }

    def moves(self, config: ModelConfig) -> list[Move]:
        return [move for name, shape in tensor_shapes(config).items() for move in self._moves(name, shape, config)]

    def _moves(self, ours: str, shape: tuple[int, ...], config: ModelConfig) -> Iterator[Move]:
        if not ours.startswith("blocks."):
            part, leaf = ours.split(".")
            theirs = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}[part]
            yield moves.same(ours, f"{theirs}.{leaf}", shape)
            return
        _, number, local = ours.split(".", 2)
        layer, branch = f"model.layers.{number}.", local.split(".", 1)[0]
        if branch == "attn":
            yield self._attention_move(ours, f"{layer}self_attn.", shape, config)
        elif branch == "ffn":
            experts = config.ffn_at(int(number))
            local = local.removeprefix("ffn.")
            yield self._ffn_move(ours, f"{layer}{self.mlp}.", local, shape, config, experts, int(number))
        else:
            norm, leaf = local.split(".")
            yield moves.same(ours, f"{layer}{self.norms[norm]}.{leaf}", shape)

    def _attention_move(self, ours: str, where: str, shape: tuple[int, ...], config: ModelConfig) -> Move:
        leaf = ours.rsplit(".", 1)[-1]
        if leaf in ("q_norm", "k_norm"):
            theirs = f"{where}{leaf}.weight"
            if self.qk_norm == "one":
                heads = prod(shape) // config.head_dim
                return moves.one_for_all(ours, theirs, heads, config.head_dim, self.architecture, config)
            return moves.folded(ours, theirs, shape, config)
        kind, name = leaf.split("_")
        theirs = f"{where}{name}_proj.{'weight' if kind == 'w' else 'bias'}"
        if (kind, name) == ("w", "o"):
            return moves.transposed(ours, theirs, shape)
        if name in "qk":
            form = moves.interleaved if self.interleaved else moves.folded
            return form(ours, theirs, shape, config)
        return moves.same(ours, theirs, shape)

    def _ffn_move(
        self,
        ours: str,
        where: str,
        local: str,
        shape: tuple[int, ...],
        config: ModelConfig,
        experts: FFNExperts | None,
        layer: int,
    ) -> Move:
        if local == "router":
            return moves.same(ours, f"{where}gate.weight", shape, is_router=True)
        if local in ("router_bias", "balance_bias"):
            return moves.left_out_if_zero(ours, self.architecture)
        name = local.rsplit("_", 1)[-1]
        if experts is None or local.startswith("shared."):
            inside = f"{self.shared_expert}." if local.startswith("shared.") else ""
            theirs = f"{where}{inside}{_MLP[name]}.weight"
            return moves.transposed(ours, theirs, shape) if name == "down" else moves.same(ours, theirs, shape)
        each = [f"{where}experts.{e}.{self.parts[name]}.weight" for e in range(experts.n_experts)]
        if name != "down":
            return moves.apart(ours, each, shape)
        return moves.apart(ours, each, shape, transpose=True, factor=experts.gain[layer] if experts.gain else 1.0)
