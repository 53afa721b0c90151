"""What holds of a mixture as written: each expert is in it, whole and in its place.

An untrained mixture computes what no dense model does, so it cannot be compared with one as it is. But in every layer
the experts are all that it did not merge: give a branch the merged tensors of dense model i as they were, and a router
that sends everything to expert i, and on the input of the dense model's branch it must give the dense model's output.
This runs the mixture's real forward pass, one branch of one layer at a time, so it catches experts that were lost,
swapped or laid out wrongly, for any variant. Column groups are sent to one after another, and their outputs added up.
A factor that the variant put to an expert's tensors is put to the dense model's too; a gain of the gates is left out.

A router has no bias, so no router sends every input to one expert; but some router does for N <= D given inputs: with
their matrix H_ND, the vector d with H d = 1 gives expert i the logit +LOGIT and the others -LOGIT on each of them.

Memory: in float64, one expert's slice of one tensor at a time. The other experts, whose gates are exactly 0, are zeros,
and memory that was never written to takes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from bam_core.checkpoint import TensorSource, read_config
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.block import Branch
from bam_core.nn.routing import route, router_logits
from bam_core.upcycle.shared_receipt import shared_receipt
from bam_core.upcycle.walk import ReopenedTensors, Tensors, Walk, branch_output, stored

LOGIT = 1e4
"""exp(-2 * LOGIT) is 0 in float64, so the gates are exactly 1 and 0."""

MAX_TOKENS = 32

WIDE = torch.float64


def receipt(
    mixture: Path, experts: Mapping[str, Path], seed: int = 0, made: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Compare a mixture with the dense models it was made from, on random tokens, in float64.

    mixture, experts: model folders, the seed's first. made: what `upcycle` says of each tensor (`provenance`): which
    were initialised at random, so that there is nothing to compare, and which factor they have; None for neither.

    Returns {n_tokens, random: branches whose experts are not the dense models',
             experts: {name: {max_abs_diff, max_abs_value, layer, branch}}}, and where what
    they share is routed, `shared`: of `shared_receipt`.

    max_abs_diff: the largest difference of an output of the mixture's branch, sent to this expert, from the dense
    model's, and max_abs_value the largest such output in that `layer` and `branch`; rounding only, some 1e-14 of it.
    For a model that is no expert, as all of a soup, there is nothing to compare: 0, and None for the place.
    """
    sources = {name: ReopenedTensors(folder) for name, folder in experts.items()}
    return receipt_of(read_config(mixture), ReopenedTensors(mixture), sources, seed, made)


