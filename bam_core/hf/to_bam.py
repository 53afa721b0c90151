"""A model as the self-contained files `remote/configuration_bam.py` and `modeling_bam.py` read it: any model of ours.

Queries and keys are written with rotary pairs as halves, whatever they were, so the files know one kind only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bam_core.config import ModelConfig
from bam_core.errors import Problem
from bam_core.hf import moves
from bam_core.hf.moves import Move
from bam_core.nn.shapes import Shape, tensor_shapes

ARCHITECTURE = "BamForCausalLM"
CODE = ("configuration_bam.py", "modeling_bam.py")
REMOTE = Path(__file__).parent / "remote"

_TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_NORMS = {
    "norm": "input_norm",
    "attn_norm": "input_norm",
    "ffn_norm": "mlp_norm",
    "attn_out_norm": "post_attention_norm",
    "ffn_out_norm": "post_mlp_norm",
}
_AS_THEY_ARE = (
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_seq_len", "residual"),
    *("norms", "parallel_norms", "norm", "norm_eps", "norm_bias", "qkv_bias", "o_bias", "ffn_bias", "head_bias"),
    *("activation", "gated", "rope_theta", "rotary_frac", "window", "embed_scale", "logit_scale", "logit_softcap"),
    *("attention_softcap", "attention_scale", "router_input"),
)
_SAID_OTHERWISE = frozenset({
    *("tie_embeddings", "qk_norm", "qk_norm_over", "rotary_pairs", "attention", "ffn", "experts", "shared", "d_head"),
    *("global_layers", "unrotated_layers", "rope_scaling", "layout_version"),
})  # fmt: skip


_EXPERTS = frozenset({
    *("n_experts", "top_k", "gate", "slots", "layers", "router_bias", "dense_router_gradient"),
})  # fmt: skip
_OF_PARTS: Mapping[str, frozenset[str]] = {
    "attention": _EXPERTS | {"kv", "threshold"},
    "ffn": _EXPERTS | {"soft_layers", "split", "shared_expert", "capacity_factor", "gain", "balance"},
    "shared": frozenset({"embed", "norms", "head", "temperature", "head_gradient"}),
    "rope_scaling": frozenset(
        {"kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"},
    ),
}


def bam_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of `BamConfig`, and where transformers finds the classes."""
    parts = {part: getattr(config, part) for part in ("attention", "ffn", "shared", "rope_scaling")}
    found = {part: asdict(value) if value is not None else None for part, value in parts.items()}
    return {
        "model_type": "bam",
        "architectures": [ARCHITECTURE],
        "auto_map": {
            "AutoConfig": "configuration_bam.BamConfig",
            "AutoModel": "modeling_bam.BamModel",
            "AutoModelForCausalLM": f"modeling_bam.{ARCHITECTURE}",
        },
        **{name: getattr(config, name) for name in _AS_THEY_ARE},
        "qk_norm": config.qk_norm_over if config.qk_norm else None,
        "rotary_scaling": found.pop("rope_scaling"),
        "unrotated_layers": list(config.unrotated_layers),
        "global_layers": list(config.global_layers),
        **{part: _in_lists(value) for part, value in found.items()},
        "experts": list(config.experts),
        "tie_word_embeddings": not config.has_head,
    }


def unknown_problems(config: ModelConfig) -> list[Problem]:
    """Fields that the files do not know, where they are not at their default: what a model has since learned to be."""
    known = _SAID_OTHERWISE | set(_AS_THEY_ARE)
    return [*_new_fields(config, known), *unknown_parts(config)]


def unknown_parts(config: ModelConfig) -> list[Problem]:
    """The same of the parts of a config."""
    parts = {part: getattr(config, part) for part in _OF_PARTS}
    return [
        problem.under(part)
        for part, value in parts.items()
        if value is not None
        for problem in _new_fields(value, _OF_PARTS[part])
    ]


def _new_fields(part: Any, known: frozenset[str]) -> Iterator[Problem]:
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name not in known and value != field.default:
            yield Problem(field.name, value, "is something that exports do not know yet")


def _in_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_lists(item) for key, item in value.items()}
    return [_in_lists(item) for item in value] if isinstance(value, tuple) else value


def bam_moves(config: ModelConfig) -> list[Move]:
    return [_move(name, shape, config) for name, shape in tensor_shapes(config).items()]


def _move(ours: str, shape: Shape, config: ModelConfig) -> Move:
    if ours == "shared.router":
        return moves.same(ours, "model.shared_router.weight", shape, is_router=True)
    if not ours.startswith("blocks."):
        part, leaf = ours.split(".")
        return moves.same(ours, f"{_TOP[part]}.{leaf}", shape)
    _, number, local = ours.split(".", 2)
    layer, branch = f"model.layers.{number}.", local.split(".", 1)[0]
    if branch == "attn":
        return _attention_move(ours, layer, shape, config, has_experts=config.attention_at(int(number)) is not None)
    if branch == "ffn":
        return _ffn_move(ours, layer, local.removeprefix("ffn."), shape, config.ffn_at(int(number)) is not None)
    norm, leaf = local.split(".")
    return moves.same(ours, f"{layer}{_NORMS[norm]}.{leaf}", shape)


_LEAVES = {"w": "weight", "b": "bias"}
_ROUTERS = {"router": "router.weight", "router_bias": "router.bias", "balance_bias": "router.balance"}


def _attention_move(ours: str, layer: str, shape: Shape, config: ModelConfig, *, has_experts: bool) -> Move:
    where, leaf = f"{layer}self_attn.", ours.rsplit(".", 1)[-1]
    if leaf in _ROUTERS:
        return moves.same(ours, where + _ROUTERS[leaf], shape, is_router=True)
    if leaf == "w_o":
        rows = shape[-2] * (shape[0] if len(shape) == 3 else 1)
        how = "experts below each other, transposed" if len(shape) == 3 else "transposed"
        turned = moves.transposed(ours, f"{where}o_proj.weight", (rows, shape[-1]))
        return Move((ours,), turned.theirs, how, lambda found: turned.turn([found[0].reshape(rows, -1)]))
    if leaf == "b_o":
        return moves.same(ours, f"{where}o_bias" if has_experts else f"{where}o_proj.bias", shape)
    if leaf in ("q_norm", "k_norm"):
        return moves.folded(ours, where + leaf, shape, config)
    kind, name = leaf.split("_")
    pairs = config if name in "qk" else None
    return moves.folded(ours, f"{where}{name}_proj.{_LEAVES[kind]}", shape, pairs)


def _ffn_move(ours: str, layer: str, local: str, shape: Shape, has_experts: bool) -> Move:
    where = f"{layer}mlp."
    if local in _ROUTERS:
        return moves.same(ours, where + _ROUTERS[local], shape, is_router=True)
    is_shared = local.startswith("shared.")
    kind, name = local.removeprefix("shared.").split("_")
    if has_experts and not is_shared:
        theirs = f"{where}experts.{name}_{'proj' if kind == 'w' else 'bias'}"
    else:
        theirs = f"{where}{'shared_expert.' if is_shared else ''}{name}_proj.{_LEAVES[kind]}"
    return moves.transposed(ours, theirs, shape) if (kind, name) == ("w", "down") else moves.same(ours, theirs, shape)
