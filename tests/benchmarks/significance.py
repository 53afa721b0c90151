"""`python -m tests.benchmarks.significance`: whether the intervals of differences cover what they should.

Evaluations are made up in which the true difference is known: documents of log-normal length whose difficulty both
models feel, what a model makes of a document beside that, and of it under one seed, seeds that move a model as a whole
and by domain and do not cancel between the models of a pair. Of each kind, many: how often the 95% interval holds the
truth, how often a planted effect is found, how often there seems to be one where there is none; beside our interval,
those that one might take instead. Nothing is asserted here (tests/core/test_significance_simulated.py does); the result
is `.bench/significance.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log1p, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from bam_core.evaluate.resample import AVERAGE, DocumentScores, Floats, Resampler
from bam_core.evaluate.significance import Comparison, compare, compare_all
from bam_core.evaluate.student import quantile
from tests.benchmarks.result import OUT, write_result

NOISE = 10.0
DOMAINS = {"general": 4.2, "code": 2.5, "law": 2.2, "math": 1.4}
"""Domain -> nats per token, about the quickstart's."""


@dataclass(frozen=True)
class World:
    """effect: the true difference of model 0 from the others. *_sd: in nats per token, so 0.01 is 1% of perplexity.

    seed_sd: of a seed on a whole model, domain_sd: on one domain; shared_sd: on all models alike. document_sd: of a
    document on one model, under_seed_sd: under one seed. token_sd: of one token; documents average it.
    unequal: seeds move the last model so many times as far. noisy: so many models before the last, NOISE times.
    spread: of the logarithm of how far a model is from the others, under seeds and by documents alike.
    """

    effect: float = 0.0
    seeds: int = 3
    documents: tuple[int, int] = (20, 100)
    length_sd: float = 0.8
    seed_sd: float = 0.005
    domain_sd: float = 0.005
    shared_sd: float = 0.02
    document_sd: float = 0.02
    under_seed_sd: float = 0.01
    token_sd: float = 0.5
    models: int = 2
    unequal: float = 1.0
    noisy: int = 0
    spread: float = 0.0

    @property
    def noisy_models(self) -> range:
        return range(self.models - 1 - self.noisy, self.models - 1)

    def draw(self, rng: np.random.Generator) -> DocumentScores:
        """Models "0", "1", ..."""
        size = (self.models, self.seeds, 1)
        far_M11 = np.exp(rng.normal(0, self.spread, self.models))[:, None, None] if self.spread else 1.0
        moved_by = np.ones((self.models, 1, 1)) * far_M11
        moved_by[-1] *= self.unequal
        moved_by[self.noisy_models] *= NOISE
        whole_MR1 = rng.normal(0, self.seed_sd, size) * moved_by + rng.normal(0, self.shared_sd, (1, self.seeds, 1))
        tokens, nll = {}, {str(model): {} for model in range(self.models)}
        for domain, level in DOMAINS.items():
            n = int(rng.integers(self.documents[0], self.documents[1] + 1))
            tokens_N = np.maximum(1, rng.lognormal(5.5, self.length_sd, n).astype(np.int64))
            noise_N = np.sqrt(self.under_seed_sd**2 + self.token_sd**2 / tokens_N)
            apart_MRN = rng.normal(0, self.document_sd, (self.models, 1, n))
            apart_MRN = apart_MRN + rng.normal(size=(self.models, self.seeds, n)) * noise_N
            each_MRN = level + rng.normal(0, 0.4, n) + apart_MRN * far_M11
            each_MRN += whole_MR1 + rng.normal(0, self.domain_sd, size) * moved_by
            each_MRN[0] += log1p(self.effect)
            tokens[domain] = tokens_N
            for model in range(self.models):
                nll[str(model)][domain] = each_MRN[model] * tokens_N
        documents = {domain: np.arange(len(tokens_N)) for domain, tokens_N in tokens.items()}
        return DocumentScores(tuple(range(self.seeds)), documents, tokens, nll)


