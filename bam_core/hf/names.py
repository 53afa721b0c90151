"""The tensors of each family: what a module is called there, and in which form its tensors are.

`links` walks the tensors of our config, so that every bias and norm that a config has is asked for, and none that it
has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from bam_core.config import ModelConfig
from bam_core.hf import links as forms
from bam_core.hf.links import Link
from bam_core.nn.shapes import Shape, tensor_shapes

ATTENTION = {f"attn.{name}": f"self_attn.{name}_proj" for name in "qkvo"}
GATED = {f"ffn.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
HEAD_NORMS = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Names:
    """layer: with `{}` for its number. modules: of a layer, ours to theirs; of a norm, the first that applies.

    packed: the module with queries, keys and values in one matrix. offset: norms' scales are stored less 1. scales: of
    queries and keys, `flat`, `per_head` ([H, C]), `one` for all heads, or `listed`, a tensor for each head. aliases:
    names that some versions wrote instead. left_out: patterns of tensors that are no weights, such as tables that old
    versions stored.
    """

    embed: str = "model.embed_tokens"
    layer: str = "model.layers.{}."
    norm: str = "model.norm"
    head: str = "lm_head"
    modules: dict[str, str] = field(default_factory=dict)
    two_norms: dict[str, str] = field(default_factory=dict)
    packed: str | None = None
    offset: bool = False
    scales: Literal["flat", "per_head", "one", "listed"] = "flat"
    aliases: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)


def links(config: ModelConfig, names: Names) -> list[Link]:
    """Every tensor of the model, in our reading order. config: a dense model's."""
    made: list[Link] = []
    for ours, shape in tensor_shapes(config).items():
        made += _links(ours, shape, config, names)
    return made


def _links(ours: str, shape: Shape, config: ModelConfig, names: Names) -> Iterator[Link]:
    if not ours.startswith("blocks."):
        part, leaf = ours.split(".")
        theirs = {"embed": names.embed, "norm": names.norm, "head": names.head}[part] + f".{leaf}"
        yield (_norm_link if part == "norm" else _plain)(ours, theirs, shape, names)
        return
    _, number, local = ours.split(".", 2)
    module, leaf = local.rsplit(".", 1)
    where = names.layer.format(number)
    if leaf in ("q_norm", "k_norm"):
        yield _scale_link(ours, where + names.modules[local], shape, config, names)
    elif leaf in ("weight", "bias"):  # of a norm
        norms = names.modules | names.two_norms if config.parallel_norms == 2 else names.modules
        yield _norm_link(ours, f"{where}{norms[module]}.{leaf}", shape, names)
    else:
        kind, name = leaf.split("_")
        theirs_leaf = {"w": "weight", "b": "bias"}[kind]
        if module == "attn" and names.packed and name in QKV:
            if name == "q":
                yield _packed_link(
                    f"blocks.{number}.attn.{kind}_", f"{where}{names.packed}.{theirs_leaf}", config, kind
                )
            return
        is_transposed = kind == "w" and name in ("o", "down")
        form = forms.transposed if is_transposed else forms.same
        yield form(ours, f"{where}{names.modules[f'{module}.{name}']}.{theirs_leaf}", shape)


def _plain(ours: str, theirs: str, shape: Shape, names: Names) -> Link:
    return forms.same(ours, theirs, shape)


def _norm_link(ours: str, theirs: str, shape: Shape, names: Names) -> Link:
    is_offset = names.offset and ours.endswith("weight")
    return (forms.offset_scale if is_offset else forms.same)(ours, theirs, shape)


def _packed_link(ours: str, theirs: str, config: ModelConfig, kind: str) -> Link:
    groups, queries = config.n_kv_heads, config.n_heads // config.n_kv_heads
    tail = (config.d_model,) if kind == "w" else ()
    return forms.packed([ours + name for name in QKV], theirs, groups, queries, config.head_dim, tail)


def _scale_link(ours: str, theirs: str, shape: Shape, config: ModelConfig, names: Names) -> Link:
    channels = config.head_dim
    heads = shape[0] // channels
    makers = {
        "flat": partial(forms.same, ours, f"{theirs}.weight", shape),
        "per_head": partial(forms.reshaped, ours, f"{theirs}.weight", (heads, channels), shape),
        "one": partial(forms.repeated, ours, f"{theirs}.weight", heads, channels),
        "listed": partial(forms.listed, ours, [f"{theirs}.norms.{head}.weight" for head in range(heads)], channels),
    }
    return makers[names.scales]()
