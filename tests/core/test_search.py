"""A search without trainings: what is tried, who goes on, who is best."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bam_core.protocols import TrialEnd
from bam_core.train.search import (
    Cutoffs,
    Space,
    best,
    losses_as_metrics,
    losses_of_metrics,
    rung_steps,
    sample,
    with_values,
)

LR = Space("log_uniform", (1e-4, 1e-2))
SHARE = Space("uniform", (0.1, 0.5))
BATCH = Space("choice", (256.0, 512.0, 1024.0))


def test_a_trial_is_a_function_of_the_seed_and_its_number() -> None:
    """As literals (1e-4 * 100**u, u from Python's generator seeded by sha256): every machine continues a search."""
    assert [sample({"lr": LR}, 0, index)["lr"] for index in range(4)] == [0.0006591, 0.000122, 0.003887, 0.0009954]
    assert sample({"lr": LR}, 1, 0) != sample({"lr": LR}, 0, 0)


def test_another_key_shifts_nobody() -> None:
    alone, together = sample({"lr": LR}, 7, 3), sample({"share": SHARE, "lr": LR, "batch": BATCH}, 7, 3)
    assert together["lr"] == alone["lr"]
    assert len(set(map(str, together.values()))) == 3


@pytest.mark.parametrize(
    ("space", "u", "value"),
    [
        (LR, 0.0, 1e-4),
        (LR, 0.5, 1e-3),  # the geometric mean
        (LR, 0.25, 0.0003162),
        (SHARE, 0.5, 0.3),
        (SHARE, 0.999999999, 0.5),
        (BATCH, 0.0, 256.0),
        (BATCH, 0.34, 512.0),
        (BATCH, 0.999999999, 1024.0),
    ],
)
def test_where_a_value_lies(space: Space, u: float, value: float) -> None:
    assert space.at(u) == value


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_no_value_leaves_its_range_by_rounding(u: float, low: float, width: float) -> None:
    for kind in ("uniform", "log_uniform"):
        assert low <= Space(kind, (low, low + width)).at(u) <= low + width


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Space("uniform", (1.0,)), "lowest, highest"),
        (Space("uniform", (2.0, 1.0)), "lowest, highest"),
        (Space("log_uniform", (0.0, 1.0)), "above 0"),
        (Space("choice", (1.0,)), "two or more different"),
        (Space("choice", (1.0, 1.0)), "two or more different"),
        (Space("uniform", (0.0, float("nan"))), "finite"),
    ],
)
def test_a_space_that_cannot_be_meant(space: Space, words: str) -> None:
    [problem] = space.problems()
    assert words in problem.expected


def test_values_of_a_phase() -> None:
    phase = {"tokens": 100, "shares": {"law": 0.25}}
    made = with_values(phase, {"lr": 0.01, "batch_tokens": 256.0, "shares.general": 1.5, "shares.law": 0.25})
    assert made == {"tokens": 100, "lr": 0.01, "batch_tokens": 256, "shares": {"general": 0.75, "law": 0.25}}
    assert isinstance(made["batch_tokens"], int)
    assert phase == {"tokens": 100, "shares": {"law": 0.25}}
    assert with_values(phase, {"lr": 0.1})["shares"] == {"law": 0.25}  # no share was searched: none is touched


@pytest.mark.parametrize(
    ("n_steps", "n_rungs", "reduction", "steps"),
    [(20, 3, 3, (2, 6, 20)), (27, 4, 3, (1, 3, 9, 27)), (5, 1, 3, (5,)), (100, 2, 4, (25, 100)), (9, 3, 3, (1, 3, 9))],
)
def test_rungs(n_steps: int, n_rungs: int, reduction: int, steps: tuple[int, ...]) -> None:
    assert rung_steps(n_steps, n_rungs, reduction) == steps


def test_who_goes_on() -> None:
    """Of losses 4, 1, 3 the best half ends at their median, 3; of 4, 1, 3, 2 at 2.5."""
    cutoffs = Cutoffs(reduction=2)
    assert not cutoffs.stops("a", 0, 4.0)  # nobody to compare with
    assert not cutoffs.stops("b", 0, 1.0)
    assert cutoffs.stops("c", 0, 3.0)  # above 2.5, the median of 4 and 1
    assert not cutoffs.stops("d", 0, 3.0)  # as good as the median
    assert not cutoffs.stops("c", 0, 9.0)  # asked again
    assert not cutoffs.stops("b", 1, 9.0)  # another rung


def test_losses_travel_as_metrics() -> None:
    losses = (3.0, 2.0, 1.5)
    assert losses_of_metrics(losses_as_metrics(losses)) == losses
    assert losses_of_metrics({"loss": 1.0}) == ()


def test_the_best_got_furthest() -> None:
    ends = [
        TrialEnd("stopped early", "stopped", (0.1,), 1.0),
        TrialEnd("second", "finished", (3.0, 2.0), 1.0),
        TrialEnd("first", "finished", (4.0, 1.0), 1.0),
        TrialEnd("as good", "finished", (5.0, 1.0), 1.0),
        TrialEnd("burnt out", "diverged", (0.1, 0.1), 1.0),
    ]
    assert best(ends) is ends[2]
    assert best([ends[0], ends[4]]) is ends[0]
    assert best([ends[4]]) is None
    assert best([]) is None