WORLDS = {
    "effect of -3%": World(-0.03),
    "no effect": World(),
    "no effect, 1 seed (no chance of seeds)": World(seeds=1, seed_sd=0, domain_sd=0),
    "effect of -3%, 2 seeds": World(-0.03, seeds=2),
    "effect of -3%, 5 seeds": World(-0.03, seeds=5),
    "no effect, 5 seeds": World(seeds=5),
    "no effect, seeds rule": World(seed_sd=0.02),
    "no effect, documents rule": World(seed_sd=0.0005, domain_sd=0.001, document_sd=0.05),
    "no effect, documents under seeds rule": World(seed_sd=0, domain_sd=0, document_sd=0, under_seed_sd=0.05),
    "no effect, few long documents": World(documents=(8, 20), length_sd=1.2),
}
FAMILIES = {
    "7 against 1, no effect": World(models=8),
    "7 against 1, effect of -3%": World(-0.03, models=8),
    "7 against 1, a baseline twice as noisy": World(models=8, unequal=2.0),
    "7 against 1, 1 of them 10 times as noisy": World(models=8, noisy=1),
    "the same, 2 seeds": World(models=8, noisy=1, seeds=2),
    "15 against 1, 2 of them 10 times as noisy": World(models=16, noisy=2),
    "the same, effect of -3%": World(-0.03, models=16, noisy=2),
    "the same, effect of -3%, 2 seeds": World(-0.03, models=16, noisy=2, seeds=2),
    "15 against 1, unlike": World(models=16, spread=1.0),
    "15 against 1, unlike, 2 seeds": World(models=16, spread=1.0, seeds=2),
}
PAIR = ("0", "1")
PLAIN_DRAWS = 500
Interval = tuple[float, float]


@dataclass(frozen=True)
class Trial:
    """One made-up evaluation, what we find in it, and what others would."""

    scores: DocumentScores

    @cached_property
    def found(self) -> Comparison:
        return compare(self.scores, *PAIR)

    @cached_property
    def drawn(self) -> Floats:
        """The differences of documents drawn anew [R, B]."""
        a, b = Resampler(self.scores, PAIR, PLAIN_DRAWS, 0).drawn(AVERAGE)
        return a - b


def ours(trial: Trial) -> Interval:
    return trial.found.low, trial.found.high


def one_t(trial: Trial) -> Interval:
    """The same two parts, the documents' on 30 degrees of freedom, with one t by Satterthwaite's."""
    parts = [(trial.found.documents_se**2, 30), (trial.found.seeds_se**2, max(1, len(trial.scores.seeds) - 1))]
    total = sum(variance for variance, _ in parts)
    df = total**2 / sum(variance**2 / df for variance, df in parts)
    d, half = log1p(trial.found.difference), quantile(0.05, df) * sqrt(total)
    return float(np.expm1(d - half)), float(np.expm1(d + half))


def documents_only(trial: Trial) -> Interval:
    """The percentiles of the bootstrap over documents, as if the seeds were all that there are."""
    return _percentiles(trial.drawn.mean(0))


def plain_bootstrap(trial: Trial) -> Interval:
    """The percentiles of a bootstrap over documents and seeds."""
    n_seeds, n_draws = trial.drawn.shape
    chosen_RB = np.random.default_rng(1).integers(0, n_seeds, (n_seeds, n_draws))
    return _percentiles(np.take_along_axis(trial.drawn, chosen_RB, 0).mean(0))


def unpaired(trial: Trial) -> Interval:
    """Each model's documents drawn by themselves."""
    a, b = (Resampler(trial.scores, [name], PLAIN_DRAWS, i).drawn(AVERAGE)[0].mean(0) for i, name in enumerate(PAIR))
    return _percentiles(a - b)


METHODS: Mapping[str, Callable[[Trial], Interval]] = {
    "ours": ours,
    "one t for both": one_t,
    "plain bootstrap": plain_bootstrap,
    "documents only": documents_only,
    "unpaired": unpaired,
}


