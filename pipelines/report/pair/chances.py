"""Whether a difference between the runs is more than chance: paired over documents and seeds, like-named models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bam_core.evaluate.resample import DocumentScores
from bam_core.evaluate.significance import Comparison, compare_all
from pipelines.report.forest import forest
from pipelines.report.pair.runs import Pair
from pipelines.report.svg import Panel


@dataclass(frozen=True)
class Chances:
    """found: model -> B against A. why_not: in words, where nothing could be said of chance."""

    found: dict[str, Comparison]
    why_not: str = ""

    @property
    def panel(self) -> Panel | None:
        return forest("A", list(self.found.values())) if self.found else None


def chances(pair: Pair) -> Chances:
    """Of the models that both evaluated and that are not one and the same."""
    models = [model for model in pair.evaluated if not pair.is_one_model(model)]
    if not models:
        return Chances({})
    joined, why_not = _joined(pair, models)
    if joined is None:
        return Chances({}, why_not)
    found = compare_all(joined, [(f"B {model}", f"A {model}") for model in models])
    return Chances({m: replace(one, model=m, baseline="A") for m, one in zip(models, found, strict=True)})


def _joined(pair: Pair, models: Sequence[str]) -> tuple[DocumentScores | None, str]:
    """Both runs' losses of each document, or why they cannot be laid beside each other."""
    a, b = pair.a.documents, pair.b.documents
    if a is None or b is None:
        return None, "an evaluation has no losses of single documents"
    if not pair.is_of_one_text or not _same_documents(a, b):
        return None, "the runs were not evaluated on the same documents, so differences are also differences of text"
    if len(a.seeds) != len(b.seeds) or (len(a.seeds) > 1 and a.seeds != b.seeds):
        return None, f"A has the seeds {_listed(a)} and B {_listed(b)}"
    if any(model not in scores.nll for model in models for scores in (a, b)):
        return None, "an evaluation lacks the losses of a model's documents"
    nll = {f"{side} {model}": scores.nll[model] for model in models for side, scores in (("A", a), ("B", b))}
    return DocumentScores(a.seeds, a.documents, a.tokens, nll), ""


def _same_documents(a: DocumentScores, b: DocumentScores) -> bool:
    return a.tokens.keys() == b.tokens.keys() and all(
        np.array_equal(a.documents[domain], b.documents[domain]) and np.array_equal(a.tokens[domain], b.tokens[domain])
        for domain in a.tokens
    )


def _listed(scores: DocumentScores) -> str:
    return ", ".join(map(str, scores.seeds))
