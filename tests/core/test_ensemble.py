"""The branch-train-merge ensemble against a token-by-token computation with plain probabilities, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bam_core.config import FFNExperts, ModelConfig
from bam_core.evaluate.ensemble import ensemble_nll, ensemble_scored
from bam_core.evaluate.perplexity import score, spread_indices
from bam_core.evaluate.routing import RoutingSums
from bam_core.evaluate.strided import Scored
from bam_core.nn.block import LayerRouting
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.losses import next_token_loss
from bam_core.nn.routing import softmax_topk

ROUNDING = 1e-12
"""float64, a few thousand terms of order 1."""


def some_nll(n_experts: int, n_documents: int = 5, tokens: int = 40, seed: int = 0, scale: float = 3.0) -> NDArray:
    """Of each expert, document and token, [E, D, T]."""
    return scale * np.random.default_rng(seed).random((n_experts, n_documents, tokens))


def by_hand(nll_ET: list[list[float]], prior: list[float]) -> list[float]:
    """One document, every token: multiply probabilities, weigh, divide. No logarithm until the end."""
    weights, found = list(prior), []
    for t in range(len(nll_ET[0])):
        total = sum(weights)
        posterior = [weight / total for weight in weights]
        probs = [exp(-nll_T[t]) for nll_T in nll_ET]
        found.append(-log(sum(w * p for w, p in zip(posterior, probs, strict=True))))
        weights = [w * p for w, p in zip(weights, probs, strict=True)]
    return found


@pytest.mark.parametrize("prior", [[1 / 3] * 3, [0.7, 0.2, 0.1], [0.5, 0.0, 0.5]])
def test_equals_bayes_rule_token_by_token(prior: list[float]):
    """What the formula says of each token adds up to what is computed of the whole document at once."""
    nll_EDT = some_nll(3)
    got_D = ensemble_nll(nll_EDT.sum(-1), prior)
    for document in range(nll_EDT.shape[1]):
        wanted_T = by_hand(nll_EDT[:, document].tolist(), prior)
        assert got_D[document] == pytest.approx(sum(wanted_T), abs=100 * ROUNDING, rel=0)


def test_the_prior_is_uniform_unless_given_and_needs_no_norm():
    nll_ED = some_nll(4).sum(-1)
    assert np.array_equal(ensemble_nll(nll_ED), ensemble_nll(nll_ED, [0.25] * 4))
    assert np.abs(ensemble_nll(nll_ED) - ensemble_nll(nll_ED, [0.4, 0.3, 0.2, 0.1])).max() > 0.01
    assert np.allclose(ensemble_nll(nll_ED, [4, 3, 2, 1]), ensemble_nll(nll_ED, [0.4, 0.3, 0.2, 0.1]), atol=1e-12)


def test_documents_do_not_know_each_other():
    nll_ED = some_nll(3).sum(-1)
    assert np.array_equal(ensemble_nll(nll_ED)[2:3], ensemble_nll(nll_ED[:, 2:3]))


def test_one_expert_is_that_expert_and_so_are_equal_ones():
    nll_ED = some_nll(1).sum(-1)
    assert np.array_equal(ensemble_nll(nll_ED), nll_ED[0])
    for prior in (None, [0.6, 0.3, 0.1]):
        three = ensemble_nll(np.repeat(nll_ED, 3, axis=0), prior)
        assert np.abs(three - nll_ED[0]).max() < 100 * ROUNDING


@pytest.mark.parametrize("seed", range(20))
def test_a_document_costs_at_most_the_logarithm_of_the_prior_more_than_any_expert(seed: int):
    """Also than the best one; and it is never better than the best."""
    n_experts = 2 + seed % 5
    nll_ED = some_nll(n_experts, seed=seed, scale=[0.01, 1.0, 30.0][seed % 3]).sum(-1)
    found_D = ensemble_nll(nll_ED)
    assert (found_D <= nll_ED.min(0) + log(n_experts) + 1e-10).all()
    assert (found_D >= nll_ED.min(0) - 1e-10).all()


def test_long_documents_of_unlikely_tokens_do_not_underflow():
    nll_ED = np.array([[40_000.0, 90_000.0], [50_000.0, 90_000.0]])
    assert ensemble_nll(nll_ED) == pytest.approx([40_000 + log(2), 90_000], abs=1e-9)


def test_an_expert_that_calls_a_document_impossible_is_out():
    nll_ED = some_nll(2).sum(-1)
    nll_ED[1, 0] = inf
    assert ensemble_nll(nll_ED)[0] == pytest.approx(nll_ED[0, 0] + log(2), abs=ROUNDING * 100)
    assert np.isfinite(ensemble_nll(nll_ED)).all()


@pytest.mark.parametrize("prior", [[0.5, 0.5], [1.5, -0.5, 0.0], [0.0, 0.0, 0.0]])
def test_a_prior_that_is_none_is_refused(prior: list[float]):
    with pytest.raises(AssertionError, match="prior"):
        ensemble_nll(some_nll(3).sum(-1), prior)


def test_scores_count_tokens_and_bytes_once_and_need_the_same_documents():
    nll_ED = some_nll(2).sum(-1)
    numbers, tokens, n_bytes = np.arange(5) * 3, np.full(5, 40), np.arange(5) + 60
    experts = [Scored(numbers, nll_D, tokens, n_bytes) for nll_D in nll_ED]
    total = ensemble_scored(experts).total
    assert (total.tokens, total.n_bytes) == (200, 310)
    assert total.nll == pytest.approx(ensemble_nll(nll_ED).sum() / 200)
    with pytest.raises(AssertionError, match="different documents"):
        ensemble_scored([experts[0], replace(experts[1], numbers=numbers + 1)])
    with pytest.raises(AssertionError, match="different tokens"):
        ensemble_scored([experts[0], replace(experts[1], tokens=tokens - 1)])


DENSE = ModelConfig(vocab_size=29, d_model=16, n_layers=3, n_heads=2, n_kv_heads=1, d_ff=20, max_seq_len=8)


class SomeRows:
    def __init__(self, n_rows: int = 11) -> None:
        generator = np.random.default_rng(0)
        self.tokens = generator.integers(DENSE.vocab_size, size=(n_rows, DENSE.max_seq_len + 1))
        self.n_bytes = generator.integers(8, 30, size=n_rows)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.tokens[indices]


def a_model(config: ModelConfig = DENSE, seed: int = 0) -> LM:
    model = LM(config)
    init_weights(model, seed)
    return model


def test_rows_are_scored_as_the_training_loss_would():
    """One row at a time, one token at a time."""
    rows, model = SomeRows(), a_model().double()
    total, routing = score(model, rows, 7 * 8, batch_rows=3)
    chosen = spread_indices(len(rows), 7)
    losses = []
    for row in chosen:
        tokens = torch.from_numpy(rows.tokens[row])
        logits_BTV = model.logits(model(tokens[None, :-1]).hidden_BTD)
        losses += [next_token_loss(logits_BTV[:, t : t + 1], tokens[None, t + 1 : t + 2]).item() for t in range(8)]
    assert total.nll == pytest.approx(sum(losses) / 56, abs=ROUNDING)
    assert (total.tokens, total.n_bytes, routing) == (56, rows.n_bytes[chosen].sum(), None)


def test_routing_of_a_layer_without_experts_is_null():
    config = replace(DENSE, ffn=FFNExperts(3, layers=(0, 2)), experts=("a", "b", "c")).checked("a test")
    sums = RoutingSums(config)
    logits_BTE = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])
    routed = LayerRouting(None, softmax_topk(logits_BTE, 1))
    sums.add([routed, LayerRouting(None, None), routed])
    found = sums.to_json()
    assert found["attention"] is None
    assert {name: rows[1] for name, rows in found["ffn"].items()} == dict.fromkeys(("mean_gate", "fraction", "entropy"))
    assert found["ffn"]["fraction"][0] == found["ffn"]["fraction"][2] == [0.5, 0.0, 0.5]
    best = logits_BTE.double().softmax(-1).amax(-1)[0] / 2
    assert found["ffn"]["mean_gate"][2] == pytest.approx([best[0].item(), 0.0, best[1].item()], abs=1e-6)
