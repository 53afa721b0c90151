from __future__ import annotations

import pytest

from pipelines.recipe.values import MAX_COUNT, parse_count, parse_number


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("2M", 2_000_000),
        ("100k", 100_000),
        ("1.5B", 1_500_000_000),
        ("0.3M", 300_000),  # 0.3 * 10**6 is 299999.99999999994 in floating point
        ("1e6", 1_000_000),
        (2.0e6, 2_000_000),
        ("2_000", 2000),
        ("-3", -3),  # a range is for the check that knows what is counted
    ],
)
def test_counts_as_people_write_them(written: object, meant: int) -> None:
    assert parse_count(written) == meant


@pytest.mark.parametrize(
    "wrong", [True, 1.5, "1.5", "1.0005k", "", "M", "2m", "2 M", "two", None, [], float("nan"), float("inf")]
)
def test_what_is_no_count(wrong: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_count(wrong)


def test_a_count_fits_in_64_bits() -> None:
    assert parse_count(str(MAX_COUNT)) == MAX_COUNT
    with pytest.raises(ValueError, match="at most"):
        parse_count("1e400")


@pytest.mark.parametrize(("written", "meant"), [("2e-3", 0.002), (1, 1.0), ("0.1", 0.1)])
def test_numbers_as_people_write_them(written: object, meant: float) -> None:
    assert parse_number(written) == meant


@pytest.mark.parametrize("wrong", [True, "fast", "", None, {}, 10**400])
def test_what_is_no_number(wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        parse_number(wrong)