@torch.inference_mode()
def receipt_of(
    config: ModelConfig,
    mixture: TensorSource,
    sources: Mapping[str, TensorSource],
    seed: int = 0,
    made: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The same of tensors wherever they are. sources: of the dense models, the seed's first."""
    assert not config.is_mixture or set(config.experts) <= set(sources), f"{config.experts} of {list(sources)}"
    n_tokens = min(MAX_TOKENS, config.d_model // 2, config.max_seq_len)
    tokens_BT = torch.randint(config.vocab_size, (1, n_tokens), generator=Generator().manual_seed(seed))
    written = _Written(config, mixture, next(iter(sources.values())), made or {})
    found = {name: _compare(written, name, source, tokens_BT) for name, source in sources.items()}
    result = {"n_tokens": n_tokens, "random": sorted(written.random), "experts": found}
    if config.shared is not None:
        result["shared"] = shared_receipt(config, mixture, sources, tokens_BT)
    return result


def _compare(written: _Written, model: str, source: TensorSource, tokens_BT: Tensor) -> dict[str, Any]:
    """Run the dense model; at each of its branches compare the experts that are this model's."""
    dense = Walk(written.dense, stored(source, WIDE), {model: tokens_BT})
    worst: dict[str, Any] = {"max_abs_diff": 0.0, "max_abs_value": 0.0, "layer": None, "branch": None}

    def at_branch(layer: int, part: Branch, h_BTD: Tensor) -> None:
        nonlocal worst
        for got_BTD, wanted_BTD in written.outputs(model, source, layer, part, h_BTD):
            difference = (got_BTD - wanted_BTD).abs().max().item()
            if worst["layer"] is None or difference > worst["max_abs_diff"] or isnan(difference):
                value = wanted_BTD.abs().max().item()
                place = {"layer": layer, "branch": "attention" if part == "attn" else part}
                worst = {"max_abs_diff": difference, "max_abs_value": value} | place

    for layer in range(written.dense.n_layers):
        dense.advance(layer, at_branch)
    return worst


@dataclass(frozen=True)
class _Written:
    """The mixture on disk. seed: the dense model that a shared expert is a copy of."""

    config: ModelConfig
    source: TensorSource
    seed: TensorSource
    made: Mapping[str, Mapping[str, Any]]
    random: set[str] = field(default_factory=set)

    @property
    def dense(self) -> ModelConfig:
        return self.config.dense()

    def outputs(
        self, model: str, own: TensorSource, layer: int, part: Branch, h_BTD: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each expert that is this model's: what the mixture makes of its input, and what it should."""
        experts = self.config.attention_at(layer) if part == "attn" else self.config.ffn_at(layer)
        slots = (experts.slots or self.config.experts) if experts is not None else ()
        if experts is None or model not in slots:
            return
        prefix = f"blocks.{layer}.{part}"
        if self.made.get(f"{prefix}.w_o" if part == "attn" else f"{prefix}.w_down", {}).get("op") == "random":
            self.random.add("attention" if part == "attn" else part)
            return
        wanted_BTD = _output(self.dense, layer, part, self._scaled(own), h_BTD)
        split = experts.split if isinstance(experts, FFNExperts) else 1
        if isinstance(experts, FFNExperts) and experts.shared_expert:
            wanted_BTD = wanted_BTD + split * _output(self.dense, layer, part, stored(self.seed, WIDE), h_BTD)
        direction_D = _unit_response(h_BTD.flatten(0, 1))
        config = self.config if self.config.ffn is None else replace(self.config, ffn=replace(self.config.ffn, gain=()))
        for slot in (index for index, name in enumerate(slots) if name == model):
            got_BTD = torch.zeros_like(wanted_BTD)
            for expert in range(slot * split, (slot + 1) * split):
                router_ED = _router(experts, expert, direction_D)
                _require_one(experts, router_ED, h_BTD)
                got_BTD += _output(config, layer, part, self._only(expert, router_ED, own), h_BTD)
            yield got_BTD, wanted_BTD

    def _scaled(self, own: TensorSource) -> Tensors:
        """A dense model's tensors times the factors of those made of them, rounded as those were."""

        def tensor(name: str) -> Tensor:
            factor = self.made.get(name, {}).get("factor", 1.0)
            kept = own.get(name)
            return kept.to(WIDE) if factor == 1 else (kept.to(WIDE) * factor).to(torch.float32).to(WIDE)

        return tensor

    def _only(self, expert: int, router_ED: Tensor, own: TensorSource) -> Tensors:
        """The mixture's tensors with one expert alone, this router, and the dense model's own for merged ones."""

        def tensor(name: str) -> Tensor:
            kept = name.rpartition(".")[2]
            if kept == "router":
                return router_ED
            if kept.endswith("_bias"):
                return torch.zeros(self.source.shape(name), dtype=WIDE)
            if ".shared." in name:
                return self.source.get(name).to(WIDE)
            shape = self.source.shape(name)
            if shape == own.shape(name):
                return own.get(name).to(WIDE)
            alone = torch.from_numpy(np.zeros(shape))  # not torch's: it would touch, and so take, all of it
            alone[expert] = self.source.get(name)[expert]
            return alone

        return tensor


def _output(config: ModelConfig, layer: int, part: Branch, tensors: Tensors, h_BTD: Tensor) -> Tensor:
    return torch.cat([y_BTD for _, y_BTD in branch_output(config, layer, part, tensors, h_BTD)])


def _router(experts: AttentionExperts | FFNExperts, expert: int, direction_D: Tensor) -> Tensor:
    sign_E1 = direction_D.new_full((experts.n_experts, 1), -LOGIT)
    sign_E1[expert] = LOGIT
    return sign_E1 * direction_D


def _require_one(experts: AttentionExperts | FFNExperts, router_ED: Tensor, h_BTD: Tensor) -> None:
    """The gate of the expert is 1, so what comes out is its output."""
    weights_BTK = route(router_logits(h_BTD, router_ED), experts).weights_NK
    assert (weights_BTK.sum(-1) == 1).all(), f"gates sum to {weights_BTK.sum(-1).min().item()}"


def _unit_response(input_ND: Tensor) -> Tensor:
    """The shortest d_D with input_ND @ d_D = 1."""
    ones_N1 = input_ND.new_ones(len(input_ND), 1)
    d_D: Tensor = torch.linalg.lstsq(input_ND, ones_N1, driver="gelsd").solution.squeeze(1)
    response_N = input_ND @ d_D
    assert (response_N > 0.5).all(), f"no router sends these tokens to one expert: {response_N.min().item()}"
    return d_D
