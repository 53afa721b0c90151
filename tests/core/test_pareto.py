"""Which forms of a model are worth having, and what of its cost is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, Sparser
from bam_core.evaluate.decoding import decode_rates
from bam_core.evaluate.pareto import (
    Form,
    Row,
    attention_forms,
    dominates,
    is_faster,
    optimal,
    row,
    used_experts,
    used_flops_per_token,
)
from bam_core.evaluate.perplexity import DomainScore
from bam_core.evaluate.routing import RoutingSums
from bam_core.nn.costs import cache_bytes_per_token, flops_by_operation, flops_per_token
from tests.core.training_runs import DENSE, MIXTURE, fresh


def point(average: float, flops: float, cache: int, rates: tuple[float, ...] = (), name: str = "") -> Row:
    return Row(name, {}, average, None, flops, cache, rates)


few = st.integers(0, 3)
"""Few values, so that there are many ties."""
points = st.builds(point, few, few, few)
timed = st.builds(point, few, few, few, st.tuples(few, few, few))


@given(st.lists(points, min_size=1, max_size=12))
def test_optimal_is_what_nothing_dominates_and_the_rest_is_dominated_by_it(rows: Sequence[Row]) -> None:
    best = [one for one, kept in zip(rows, optimal(rows), strict=True) if kept]
    assert best
    for one in rows:
        numbers = (one.average, one.flops, one.cache_bytes)
        better = [
            other
            for other in rows
            if all(a <= b for a, b in zip((other.average, other.flops, other.cache_bytes), numbers, strict=True))
            and (other.average, other.flops, other.cache_bytes) != numbers
        ]
        assert (one in best) == (not better)
        assert one in best or any(dominates(other, one) for other in best)


@given(points, points, points)
def test_dominance_of_numbers_is_a_strict_order(one: Row, other: Row, third: Row) -> None:
    assert not dominates(one, one)
    assert not (dominates(one, other) and dominates(other, one))
    if dominates(one, other) and dominates(other, third):
        assert dominates(one, third)


@given(st.lists(timed, min_size=1, max_size=10))
def test_with_speed_something_is_always_optimal_and_nothing_dominates_itself(rows: Sequence[Row]) -> None:
    kept = optimal(rows)
    assert any(kept)
    assert not any(dominates(one, one) for one in rows)
    for place, one in enumerate(rows):
        dominated = any(dominates(other, one) for other in rows)
        assert kept[place] == (not dominated)


@given(st.lists(timed, min_size=2, max_size=10), st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[Row], chance: object) -> None:
    named = [replace(one, name=str(number)) for number, one in enumerate(rows)]
    kept = {one.name for one, best in zip(named, optimal(named), strict=True) if best}
    chance.shuffle(named)
    assert kept == {one.name for one, best in zip(named, optimal(named), strict=True) if best}


def test_equal_rows_are_all_optimal() -> None:
    assert optimal([point(2, 2, 2), point(2, 2, 2), point(1, 3, 2), point(2, 3, 2)]) == [True, True, True, False]


def test_speed_counts_where_it_was_greater_in_every_round() -> None:
    slow, quick, unsure = point(2, 2, 2, (5, 6, 5)), point(2, 2, 2, (7, 8, 6)), point(2, 2, 2, (4, 9, 9))
    assert is_faster(quick, slow)
    assert not is_faster(unsure, slow)
    assert optimal([slow, quick]) == [False, True]
    assert optimal([slow, unsure]) == [True, True]
    worse_and_quick = point(3, 2, 2, (9, 9, 9))
    assert optimal([slow, worse_and_quick]) == [True, True]
    assert optimal([slow, replace(worse_and_quick, rates=(9, 5, 9))]) == [True, False], "no protection by chance"


# Forms


def test_a_soft_mixture_has_every_cheaper_form() -> None:
    forms = attention_forms(AttentionExperts(4, 4), (0.1, 0.25, 0.3))
    assert forms == {
        "soft": Form(),
        "threshold 0.1": Form(threshold=0.1),
        "threshold 0.25": Form(threshold=0.25),
        "top-2": Form(Sparser(top_k=2)),
        "top-2, renormalised": Form(Sparser(top_k=2, gate="softmax_topk_renorm")),
        "top-1": Form(Sparser(top_k=1)),
        "top-1, renormalised": Form(Sparser(top_k=1, gate="softmax_topk_renorm")),
        "shared keys and values": Form(Sparser(kv="shared")),
    }


def test_a_sparse_one_has_only_what_is_cheaper_still() -> None:
    forms = attention_forms(AttentionExperts(4, 2, "shared", "topk_softmax"), (0.3,))
    assert forms == {"top-2": Form(), "top-1": Form(Sparser(top_k=1))}


# Costs


FORMS = [AttentionExperts(3, k, kv) for k in (1, 2, 3) for kv in ("expert", "shared")]


@pytest.mark.parametrize("attention", FORMS, ids=str)
@pytest.mark.parametrize("layers", [None, (1,)], ids=["all layers", "one layer"])
def test_flops_are_those_of_a_model_of_the_used_experts_alone(
    attention: AttentionExperts, layers: tuple[int, ...] | None
) -> None:
    """Of each used expert those of a dense attention, and keys and values of all that there are."""
    config = replace(MIXTURE, attention=replace(attention, layers=layers), ffn=None)
    used_L = [None if config.attention_at(layer) is None else attention.top_k for layer in range(config.n_layers)]
    dense = flops_by_operation(DENSE, 8, layer=0)
    own, n_sets = ("queries", "scores", "weighted_values", "outputs"), 3 if attention.kv == "expert" else 1
    rest = flops_per_token(DENSE, 8) - DENSE.n_layers * sum(dense[name] for name in (*own, "keys", "values"))
    expected = rest
    for used in used_L:
        sets = 1 if used is None else n_sets
        expected += sets * (dense["keys"] + dense["values"]) + (used or 1) * sum(dense[name] for name in own)
        expected += 0 if used is None else 2 * DENSE.d_model * 3  # the router
    assert used_flops_per_token(config, 8, used_L) == pytest.approx(expected, rel=1e-12)


def test_where_all_are_used_or_computed_anyway_nothing_is_saved() -> None:
    assert used_flops_per_token(MIXTURE, 8, [3, 3]) == flops_per_token(MIXTURE, 8)
    together = replace(MIXTURE, attention=AttentionExperts(3, 1, "value_only"))
    assert used_flops_per_token(together, 8, [1, 1]) == flops_per_token(together, 8)
    assert used_flops_per_token(DENSE, 8, [None, None]) == flops_per_token(DENSE, 8)


def routed(config: ModelConfig, tokens: torch.Tensor) -> RoutingSums:
    model = fresh(config, 3)
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data *= 100
    sums = RoutingSums(config)
    sums.add(model.eval()(tokens).routing)
    return sums


def test_used_experts_are_counted_on_every_token() -> None:
    tokens = torch.randint(61, (4, 8), generator=torch.Generator().manual_seed(0))
    soft, sparse = routed(MIXTURE, tokens), routed(replace(MIXTURE, attention=AttentionExperts(3, 2)), tokens)
    assert used_experts([soft], 2) == [3, 3]
    assert used_experts([sparse, sparse], 2) == [2, 2]
    limited = replace(MIXTURE, attention=AttentionExperts(3, 3, threshold=0.3))
    model = fresh(limited, 3)
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data *= 100
    gates = [layer.attention.probs_NE for layer in model.eval()(tokens).routing]
    expected = [float((gate >= 0.3).sum()) / tokens.numel() for gate in gates]
    assert used_experts([routed(limited, tokens)], 2) == pytest.approx(expected, rel=1e-12)
    assert 1 < expected[0] < 3
    one_layer = replace(MIXTURE, attention=AttentionExperts(3, 2, layers=(1,)))
    assert used_experts([routed(one_layer, tokens)], 2) == [None, 2]
    assert used_experts([routed(replace(MIXTURE, attention=None, ffn=FFNExperts(3)), tokens)], 2) == [None, None]


def test_a_row_says_what_was_measured_and_what_follows() -> None:
    scores = {"a": DomainScore(1.0, 10, 20), "b": DomainScore(2.0, 10, 20)}
    made = row("one", MIXTURE, scores, [3, 1.5])
    assert made.average == pytest.approx((scores["a"].perplexity + scores["b"].perplexity) / 2)
    assert made.experts == 2.25
    assert made.cache_bytes == cache_bytes_per_token(MIXTURE)
    assert made.to_json()["tokens_per_s"] is None
    assert replace(made, rates=(3.0, 1.0, 2.0)).to_json()["tokens_per_s"] == 2.0


# Speed


def test_models_take_turns_and_only_what_is_timed_counts() -> None:
    seconds = {"one": 1.0, "two": 4.0}
    order: list[str] = []
    now = [0.0]
    models = {name: fresh(DENSE).eval() for name in seconds}
    forwards = {id(model): name for name, model in models.items()}

    def clock() -> float:
        return now[0]

    def slow(module: torch.nn.Module, *_: object) -> None:
        name = forwards[id(module)]
        order.append(name)
        now[0] += seconds[name] / 4

    for model in models.values():
        model.start = _told(model, slow)  # what every step of decoding begins with
    rates = decode_rates(models, torch.tensor([1, 2]), 4, 3, clock)
    assert rates == {"one": (4.0, 4.0, 4.0), "two": (1.0, 1.0, 1.0)}
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert turns == ["one", "two", "one", "two", "one", "two"]


def _told(model: torch.nn.Module, tell: object) -> object:
    start = model.start

    def told(*given: object) -> object:
        tell(model)
        return start(*given)

    return told
