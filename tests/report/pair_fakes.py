"""Two runs of one recipe: B gives the mixtures twice the learning rate, has a variant of its own, and no `dense`."""

from __future__ import annotations

from copy import deepcopy
from math import exp, log
from typing import Any

import numpy as np

from bam_core.evaluate.resample import DocumentScores
from pipelines.report.pair import Made, RunLeft
from tests.report.fakes import DOMAINS, PERPLEXITY, fake_run

N_DOCUMENTS = 40
FACTOR = {"train.bam": 0.9, "train.btx": 1.05}
"""Model -> its perplexities in B over those in A."""
STAGES = (
    "tokenizer",
    *(f"data.{domain}" for domain in DOMAINS),
    *(m for m in PERPLEXITY if m != "ensemble"),
    "evaluate",
)
RECIPE: dict[str, Any] = {
    "name": "quickstart",
    "seeds": [0],
    "domains": {domain: {} for domain in DOMAINS},
    "phases": {"mixture": {"lr": 1e-3, "tokens": 1_000_000}},
    "variants": {"bam": {"kv": "expert"}, "btx": {}},
}


def run_a(**changes: Any) -> RunLeft:
    return RunLeft(**(_parts("a", {}) | changes))


def run_b(**changes: Any) -> RunLeft:
    parts = _parts("b", FACTOR)
    parts["recipe"]["phases"]["mixture"]["lr"] = 2e-3
    parts["recipe"]["variants"]["bam_more"] = {"kv": "shared", "ffn": {"top_k": 2}}
    del parts["perplexity"]["models"]["dense"], parts["training"]["dense"], parts["made"]["dense"]
    parts["perplexity"]["models"]["train.bam_more"] = parts["perplexity"]["models"]["train.bam"]
    for row in parts["training"]["train.bam"]:
        row["loss"] *= 0.97
    return RunLeft(**(parts | changes))


def _parts(side: str, factor: dict[str, float]) -> dict[str, Any]:
    inputs = fake_run()
    perplexity = deepcopy(inputs.perplexity)
    for model, by in factor.items():
        found = perplexity["models"][model]
        found["average_perplexity"] *= by
        for score in found["domains"].values():
            score["perplexity"] *= by
    own = ("train", "evaluate") if side == "b" else ()
    return {
        "name": f"quickstart-2026110{1 if side == 'a' else 2}-101500-{side * 6}",
        "pipeline": "quickstart",
        "status": "done",
        "started": 1.793e9,
        "seconds": 600.0,
        "recipe": deepcopy(RECIPE),
        "planned": tuple(stage for stage in STAGES if side == "a" or stage != "dense"),
        "made": {stage: _made(stage, side if stage.startswith(own) and own else "a", inputs) for stage in STAGES},
        "perplexity": perplexity,
        "documents": documents(factor),
        "training": {model: deepcopy(list(history)) for model, history in inputs.training.items()},
        "tokenizer": "t" * 64,
        "held_out": {domain: domain * 8 for domain in DOMAINS},
        "made_by": {"commit": "8c1f0de2f4bd", "packages": "torch 2.13.0", "device": "a device"},
    }


def _made(stage: str, side: str, inputs: Any) -> Made:
    cost = next((cost for cost in inputs.costs if cost["stage"] == stage), {})
    return Made(f"{side}-{stage}".ljust(64, "0"), cost.get("seconds", 3.0), cost.get("tokens"), cost.get("train_flops"))


def documents(factor: dict[str, float], seeds: tuple[int, ...] = (0,)) -> DocumentScores:
    """Losses about each model's perplexity, the same chance for all models, so that differences are clear."""
    tokens = {domain: np.full(N_DOCUMENTS, 100, np.int64) for domain in DOMAINS}
    wobble = {d: np.random.default_rng(i).normal(0, 0.02, (len(seeds), N_DOCUMENTS)) for i, d in enumerate(DOMAINS)}
    own = {d: np.random.default_rng(9 + i).normal(0, 0.01, (len(seeds), N_DOCUMENTS)) for i, d in enumerate(DOMAINS)}
    nll = {
        model: {
            domain: 100 * (log(score * factor.get(model, 1.0)) + wobble[domain] + (own[domain] if factor else 0))
            for domain, score in zip(DOMAINS, scores, strict=True)
        }
        for model, scores in PERPLEXITY.items()
    }
    assert exp(nll["seed"]["law"].mean() / 100) > 1
    return DocumentScores(seeds, {d: np.arange(N_DOCUMENTS) for d in DOMAINS}, tokens, nll)
