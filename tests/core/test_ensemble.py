"""The branch-train-merge ensemble against a token-by-token computation with plain probabilities, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from bam_core.config import FFNExperts, ModelConfig
from bam_core.evaluate.ensemble import ensemble_nll, ensemble_score, log_posterior
from bam_core.evaluate.perplexity import DomainScore, Scored, score, score_tokens, spread_indices, token_nll
from bam_core.evaluate.routing import RoutingSums
from bam_core.nn.block import LayerRouting
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.losses import next_token_loss
from bam_core.nn.routing import softmax_topk

ROUNDING = 1e-12
"""float64, a few thousand terms of order 1."""


def some_nll(n_experts: int, rows: int = 5, tokens: int = 40, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.rand(n_experts, rows, tokens, generator=Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(nll_ET: list[list[float]], prior: list[float]) -> list[float]:
    """One row: multiply probabilities, weigh, divide. No logarithm until the end."""
    weights, found = list(prior), []
    for t in range(len(nll_ET[0])):
        total = sum(weights)
        posterior = [weight / total for weight in weights]
        probs = [exp(-nll_T[t]) for nll_T in nll_ET]
        found.append(-log(sum(w * p for w, p in zip(posterior, probs, strict=True))))
        weights = [w * p for w, p in zip(weights, probs, strict=True)]
    return found


@pytest.mark.parametrize("prior", [[1 / 3] * 3, [0.7, 0.2, 0.1], [0.5, 0.0, 0.5]])
def test_equals_bayes_rule_by_hand(prior: list[float]):
    nll_ERT = some_nll(3)
    got_RT = ensemble_nll(nll_ERT, prior)
    for row in range(nll_ERT.shape[1]):
        wanted_T = by_hand(nll_ERT[:, row].tolist(), prior)
        assert got_RT[row].tolist() == pytest.approx(wanted_T, abs=ROUNDING, rel=0)


def test_the_prior_is_uniform_unless_given():
    nll_ERT = some_nll(4)
    assert torch.equal(ensemble_nll(nll_ERT), ensemble_nll(nll_ERT, [0.25] * 4))
    assert (ensemble_nll(nll_ERT) - ensemble_nll(nll_ERT, [0.4, 0.3, 0.2, 0.1])).abs().max() > 0.01
    assert torch.allclose(ensemble_nll(nll_ERT, [4, 3, 2, 1]), ensemble_nll(nll_ERT, [0.4, 0.3, 0.2, 0.1]), atol=1e-12)


def test_a_tokens_weights_come_from_the_tokens_before_it_only():
    nll_ERT = some_nll(3)
    changed = nll_ERT.clone()
    changed[0, :, 20] += 5.0
    before, after = log_posterior(nll_ERT).exp(), log_posterior(changed).exp()
    assert torch.equal(before[..., :21], after[..., :21])
    assert (before[..., 21] - after[..., 21]).abs().min() > 1e-6
    assert torch.allclose(before[..., 0], torch.full((), 1 / 3, dtype=torch.float64))
    assert torch.allclose(before.sum(0), torch.ones((), dtype=torch.float64), atol=ROUNDING, rtol=0)


def test_rows_do_not_know_each_other():
    nll_ERT = some_nll(3)
    assert torch.equal(ensemble_nll(nll_ERT)[2:3], ensemble_nll(nll_ERT[:, 2:3]))


def test_one_expert_is_that_expert_and_so_are_equal_ones():
    nll_ERT = some_nll(1)
    assert torch.equal(ensemble_nll(nll_ERT), nll_ERT[0])
    for prior in (None, [0.6, 0.3, 0.1]):
        three = ensemble_nll(nll_ERT.expand(3, -1, -1), prior)
        assert (three - nll_ERT[0]).abs().max() < ROUNDING


@pytest.mark.parametrize("seed", range(20))
def test_a_row_costs_at_most_the_logarithm_of_the_prior_more_than_any_expert(seed: int):
    """Also than the best one; and it is never better than an expert that knows the best token by token."""
    n_experts = 2 + seed % 5
    nll_ERT = some_nll(n_experts, seed=seed, scale=[0.01, 1.0, 30.0][seed % 3])
    row_R, of_experts_ER = ensemble_nll(nll_ERT).sum(-1), nll_ERT.sum(-1)
    assert (row_R <= of_experts_ER.amin(0) + log(n_experts) + 1e-10).all()
    assert (row_R >= nll_ERT.amin(0).sum(-1) - 1e-10).all()
    # The whole row at once: -ln of the mean of the experts' probabilities of it.
    assert torch.allclose(row_R, log(n_experts) - torch.logsumexp(-of_experts_ER, 0), atol=1e-9, rtol=0)


def test_long_rows_of_unlikely_tokens_neither_underflow_nor_lose_the_posterior():
    """Row probabilities near exp(-40000); the second expert is right from the second half on, and must come back."""
    nll_ERT = torch.full((2, 1, 4096), 20.0, dtype=torch.float64)
    nll_ERT[0, :, :2048] = 1.0
    nll_ERT[1, :, 2048:] = 0.5
    got_T = ensemble_nll(nll_ERT)[0]
    assert torch.isfinite(got_T).all()
    assert got_T[2047] == pytest.approx(1.0, abs=ROUNDING)
    assert got_T[-1] == pytest.approx(0.5, abs=1e-6)
    assert got_T.max() < 20.0 + 1e-9


def test_an_expert_that_calls_a_token_impossible_is_out_for_the_rest_of_the_row():
    nll_ERT = some_nll(2)
    nll_ERT[1, 0, 10] = inf
    got_RT = ensemble_nll(nll_ERT)
    assert torch.isfinite(got_RT).all()
    assert torch.allclose(got_RT[0, 11:], nll_ERT[0, 0, 11:])


@pytest.mark.parametrize("prior", [[0.5, 0.5], [1.5, -0.5, 0.0], [0.0, 0.0, 0.0]])
def test_a_prior_that_is_none_is_refused(prior: list[float]):
    with pytest.raises(AssertionError, match="prior"):
        ensemble_nll(some_nll(3), prior)


def test_scores_count_tokens_and_bytes_once_and_need_the_same_rows():
    nll_ERT = some_nll(2).float()
    experts = [Scored(nll_RT, 321) for nll_RT in nll_ERT]
    found = ensemble_score(experts)
    assert found == DomainScore(float(ensemble_nll(nll_ERT).mean()), 200, 321)
    with pytest.raises(AssertionError, match="different rows"):
        ensemble_score([experts[0], replace(experts[1], n_bytes=322)])


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


def test_every_token_is_scored_as_the_training_loss_would():
    """The order of rows and tokens too: one row at a time, one token at a time."""
    rows, model = SomeRows(), a_model().double()
    scored = score_tokens(model, rows, 7 * 8, batch_rows=3)
    assert scored.nll_RT.shape == (7, 8)
    chosen = spread_indices(len(rows), 7)
    assert scored.n_bytes == rows.n_bytes[chosen].sum()
    for place, row in enumerate(chosen):
        tokens = torch.from_numpy(rows.tokens[row])
        logits_BTV = model.logits(model(tokens[None, :-1]).hidden_BTD)
        for t in range(8):
            wanted = next_token_loss(logits_BTV[:, t : t + 1], tokens[None, t + 1 : t + 2])
            assert scored.nll_RT[place, t].item() == pytest.approx(wanted.item(), abs=ROUNDING)
    total, routing = score(model, rows, 7 * 8, batch_rows=3)
    assert total.nll == pytest.approx(float(scored.nll_RT.mean()), abs=ROUNDING)
    assert (total.tokens, total.n_bytes, routing) == (56, scored.n_bytes, None)


def test_tokens_are_scored_in_chunks_without_a_trace_of_it(monkeypatch: pytest.MonkeyPatch):
    generator = Generator().manual_seed(1)
    logits_BTV = torch.randn(3, 5, 29, generator=generator)
    targets_BT = torch.randint(29, (3, 5), generator=generator)
    whole = token_nll(logits_BTV, targets_BT)
    monkeypatch.setattr("bam_core.evaluate.perplexity.VALUES_PER_CHUNK", 4 * 29)
    assert torch.equal(token_nll(logits_BTV, targets_BT), whole)
    wanted = -logits_BTV.double().log_softmax(-1).gather(-1, targets_BT[..., None]).squeeze(-1)
    assert torch.allclose(whole.double(), wanted, atol=1e-5)
    assert token_nll(logits_BTV.bfloat16(), targets_BT).dtype == torch.float32


def test_an_ensemble_of_models_is_the_mixture_of_their_probabilities():
    """From models, not from likelihoods: at the first token all weigh the same, at the second by the first."""
    rows = SomeRows()
    models = [a_model(seed=seed).double() for seed in (1, 2, 3)]
    for model in models:
        model.embed.weight.data *= 20  # so that they differ
    experts = [score_tokens(model, rows, 1000) for model in models]
    got_RT = ensemble_nll(torch.stack([scored.nll_RT for scored in experts]))
    tokens = torch.from_numpy(rows.tokens)
    with torch.no_grad():
        probs = torch.stack([m.logits(m(tokens[:, :-1]).hidden_BTD).softmax(-1) for m in models])
    p_ERT = probs.gather(-1, tokens[None, :, 1:, None].expand(3, -1, -1, -1)).squeeze(-1)
    assert torch.allclose(got_RT[:, 0], -p_ERT[:, :, 0].mean(0).log(), atol=ROUNDING)
    second = (p_ERT[:, :, 0] * p_ERT[:, :, 1]).sum(0) / p_ERT[:, :, 0].sum(0)
    assert torch.allclose(got_RT[:, 1], -second.log(), atol=ROUNDING)
    assert (got_RT[:, 1] + p_ERT[:, :, 1].mean(0).log()).abs().max() > 1e-3


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
