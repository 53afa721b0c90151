"""Routing as data: what every router of a mixture did with a sample of held-out tokens, a row for each.

A token is sampled with all its layers, at random positions of given rows; which ones depends on the domain and on how
many there are, so all models have the same. In a table's row the expert is the token's first: of those that it was sent
to, the one with the largest gate. Sizes: tokens * layers with experts rows for each domain and branch of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bam_core.config import ModelConfig
from bam_core.evaluate.knock_out import BRANCHES, Branch, batches, row_nll
from bam_core.evaluate.perplexity import Rows
from bam_core.nn.lm import LM, LayerRouting
from bam_core.nn.routing import Routing, dense_gate, expert_counts, normalised_entropy
from bam_core.seeds import child_seed

WORD = pa.dictionary(pa.int16(), pa.string())
SCHEMA = pa.schema(
    {
        "model": WORD,
        "domain": WORD,
        "row": pa.int32(),
        "position": pa.int32(),
        "token": pa.int32(),
        "branch": WORD,
        "layer": pa.int16(),
        "expert": WORD,
        "gate": pa.float32(),
        "margin": pa.float32(),
        "entropy": pa.float32(),
        "nll": pa.float32(),
    }
)
"""row: number of the held-out row. position, token: of the token in that row, and its id in the vocabulary. gate: the
expert's factor in the sum, with the layer's gain. margin: between the two largest probabilities of the router. entropy:
of its probabilities, over ln E. nll: of the token that follows, in nats."""


@dataclass(frozen=True)
class Choices:
    """What one router did with N tokens. probs_E: its probabilities, summed over the tokens. load_E: of each expert,
    pairs of a token and a chosen expert; of a soft router, which sends every token everywhere, its probabilities."""

    expert_N: NDArray[np.int16]
    gate_N: NDArray[np.float32]
    margin_N: NDArray[np.float32]
    entropy_N: NDArray[np.float32]
    probs_E: NDArray[np.float64]
    load_E: NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """N tokens of one domain in one mixture. branches: of each that has experts, layer -> what its router did."""

    row_N: NDArray[np.int32]
    position_N: NDArray[np.int32]
    token_N: NDArray[np.int32]
    nll_N: NDArray[np.float32]
    branches: dict[Branch, dict[int, Choices]]

    @property
    def n_tokens(self) -> int:
        return len(self.token_N)


def sampled_places(domain: str, n_places: int, n_wanted: int) -> NDArray[np.int64]:
    """`n_wanted` different numbers below `n_places`, or all, in rising order: a function of its arguments."""
    chance = np.random.default_rng(child_seed(0, f"routing sample/{domain}"))
    return np.sort(chance.permutation(n_places)[:n_wanted])


@torch.no_grad()
def sample_routing(model: LM, rows: Rows, chosen: NDArray[np.int64], domain: str, n_tokens: int) -> Sample:
    """Look at `n_tokens` of the tokens in the chosen rows, or at all of them."""
    model.eval()
    device = next(model.parameters()).device
    seq_len = rows[chosen[:1]].shape[1] - 1
    places, parts, start = sampled_places(domain, len(chosen) * seq_len, n_tokens), [], 0
    for numbers, tokens_BR in batches(rows, chosen):
        end = start + len(numbers) * seq_len
        here = places[(places >= start) & (places < end)] - start
        nll_BT, routing = row_nll(model, tokens_BR.to(device))
        wanted_N = torch.from_numpy(here).to(device)
        parts.append(
            Sample(
                numbers[here // seq_len].astype(np.int32),
                (here % seq_len).astype(np.int32),
                tokens_BR[:, :-1].flatten().numpy()[here].astype(np.int32),
                _array(nll_BT.flatten()[wanted_N], np.float32),
                {branch: found for branch in BRANCHES if (found := _branch(routing, branch, wanted_N))},
            )
        )
        start = end
    return _joined(parts)


def _branch(routing: Sequence[LayerRouting], branch: Branch, wanted_N: Tensor) -> dict[int, Choices]:
    found = {layer: getattr(chosen, branch) for layer, chosen in enumerate(routing)}
    return {layer: _choices(router, wanted_N) for layer, router in found.items() if router is not None}


def _choices(routing: Routing, wanted_N: Tensor) -> Choices:
    """Of the wanted ones of all tokens."""
    probs_NE = routing.probs_NE.flatten(0, -2)[wanted_N]
    first_N = dense_gate(routing).flatten(0, -2)[wanted_N].max(-1)
    two_NK = probs_NE.topk(min(2, routing.n_experts), -1).values
    margin_N = two_NK[:, 0] - two_NK[:, 1] if routing.n_experts > 1 else two_NK[:, 0]
    probs_E = probs_NE.double().sum(0)
    experts_NK = routing.experts_NK.flatten(0, -2)[wanted_N]
    is_soft = experts_NK.shape[-1] == routing.n_experts
    return Choices(
        _array(first_N.indices, np.int16),
        _array(first_N.values, np.float32),
        _array(margin_N, np.float32),
        _array(normalised_entropy(probs_NE), np.float32),
        _array(probs_E, np.float64),
        _array(probs_E if is_soft else expert_counts(replace(routing, experts_NK=experts_NK)), np.float64),
    )


def _array(values: Tensor, dtype: type[Any]) -> NDArray[Any]:
    return values.cpu().numpy().astype(dtype)


def _joined(parts: Sequence[Sample]) -> Sample:
    """One sample of all batches."""

    def joined(choices: Sequence[Choices]) -> Choices:
        names = [field.name for field in fields(Choices)]
        stacked = {name: [getattr(each, name) for each in choices] for name in names}
        return Choices(**{n: sum(v) if n.endswith("_E") else np.concatenate(v) for n, v in stacked.items()})

    names = ("row_N", "position_N", "token_N", "nll_N")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    branches = {
        branch: {layer: joined([part.branches[branch][layer] for part in parts]) for layer in layers}
        for branch, layers in parts[0].branches.items()
    }
    return Sample(**columns, branches=branches)


def tables(name: str, config: ModelConfig, domain: str, sample: Sample) -> Iterator[pa.Table]:
    """The sample as rows of SCHEMA, a table for each branch and layer."""
    n = sample.n_tokens
    for branch, layers in sample.branches.items():
        labels = pa.array(config.expert_labels(branch))
        for layer, choices in layers.items():
            columns = {
                "model": _word(name, n),
                "domain": _word(domain, n),
                "row": sample.row_N,
                "position": sample.position_N,
                "token": sample.token_N,
                "branch": _word(branch, n),
                "layer": np.full(n, layer, np.int16),
                "expert": pa.DictionaryArray.from_arrays(choices.expert_N, labels),
                "gate": choices.gate_N,
                "margin": choices.margin_N,
                "entropy": choices.entropy_N,
                "nll": sample.nll_N,
            }
            yield pa.table(columns, schema=SCHEMA)


def _word(word: str, n: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int16), pa.array([word]))
