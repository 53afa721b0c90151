"""A metric of a plug-in: one number of one model on one domain's held-out documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from bam_core import plugins
from bam_core.errors import BamError
from bam_core.evaluate.documents import Chosen
from bam_core.evaluate.strided import Scored
from bam_core.nn.lm import LM


@dataclass(frozen=True)
class Judged:
    """What a metric sees: the model, the documents that it was scored on, and its loss on each of them.

    `chosen.documents.ids(number, start, stop)` are a document's tokens; most metrics need no more than `scored`.
    """

    model: LM
    domain: str
    chosen: Chosen
    scored: Scored


Metric = Callable[[Judged], float]


def metric(name: str) -> Metric:
    """The plug-in metric of this name. Raises UsageError."""
    found: Metric = plugins.load(plugins.METRICS, name, _require_metric)
    return found


def measure(name: str, judged: Judged) -> float:
    """Raises BamError, naming whose metric it is, if it fails or gives no finite number."""
    rule = metric(name)
    try:
        value = float(rule(judged))
    except Exception as error:
        plugin = plugins.find(plugins.METRICS, name)
        raise BamError(f"{plugin} failed on {judged.domain}: {type(error).__name__}: {error}") from error
    if not isfinite(value):
        raise BamError(f"{plugins.find(plugins.METRICS, name)} gave {value} on {judged.domain}, no finite number")
    return value


def _require_metric(found: Any) -> None:
    if not callable(found):
        raise ValueError(f"must be a function (Judged) -> float, not {found!r:.60}")
