"""Routing as data: figures of information against planted tables and other code, samples against a forward pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import log, sqrt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from training_runs import DENSE, fresh

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.evaluate import information, knock_out
from bam_core.evaluate.routing_sample import SCHEMA, Sample, sample_routing, sampled_places, tables
from bam_core.evaluate.routing_summary import own_domain_frac, summarise
from bam_core.nn.lm import LM

EXACT = 1e-12
NAMES = ("general", "code", "law")

# --- figures of information --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 7])
def test_independent_choices_tell_nothing_and_one_expert_for_each_domain_tells_all(n: int) -> None:
    independent = np.outer(np.arange(1, n + 1), np.arange(2, n + 2))
    assert information.mutual_information(independent) == pytest.approx(0, abs=EXACT)
    assert information.normalised_mutual_information(independent) == pytest.approx(0, abs=EXACT)
    for one_to_one in (np.eye(n) * 5, np.eye(n)[::-1]):  # which expert is whose does not matter
        assert information.mutual_information(one_to_one) == pytest.approx(log(n), abs=EXACT)
        assert information.normalised_mutual_information(one_to_one) == pytest.approx(1, abs=EXACT)
        assert information.purity(one_to_one) == 1


def test_a_table_by_hand() -> None:
    """Two domains; the second one's tokens are split evenly between its own expert and a third."""
    table = [[4, 0, 0], [0, 2, 2]]
    assert information.mutual_information(table) == pytest.approx(log(2), abs=EXACT)
    assert information.entropy([4, 2, 2]) == pytest.approx(1.5 * log(2), abs=EXACT)
    assert information.normalised_mutual_information(table) == pytest.approx(1, abs=EXACT)
    assert information.purity(table) == 1
    assert information.purity([[3, 1], [1, 3]]) == 0.75


def test_a_router_that_always_says_the_same_tells_nothing() -> None:
    for table in ([[5, 0], [3, 0]], [[5, 3]]):
        assert information.normalised_mutual_information(table) == 0
    assert information.cohen_kappa([[7, 0], [0, 0]]) is None
    assert information.agreement([[7, 0], [0, 0]]) == 1


def test_agreement_by_hand() -> None:
    """Cohen's own way: 20 of 50 both yes, 15 both no; 25 yes of one, 30 of the other: kappa 0.4."""
    both = [[20, 5], [10, 15]]
    assert information.agreement(both) == pytest.approx(0.7)
    assert information.cohen_kappa(both) == pytest.approx(0.4)
    assert information.cohen_kappa(np.outer([1, 2], [3, 4])) == pytest.approx(0, abs=EXACT)


def test_variation_of_loads() -> None:
    assert information.variation([0.25] * 4) == 0
    assert information.variation([1, 0, 0, 0]) == pytest.approx(sqrt(3))


counts = arrays.arrays(
    np.int64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 40)
).filter(lambda table: table.sum() > 0)


@given(counts)
def test_information_is_within_its_bounds_and_blind_to_names_and_scale(table: np.ndarray) -> None:
    found = information.mutual_information(table)
    most = min(information.entropy(table.sum(0)), information.entropy(table.sum(1)))
    assert 0 <= found <= most + EXACT
    assert most <= log(min(table.shape)) + EXACT
    assert 0 <= information.normalised_mutual_information(table) <= 1
    assert information.mutual_information(table[::-1] * 3.5) == pytest.approx(found, abs=EXACT)
    assert information.mutual_information(table.T) == pytest.approx(found, abs=EXACT)
    # I = H(domain) + H(expert) - H(both)
    parts = information.entropy(table.sum(0)) + information.entropy(table.sum(1)) - information.entropy(table)
    assert found == pytest.approx(parts, abs=1e-10)
    assert 1 / table.shape[0] - EXACT <= information.purity(table) <= 1 + EXACT


@given(counts)
def test_mutual_information_and_kappa_are_those_of_scikit_learn(table: np.ndarray) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    domains, experts = (np.repeat(index, table.ravel()) for index in np.indices(table.shape).reshape(2, -1))
    expected = metrics.mutual_info_score(domains, experts)
    assert information.mutual_information(table) == pytest.approx(expected, abs=1e-10)
    square = np.zeros((max(table.shape),) * 2)
    square[: table.shape[0], : table.shape[1]] = table
    kappa = information.cohen_kappa(square)
    if kappa is not None:
        assert kappa == pytest.approx(metrics.cohen_kappa_score(domains, experts), abs=1e-10)


def test_merging_two_experts_never_tells_more() -> None:
    """The data-processing inequality."""
    chance = np.random.default_rng(3)
    for _ in range(50):
        table = chance.integers(0, 20, (4, 5)) + 1
        merged = np.column_stack([table[:, :3], table[:, 3] + table[:, 4]])
        assert information.mutual_information(merged) <= information.mutual_information(table) + EXACT


