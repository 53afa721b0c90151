"""Several seeds' figures as one: the mean of every number that differs, with the seeds side by side.

Of perplexities the geometric mean, as in comparisons and results (`over_seeds`): the perplexity of the mean loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bam_core.evaluate.resample import over_seeds
from pipelines.report.formats import is_number

SEEDS = "seeds"
PERPLEXITY = "perplexity"
"""In the name of every figure that is one."""


def mean_over_seeds(found: Sequence[Any], name: str = "") -> Any:
    """JSON values of one form, one for each seed. What is equal stays; lists under `seeds` are joined.

    Of what has not the same form in all, or is no number, the first seed's stands. name: the key of these values.
    """
    first = found[0]
    if all(isinstance(value, Mapping) for value in found):
        both = [key for key in first if all(key in value for value in found)]
        return {
            key: mean_over_seeds([value[key] for value in found], key) if key in both else first[key] for key in first
        }
    if name == SEEDS and all(isinstance(value, list) for value in found):
        return list(dict.fromkeys(seed for value in found for seed in value))
    if all(value == first for value in found):
        return first
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in found):
        return first
    if PERPLEXITY in name and all(is_number(value) and value > 0 for value in found):
        return over_seeds(np.log(np.array(found, float)))
    return sum(found) / len(found)
