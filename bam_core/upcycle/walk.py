"""Run a model over rows of text with one tensor of it in memory at a time, as calibration and the receipt need.

The modules are those of `bam_core.nn`; only where their tensors come from differs: each is made or read when the
forward pass asks for it, and gone when it has been used. So the memory is that of one tensor and of the activations of
CHUNK_TOKENS tokens, beside the residual stream of all rows.

Invariant: the hidden states are those of an `LM` that holds the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bam_core.checkpoint import TensorSource, open_tensors
from bam_core.config import ModelConfig
from bam_core.nn.attention import Rotary
from bam_core.nn.block import Block, Branch, norm_after, norm_before, residual_norm
from bam_core.nn.layers import rotary_of
from bam_core.nn.losses import next_token_loss
from bam_core.nn.routing import router_reads
from bam_core.nn.shapes import Shape
from bam_core.nn.shared import (
    embed_each,
    head_logits,
    mix_embeddings,
    scaled_embeddings,
    shared_mix,
    text_so_far,
)

CHUNK_TOKENS = 2048
"""Tokens that go through a branch together; at least one row."""

CHUNK_LOGITS = 2**23
"""Logits that are in memory together."""

Tensors = Callable[[str], Tensor]
"""A tensor of the model by its name, made anew or read at each call."""


class Walk:
    """The residual stream of all rows, advanced layer by layer. Its dtype is that of the tensors."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Tensors,
        rows: Mapping[str, Tensor],
        at_shared: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> None:
        """rows: name -> tokens_BT, all of one length; results go by these names. at_shared: sees what a shared router
        will read of each name's rows, before the router is asked for, and may still change it."""
        self.config = config
        self.tensors = tensors
        starts = [0]
        for tokens_BT in rows.values():
            starts.append(starts[-1] + len(tokens_BT))
        self._spans = {name: slice(starts[i], starts[i + 1]) for i, name in enumerate(rows)}
        tokens_BT = torch.cat(list(rows.values()))
        self.mix_BTE: Tensor | None = None
        self.text_BTD: Tensor | None = None
        if config.reads_text:
            x_BTD = self._reading_text(tokens_BT, at_shared)
        else:
            x_BTD = F.embedding(tokens_BT, tensors("embed.weight"))
        self.x_BTD = scaled_embeddings(config, x_BTD)

    def _reading_text(self, tokens_BT: Tensor, at_shared: Callable[[dict[str, Tensor]], None] | None) -> Tensor:
        """x_BTD, of CHUNK_TOKENS tokens at a time the vectors of all dense models; sets the text so far and the mix."""
        shared, weight = self.config.shared, self.tensors("embed.weight")
        parts = torch.split(tokens_BT, max(1, CHUNK_TOKENS // tokens_BT.shape[1]))
        text_BTD = torch.cat([text_so_far(embed_each(part_BT, weight)) for part_BT in parts])
        if self.config.router_input == "text":
            self.text_BTD = text_BTD
        if shared is None:
            return F.embedding(tokens_BT, weight)
        if at_shared is not None:
            at_shared(self.split(text_BTD))
        mix_BTE = shared_mix(text_BTD, self.tensors("shared.router"), shared)
        self.mix_BTE = mix_BTE
        mixes = torch.split(mix_BTE, len(parts[0]))
        return torch.cat([mix_embeddings(embed_each(p, weight), mix) for p, mix in zip(parts, mixes, strict=True)])

    def split(self, x_BTD: Tensor) -> dict[str, Tensor]:
        """The rows of each name."""
        return {name: x_BTD[span] for name, span in self._spans.items()}

    def advance(self, layer: int, at_branch: Callable[[int, Branch, Tensor], None] | None = None) -> None:
        """Through one layer, wired as in `Block`. at_branch: sees what a branch's router will read, before its tensors
        are asked for, and may still change them and `config`."""
        h_BTD = self._read(layer, "attn")
        of_ffn_BTD = None
        if self.config.residual == "parallel":
            of_ffn_BTD = h_BTD if self.config.parallel_norms == 1 else self._read(layer, "ffn")
        self._add(layer, "attn", h_BTD, at_branch)
        self._add(layer, "ffn", self._read(layer, "ffn") if of_ffn_BTD is None else of_ffn_BTD, at_branch)

    def _read(self, layer: int, part: Branch) -> Tensor:
        """What a branch reads of the stream as it is now, which the branch's own output does not change."""
        norm = norm_before(self.config, part)
        return self.x_BTD.clone() if norm is None else self._normed(f"blocks.{layer}.{norm}", self.x_BTD)

    def _add(
        self, layer: int, part: Branch, h_BTD: Tensor, at_branch: Callable[[int, Branch, Tensor], None] | None
    ) -> None:
        if at_branch is not None:
            at_branch(layer, part, router_reads(h_BTD, self.text_BTD))
        norm = norm_after(self.config, part)
        for rows, y_BTD in branch_output(self.config, layer, part, self.tensors, h_BTD, self.text_BTD):
            if norm is not None:
                mix_BTE = self.mix_BTE[rows] if self.mix_BTE is not None else None
                y_BTD = self._normed(f"blocks.{layer}.{norm}", y_BTD, mix_BTE)
            self.x_BTD[rows] += y_BTD

    def nll(self, targets: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean negative log likelihood, in nats, of each name's targets_BT, after the last layer."""
        weight = self.tensors("head.weight" if self.config.has_head else "embed.weight")
        bias = self.tensors("head.bias") if self.config.head_bias else None
        hidden = self.split(self._normed("norm", self.x_BTD))
        mixes = self.split(self.mix_BTE) if self.mix_BTE is not None else {}
        n_chunk = max(1, CHUNK_LOGITS // weight.shape[-2])
        found = {}
        for name, targets_BT in targets.items():
            h_ND, targets_N = hidden[name].flatten(0, 1), targets_BT.flatten()
            mix_NE = mixes[name].flatten(0, 1) if name in mixes else None
            total = 0.0
            for start in range(0, len(h_ND), n_chunk):
                part = slice(start, start + n_chunk)
                mix = mix_NE[part] if mix_NE is not None else None
                logits_NV = head_logits(self.config, h_ND[part], mix, weight, bias)
                total += float(next_token_loss(logits_NV, targets_N[part]))
            found[name] = total / targets_BT.numel()
        return found

    def _normed(self, name: str, x_BTD: Tensor, mix_BTE: Tensor | None = None) -> Tensor:
        """mix_BTE: of these rows; that of all by default."""
        norm = residual_norm(self.config)
        norm.weight = nn.Parameter(self.tensors(f"{name}.weight"), requires_grad=False)
        if norm.bias is not None:
            norm.bias = nn.Parameter(self.tensors(f"{name}.bias"), requires_grad=False)
        h_BTD: Tensor = norm(x_BTD, self.mix_BTE if mix_BTE is None else mix_BTE)
        return h_BTD


def branch_output(
    config: ModelConfig, layer: int, part: Branch, tensors: Tensors, h_BTD: Tensor, text_BTD: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """What one branch makes of its input, a few rows at a time: which rows, and y_BTD of them.

    text_BTD: for a router that reads the text so far; without it, one that reads the token alone is asked for.
    """
    module = _branch(config, layer, part, tensors)
    n_rows = max(1, CHUNK_TOKENS // h_BTD.shape[1])
    is_mixture = (config.attention_at(layer) if part == "attn" else config.ffn_at(layer)) is not None
    no_noise = (None,) if is_mixture else ()
    more = (rotary(config, h_BTD), None) if part == "attn" else no_noise
    for start in range(0, len(h_BTD), n_rows):
        rows = slice(start, start + n_rows)
        text = (text_BTD[rows],) if is_mixture and text_BTD is not None else ()
        yield rows, module(h_BTD[rows], *more, *text)[0]


def rotary(config: ModelConfig, x_BTD: Tensor) -> Rotary:
    cos, sin = rotary_of(config, x_BTD.dtype, x_BTD.device)
    return cos[: x_BTD.shape[1]], sin[: x_BTD.shape[1]]


def _branch(config: ModelConfig, layer: int, part: Branch, tensors: Tensors) -> nn.Module:
    """One branch of one layer that holds no tensor, and asks for each where its forward pass names it."""
    with torch.device("meta"):
        module = Block(config, layer).get_submodule(part)
    for owner_name, owner in list(module.named_modules()):
        for name in [name for name, _ in owner.named_parameters(recurse=False)]:
            full = ".".join(filter(None, (f"blocks.{layer}.{part}", owner_name, name)))
            parametrize.register_parametrization(owner, name, _Asked(tensors, full), unsafe=True)
    return module.eval()


class _Asked(nn.Module):
    """In the place of a parameter: what `tensors` has under its name."""

    def __init__(self, tensors: Tensors, name: str) -> None:
        super().__init__()
        self.tensors, self.name = tensors, name

    def forward(self, placeholder: Tensor) -> Tensor:
        return self.tensors(self.name)


class ReopenedTensors:
    """The tensors of a model folder, mapped into memory one at a time: a file that stays open keeps all that was ever
    read of it resident."""

    def __init__(self, folder: Path) -> None:
        source = open_tensors(folder)
        self._folder = folder
        self._shapes = {name: source.shape(name) for name in source.names()}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def get(self, name: str) -> Tensor:
        return open_tensors(self._folder).get(name)


def stored(source: TensorSource, dtype: torch.dtype = torch.float32) -> Tensors:
    """The tensors of a dense model as they are, in another dtype."""
    return lambda name: source.get(name).to(dtype)