def test_own_domain_is_judged_among_the_domains_that_have_an_expert() -> None:
    first = np.array([[6, 1, 1], [2, 2, 4], [5, 5, 0]])
    assert own_domain_frac(first, ("general", "law", "math"), ("general", "law", "law")) == 12 / 16
    assert own_domain_frac(first, ("general", "law", "math"), ("general",) * 3) is None


# --- samples -------------------------------------------------------------------------------------------------


class Packed:
    def __init__(self, seed: int, n_rows: int = 7) -> None:
        chance = np.random.default_rng(seed)
        self.tokens, self.n_bytes = chance.integers(0, 61, (n_rows, 9)), chance.integers(8, 20, n_rows)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.tokens[indices]


SOFT = replace(DENSE, experts=NAMES, attention=AttentionExperts(3, 3), ffn=FFNExperts(3, 1, layers=(1,)))
MODELS = {
    "soft attention, one layer of FFN experts": SOFT,
    "top-2 attention, copies": replace(
        SOFT,
        attention=AttentionExperts(3, 2),
        ffn=FFNExperts(4, 3, gate="topk_softmax", slots=("general", "general", "law", "code"), gain=(2.0, 3.0)),
    ),
    "balanced by a bias, a soft layer": replace(
        SOFT, attention=None, ffn=FFNExperts(3, 2, balance="bias", soft_layers=(0,))
    ),
    "column groups": replace(SOFT, ffn=FFNExperts(6, 1, split=2)),
}
DOMAINS = {"general": Packed(1), "code": Packed(2), "law": Packed(3)}
CHOSEN = np.array([0, 2, 3, 6])


def lively(config: ModelConfig) -> LM:
    model = fresh(config).cast(torch.float64).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data.mul_(30)
        elif name.endswith("balance_bias"):
            parameter.data.copy_(torch.linspace(-0.3, 0.3, len(parameter)))
    return model


def samples(model: LM, n_tokens: int = 20) -> dict[str, Sample]:
    return {domain: sample_routing(model, rows, CHOSEN, domain, n_tokens) for domain, rows in DOMAINS.items()}


def listed(model: LM, n_tokens: int = 20) -> list[dict[str, Any]]:
    """The rows of the Parquet table."""
    found = samples(model, n_tokens).items()
    return pa.concat_tables(
        [t for domain, sample in found for t in tables("train.x", model.config, domain, sample)]
    ).to_pylist()


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_each_row_says_what_a_router_did_with_a_token(config: ModelConfig) -> None:
    model = lively(config)
    rows = listed(model)
    n_routers = sum(bool(at(layer)) for at in (config.attention_at, config.ffn_at) for layer in range(2))
    assert len(rows) == 3 * 20 * n_routers
    for row in rows:
        tokens = torch.from_numpy(DOMAINS[row["domain"]][np.array([row["row"]])])
        output = model(tokens[:, :-1])
        routing = getattr(output.routing[row["layer"]], row["branch"])
        position = (0, row["position"])
        chosen = dict(zip(routing.experts_NK[position].tolist(), routing.weights_NK[position].tolist(), strict=True))
        labels = config.expert_labels(row["branch"])
        assert row["gate"] == pytest.approx(max(chosen.values()), rel=1e-6)
        assert chosen[labels.index(row["expert"])] == max(chosen.values())
        probs = routing.probs_NE[position].sort(descending=True).values
        assert row["margin"] == pytest.approx(float(probs[0] - probs[1]), abs=1e-6)
        assert row["entropy"] == pytest.approx(float(-(probs * probs.log()).sum()) / log(len(probs)), abs=1e-6)
        log_probs = model.logits(output.hidden_BTD)[position].log_softmax(-1)
        assert row["nll"] == pytest.approx(float(-log_probs[tokens[0, row["position"] + 1]]), rel=1e-6)
        assert row["token"] == tokens[position]
        assert row["model"] == "train.x"


def test_a_sampled_token_comes_with_all_its_layers_and_only_from_the_given_rows() -> None:
    rows = listed(lively(MODELS["column groups"]))
    seen = Counter((row["domain"], row["row"], row["position"]) for row in rows)
    assert len(seen) == 60
    assert set(seen.values()) == {4}
    assert {row["row"] for row in rows} <= set(CHOSEN.tolist())


def test_every_model_is_asked_about_the_same_tokens_whatever_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def places(config: ModelConfig) -> set[tuple[Any, ...]]:
        return {(row["domain"], row["row"], row["position"]) for row in listed(lively(config))}

    one, *others = (places(config) for config in MODELS.values())
    assert all(other == one for other in others)
    whole = listed(lively(SOFT))
    monkeypatch.setattr(knock_out, "BATCH_TOKENS", 1)
    assert listed(lively(SOFT)) == whole


