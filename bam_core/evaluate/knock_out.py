"""What an expert is for: how much worse the model gets on each domain with that expert masked.

Masked means that its router logit is -inf, in every layer, before the gate: the softmax gives its probability to the
others, in their own proportions, and a top-k gate chooses among the others. A gate that keeps probabilities as they are
(`softmax_topk`) then gives those chosen more weight than before. So the masked model is the model without that expert's
rows and weights, where as many as `top_k` are left; where fewer are, all of them are chosen. A gain of the FFN
(`FFNExperts.gain`) stays, and an FFN that every token uses (`shared_expert`) cannot be masked: no router knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import exp, inf
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.evaluate.perplexity import DomainScore, Rows, token_nll
from bam_core.nn.lm import LM, LayerRouting
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts

Branch = Literal["attention", "ffn"]
BRANCHES: tuple[Branch, ...] = ("attention", "ffn")
BATCH_TOKENS = 4096
"""Of one forward pass; at least one row."""


@contextmanager
def masked(model: LM, branch: Branch, experts: Sequence[int]) -> Iterator[LM]:
    """The model with these experts of a branch masked; afterwards it is what it was, bit for bit.

    experts: places in stacking order; at least one of the branch must be left.
    """
    routers = [part for block in model.blocks if (part := _mixture(block, branch)) is not None]
    assert routers, f"the {branch} of this model has no experts"
    with ExitStack() as restoring:
        for router in routers:
            n_experts = router.experts.n_experts
            assert set(experts) < set(range(n_experts)), f"cannot mask {list(experts)} of {n_experts} experts"
            for name in ("router_bias", "balance_bias"):
                restoring.enter_context(_without(router, name, list(experts)))
        yield model


@contextmanager
def _without(router: nn.Module, name: str, experts: list[int]) -> Iterator[None]:
    """Let a bias of the router be -inf for these experts: one of the logits, made if it has none, or one that takes
    part in the choice of experts alone and would choose an expert of probability 0."""
    found: Tensor | None = getattr(router, name, None)
    if found is not None:
        before = found.detach().clone()
        found.data[experts] = -inf
        try:
            yield
        finally:
            found.data.copy_(before)
    elif name == "router_bias":
        of_router = router.get_parameter("router").detach()
        bias_E = of_router.new_zeros(len(of_router))
        bias_E[experts] = -inf
        setattr(router, name, bias_E)
        try:
            yield
        finally:
            setattr(router, name, None)
    else:
        yield


def _mixture(block: nn.Module, branch: Branch) -> MixtureOfAttention | MixtureOfExperts | None:
    part = block.attn if branch == "attention" else block.ffn
    return part if isinstance(part, MixtureOfAttention | MixtureOfExperts) else None


@dataclass(frozen=True)
class Mask:
    """One row of the matrix. section: `attention`, `ffn` or `both`; label: the expert's, or the dense model's."""

    section: str
    label: str
    experts: Mapping[Branch, tuple[int, ...]]


def masks(config: ModelConfig) -> list[Mask]:
    """Every expert of each branch by its label (`law#2` a copy, `law/1` a column group); then, where both branches
    have experts, every dense model behind them (`both`): all experts that came from it, in both. What would leave a
    branch without experts is left out."""
    found = []
    for branch in BRANCHES:
        labels = config.expert_labels(branch)
        if len(labels) > 1:
            found += [Mask(branch, label, {branch: (place,)}) for place, label in enumerate(labels)]
    if config.attention is not None and config.ffn is not None:
        for model in config.experts:
            places = {branch: tuple(np.flatnonzero(_is_from(config, branch, model)).tolist()) for branch in BRANCHES}
            experts = {branch: some for branch, some in places.items() if some}
            if experts and all(len(some) < len(expert_models(config, branch)) for branch, some in experts.items()):
                found.append(Mask("both", model, experts))
    return found


def expert_models(config: ModelConfig, branch: Branch) -> tuple[str, ...]:
    """The dense model that each expert of a branch came from, in stacking order."""
    experts = getattr(config, branch)
    if experts is None:
        return ()
    slots = experts.slots or config.experts
    return tuple(slot for slot in slots for _ in range(experts.n_experts // len(slots)))


def _is_from(config: ModelConfig, branch: Branch, model: str) -> NDArray[np.bool_]:
    return np.array([found == model for found in expert_models(config, branch)])


def row_nll(model: LM, tokens_BR: Tensor) -> tuple[Tensor, Sequence[LayerRouting]]:
    """nll_BT: -ln p of every token of the rows but the first, in nats; and the routing."""
    output, targets_BT = model(tokens_BR[:, :-1]), tokens_BR[:, 1:]
    mix_NE = output.mix_BTE.flatten(0, 1) if output.mix_BTE is not None else None
    nll_N = token_nll(model, output.hidden_BTD.flatten(0, 1), targets_BT.flatten(), mix_NE)
    return nll_N.view_as(targets_BT), output.routing


def batches(rows: Rows, chosen: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """(numbers, tokens_BR) of the chosen rows, about `BATCH_TOKENS` at a time."""
    n_rows = max(1, BATCH_TOKENS // rows[chosen[:1]].shape[1])
    for start in range(0, len(chosen), n_rows):
        numbers = chosen[start : start + n_rows]
        yield numbers, torch.from_numpy(rows[numbers])


@torch.no_grad()
def score_rows(model: LM, rows: Rows, chosen: NDArray[np.int64]) -> DomainScore:
    """Score the model on these rows of one domain."""
    device = next(model.parameters()).device
    nll = [row_nll(model, tokens_BR.to(device))[0].double().sum() for _, tokens_BR in batches(rows, chosen)]
    n_tokens = len(chosen) * (rows[chosen[:1]].shape[1] - 1)
    return DomainScore(float(torch.stack(nll).sum()) / n_tokens, n_tokens, int(rows.n_bytes[chosen].sum()))


def knock_out(model: LM, rows: Mapping[str, Rows], chosen: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """The knock-out matrix of a mixture, and the intact model's scores of the same rows.

    chosen: the rows of each domain. Returns `intact`, domain -> score, and for `attention`, `ffn` and `both` (None
    without such experts) masked expert -> domain -> {nll, perplexity, change}; change: of the perplexity, relative to
    the intact model's: 0.35 is 35% worse.
    """
    model.eval()
    intact = {domain: score_rows(model, rows[domain], chosen[domain]) for domain in rows}
    found: dict[str, Any] = {"attention": None, "ffn": None, "both": None}
    for mask in masks(model.config):
        with ExitStack() as masking:
            for branch, places in mask.experts.items():
                masking.enter_context(masked(model, branch, places))
            scores = {domain: score_rows(model, rows[domain], chosen[domain]) for domain in rows}
        found[mask.section] = (found[mask.section] or {}) | {
            mask.label: {domain: _cell(score, intact[domain]) for domain, score in scores.items()}
        }
    return {"intact": {domain: score.to_json() for domain, score in intact.items()}, **found}


def _cell(score: DomainScore, intact: DomainScore) -> dict[str, float]:
    return {"nll": score.nll, "perplexity": score.perplexity, "change": exp(score.nll - intact.nll) - 1}