def rates(world: World, repetitions: int, methods: Sequence[str] = tuple(METHODS), seed: int = 0) -> dict[str, Any]:
    """Of each method: coverage of the truth, share of intervals clear of zero, median width in percent."""
    rng, found = np.random.default_rng(seed), {name: [] for name in methods}
    for _ in range(repetitions):
        trial = Trial(world.draw(rng))
        for name in methods:
            found[name].append(METHODS[name](trial))
    return {name: _rates(np.array(intervals), world.effect) for name, intervals in found.items()}


def family_rates(world: World, repetitions: int, seed: int = 0) -> dict[str, float]:
    """Every model against the last: coverage of single intervals, and what holds of the family of them."""
    rng, families = np.random.default_rng(seed), []
    pairs = [(str(model), str(world.models - 1)) for model in range(world.models - 1)]
    for _ in range(repetitions):
        families.append(compare_all(world.draw(rng), pairs))
    truth = [world.effect] + [0.0] * (len(pairs) - 1)
    first, equal = [family[0] for family in families], [family[bool(world.effect) :] for family in families]
    noisy = [holds(family[model], 0.0) for family in families for model in world.noisy_models]
    return {
        "coverage": _mean(holds(c, t) for family in families for c, t in zip(family, truth, strict=True)),
        **({"coverage_of_noisy": _mean(noisy)} if noisy else {}),
        "first_found": _mean(c.is_distinguishable for c in first),
        "any_false": _mean(any(c.is_distinguishable for c in family) for family in equal),
        "median_width_percent": float(np.median([100 * (c.high - c.low) for f in families for c in f])),
        "median_corrected_width_percent": float(
            np.median([100 * (c.corrected_high - c.corrected_low) for f in families for c in f])
        ),
    }


def holds(comparison: Comparison, truth: float) -> bool:
    return comparison.low <= truth <= comparison.high


def _percentiles(drawn_B: Floats) -> Interval:
    low, high = np.expm1(np.quantile(drawn_B, (0.025, 0.975)))
    return float(low), float(high)


def _rates(intervals: np.ndarray, truth: float) -> dict[str, float]:
    low, high = intervals.T
    return {
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "clear_of_zero": float(((low > 0) | (high < 0)).mean()),
        "median_width_percent": float(np.median(100 * (high - low))),
    }


def _named(worlds: Mapping[str, World], word: str) -> list[tuple[str, World]]:
    return [(name, world) for name, world in worlds.items() if word in name]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--only", default="", help="worlds and families whose name has this word")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    pairs, families = [], []
    print(f"{'world':<40}{'method':<18}{'coverage':>10}{'clear of 0':>12}{'width':>9}")
    for name, world in _named(WORLDS, given.only):
        found = rates(world, given.repetitions)
        pairs.append({"world": name, **asdict(world), "methods": found})
        for method, row in found.items():
            shown = f"{row['coverage']:>10.1%}{row['clear_of_zero']:>12.1%}{row['median_width_percent']:>8.2f}%"
            print(f"{name:<40}{method:<18}{shown}", flush=True)
    head = f"{'coverage':>10}{'of noisy':>10}{'first found':>13}{'any false':>11}{'width':>9}{'corrected':>11}"
    print(f"\n{'family':<42}{head}")
    for name, world in _named(FAMILIES, given.only):
        row = family_rates(world, given.repetitions)
        families.append({"family": name, **asdict(world), **row})
        noisy = f"{row['coverage_of_noisy']:.1%}" if "coverage_of_noisy" in row else ""
        shown = f"{row['coverage']:>10.1%}{noisy:>10}{row['first_found']:>13.1%}{row['any_false']:>11.1%}"
        widths = f"{row['median_width_percent']:>8.2f}%{row['median_corrected_width_percent']:>10.2f}%"
        print(f"{name:<42}{shown}{widths}", flush=True)
    write_result(
        "significance",
        {"repetitions": given.repetitions, "level": 0.95, "pairs": pairs, "families": families},
        given.out,
    )


if __name__ == "__main__":
    main()
