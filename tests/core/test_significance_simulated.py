"""A planted effect of known size is found, none is not, and the interval covers; what one might do instead is not.

As `python -m tests.benchmarks.significance`, with fewer repetitions and fixed random numbers: the shares are the same
in each run, and the bounds are those that a broken method misses by far.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.significance import FAMILIES, WORLDS, World, family_rates, rates

REPETITIONS = 50
LEAST = 0.9
"""Of 50 intervals at 95%, fewer than 45 hold the truth in 4 of 100 series; ours are wider than that."""


@pytest.mark.parametrize(
    "world",
    [
        *("effect of -3%", "no effect", "no effect, seeds rule", "no effect, documents rule"),
        *("no effect, few long documents", "no effect, documents under seeds rule", "effect of -3%, 5 seeds"),
    ],
)
def test_interval_covers_the_truth(world: str):
    assert rates(WORLDS[world], REPETITIONS, ["ours"])["ours"]["coverage"] >= LEAST


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_a_null_effect_is_not_found_where_chance_is_of_seeds(n_seeds: int):
    found = rates(World(seeds=n_seeds, seed_sd=0.02), REPETITIONS, ["ours", "documents only", "plain bootstrap"])
    assert found["ours"]["clear_of_zero"] <= 1 - LEAST
    assert found["documents only"]["clear_of_zero"] > 0.35
    assert found["plain bootstrap"]["clear_of_zero"] > found["ours"]["clear_of_zero"] + 0.03


def test_a_planted_effect_is_found_where_unpaired_documents_hide_it():
    world = World(-0.03, seeds=5)
    found = rates(world, 30, ["ours", "unpaired"])
    assert found["ours"]["clear_of_zero"] > 0.85
    assert found["unpaired"]["clear_of_zero"] == 0


def test_a_family_finds_the_planted_effect_and_no_other():
    null = family_rates(FAMILIES["7 against 1, no effect"], 20)
    planted = family_rates(replace(FAMILIES["7 against 1, effect of -3%"], effect=-0.05), 20)
    assert null["any_false"] <= 1 - LEAST
    assert planted["any_false"] <= 1 - LEAST
    assert planted["first_found"] > 0.7
    assert min(null["coverage"], planted["coverage"]) > 0.93


@pytest.mark.parametrize("n_seeds", [2, 3])
def test_a_few_noisy_models_among_many(n_seeds: int):
    """Nothing is called different that is not, and their own intervals are wide enough, if not all of them."""
    found = family_rates(replace(FAMILIES["15 against 1, 2 of them 10 times as noisy"], seeds=n_seeds), 20)
    assert found["coverage"] > 0.93
    assert found["coverage_of_noisy"] > 0.75
    assert found["any_false"] <= 1 - LEAST
