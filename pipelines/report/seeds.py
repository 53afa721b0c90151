"""Several seeds' figures as one: the mean of every number that differs, with the seeds side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SEEDS = "seeds"


def mean_over_seeds(found: Sequence[Any]) -> Any:
    """JSON values of one form, one for each seed. What is equal stays; lists under `seeds` are joined.

    Of what has not the same form in all, or is no number, the first seed's stands.
    """
    first = found[0]
    if all(isinstance(value, Mapping) for value in found):
        both = [key for key in first if all(key in value for value in found)]
        return {key: _mean(key, [value[key] for value in found]) if key in both else first[key] for key in first}
    if all(value == first for value in found):
        return first
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in found):
        return sum(found) / len(found)
    return first


def _mean(key: str, found: Sequence[Any]) -> Any:
    if key == SEEDS and all(isinstance(value, list) for value in found):
        return list(dict.fromkeys(seed for value in found for seed in value))
    return mean_over_seeds(found)