def test_more_tokens_than_there_are_means_all_of_them() -> None:
    assert len({(row["domain"], row["row"], row["position"]) for row in listed(lively(SOFT), 10_000)}) == 3 * 4 * 8
    assert sampled_places("law", 5, 9).tolist() == [0, 1, 2, 3, 4]
    few = sampled_places("law", 1000, 10)
    assert sorted(set(few.tolist())) == few.tolist()
    assert len(few) == 10
    assert few.tolist() != sampled_places("code", 1000, 10).tolist()


def test_the_schema_bounds_what_a_row_takes() -> None:
    widths = [f.type.index_type.bit_width if pa.types.is_dictionary(f.type) else f.type.bit_width for f in SCHEMA]
    assert sum(widths) // 8 == 38


# --- the summary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_figures_of_first_experts_follow_from_the_table(config: ModelConfig) -> None:
    model = lively(config)
    rows, found = listed(model), summarise(config, samples(model))
    for branch in ("attention", "ffn"):
        labels = config.expert_labels(branch)
        assert found[f"{branch}_experts"] == list(labels)
        for layer in range(2):
            here = [row for row in rows if (row["branch"], row["layer"]) == (branch, layer)]
            if not here:
                assert found[branch] is None or found[branch][layer] is None
                continue
            figures = found[branch][layer]
            met = Counter((row["domain"], row["expert"]) for row in here)
            table = np.array([[met[domain, label] for label in labels] for domain in DOMAINS])
            assert figures["first"] == {d: table[i].tolist() for i, d in enumerate(DOMAINS)}
            assert figures["mutual_information"] == pytest.approx(information.mutual_information(table))
            own = sum(row["expert"].split("#")[0].split("/")[0] == row["domain"] for row in here) / len(here)
            assert figures["own_domain_frac"] == pytest.approx(own)
            assert figures["entropy"] == pytest.approx(np.mean([row["entropy"] for row in here]), rel=1e-6)


@torch.no_grad()
def test_loads_and_soft_information_are_those_of_the_routers() -> None:
    """With all tokens sampled, against one forward pass of everything."""
    config = MODELS["top-2 attention, copies"]
    model = lively(config)
    found = summarise(config, samples(model, 10_000))
    for branch, n_experts in (("attention", 3), ("ffn", 4)):
        for layer in range(2):
            probs, count = [], np.zeros(n_experts)
            for rows in DOMAINS.values():
                routing = getattr(model(torch.from_numpy(rows[CHOSEN])[:, :-1]).routing[layer], branch)
                probs.append(routing.probs_NE.flatten(0, 1).sum(0).numpy())
                count += np.bincount(routing.experts_NK.flatten().numpy(), minlength=n_experts)
            figures = found[branch][layer]
            assert figures["load"] == pytest.approx((count / count.sum()).tolist())
            assert (figures["load_max"], figures["load_min"]) == (max(figures["load"]), min(figures["load"]))
            soft = information.mutual_information(np.stack(probs))
            assert figures["soft_mutual_information"] == pytest.approx(soft, abs=1e-9)
            assert 0 <= figures["soft_mutual_information_frac"] <= 1


def test_a_soft_router_has_its_probabilities_as_load() -> None:
    found = summarise(SOFT, samples(lively(SOFT)))["attention"][0]
    assert found["load"] != pytest.approx([1 / 3] * 3, abs=1e-3), "not the share of tokens, which all experts have"
    assert sum(found["load"]) == pytest.approx(1)


def test_agreement_is_of_the_dense_models_behind_two_experts() -> None:
    config = MODELS["top-2 attention, copies"]
    model = lively(config)
    rows, found = listed(model), summarise(config, samples(model))["agreement"]
    for layer in range(2):
        of = {
            branch: {
                (row["domain"], row["row"], row["position"]): row["expert"].split("#")[0]
                for row in rows
                if (row["branch"], row["layer"]) == (branch, layer)
            }
            for branch in ("attention", "ffn")
        }
        pairs = [(of["attention"][token], of["ffn"][token]) for token in of["attention"]]
        alike = sum(a == b for a, b in pairs) / len(pairs)
        chance = sum(Counter(a for a, _ in pairs)[m] * Counter(b for _, b in pairs)[m] for m in NAMES) / len(pairs) ** 2
        assert found[layer]["frac"] == pytest.approx(alike)
        assert found[layer]["kappa"] == pytest.approx((alike - chance) / (1 - chance))
    lone = summarise(SOFT, samples(lively(SOFT)))["agreement"]
    assert lone[0] is None, "its FFN is dense there"
    assert lone[1] is not None
