"""`python -m tests.benchmarks.growth`: how training steps and plans grow with what they are made of.

A step is a gradient, whose order is the FLOPs of `bam_core.nn.costs`, and an update, whose order is the number of
parameters. `order` is what the step of the smallest size would take if both grew just so. Sizes are measured in turn;
an exponent is the slope of a line through the logarithms of size and median seconds, with the standard error of a least
squares fit, so its spread is two of those on either side. A plan's order is its edges (what a stage reads).
The result, also drawn on docs/performance.md, is `.bench/growth.json`. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.graph.key import pipeline_keys
from bam_core.graph.plan import Facts, plan
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline
from bam_core.nn.costs import params_total, training_flops
from bam_core.nn.lm import LM, init_weights
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from pipelines import bam
from pipelines.recipe import Recipe, load_recipe
from tests.benchmarks.result import OUT, write_result

BASE = ModelConfig(1024, 128, 2, 4, 4, 352, 256)
ENOUGH_S = 0.04
"""A size is timed for at least so long in each round."""


@dataclass(frozen=True)
class Sweep:
    """row: of the table. model: what grows, in words. tokens: of a step, the same for all sizes."""

    row: str
    model: str
    unit: str
    sizes: tuple[int, ...]
    config: Callable[[int], ModelConfig]
    tokens: int


def btx(dense: ModelConfig, n_experts: int = 4) -> ModelConfig:
    names = tuple(f"e{i}" for i in range(n_experts))
    return replace(dense, ffn=FFNExperts(n_experts, 1), experts=names)


def bam_of(dense: ModelConfig, n_experts: int = 4) -> ModelConfig:
    return replace(btx(dense, n_experts), attention=AttentionExperts(n_experts, n_experts))


def wide(d_model: int) -> ModelConfig:
    """Heads of 32 channels, an FFN of 2.75 times the width."""
    return replace(BASE, d_model=d_model, n_heads=d_model // 32, n_kv_heads=d_model // 32, d_ff=d_model * 11 // 4)


EXPERTS = (2, 4, 8, 16, 32)
SWEEPS = (
    Sweep("growth_experts", "BAM", "experts", EXPERTS, lambda n: bam_of(BASE, n), 1024),
    Sweep("growth_experts", "BTX", "experts", EXPERTS, lambda n: btx(BASE, n), 4096),
    Sweep(
        "growth_context",
        "BAM",
        "tokens of context",
        (128, 256, 512, 1024, 2048, 4096),
        lambda n: bam_of(replace(BASE, max_seq_len=n)),
        4096,
    ),
    Sweep("growth_width", "BAM", "width", (64, 128, 256, 512), lambda n: bam_of(wide(n)), 1024),
    Sweep(
        "growth_vocabulary",
        "BAM",
        "tokens of vocabulary",
        (1024, 4096, 16384, 65536),
        lambda n: bam_of(replace(BASE, vocab_size=n)),
        1024,
    ),
)
STAGES = (10, 50, 250, 1000, 5000)


class Step:
    """One training step, whose gradient and update are timed by themselves."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        self.phase = TrainConfig(10**6, tokens, 1e-4, {"a": 1.0}, config.max_seq_len)
        self.model = LM(config)
        init_weights(self.model, 0)
        self.model.cast(torch.bfloat16)
        self.optimizer = Optimizer(self.model, self.phase)
        self.optimizer.accumulate, self._accumulate = self._timed, self.optimizer.accumulate
        shape = (tokens // config.max_seq_len, config.max_seq_len + 1)
        self.rows = np.random.default_rng(0).integers(0, config.vocab_size, shape)

    def __call__(self) -> tuple[float, float]:
        """Seconds of the gradient and of the update, which begins with adding the gradient to the master's."""
        self.accumulate_s = 0.0
        started = time.perf_counter()
        accumulate_gradient(self.model, self.optimizer, self.rows, self.phase, len(self.rows))
        between = time.perf_counter()
        self.optimizer.step(1e-4)
        ended = time.perf_counter()
        return between - started - self.accumulate_s, ended - between + self.accumulate_s

    def _timed(self) -> None:
        started = time.perf_counter()
        self._accumulate()
        self.accumulate_s += time.perf_counter() - started


def measure_steps(sweep: Sweep, rounds: int) -> dict[str, Any]:
    configs = [sweep.config(size) for size in sweep.sizes]
    steps = [Step(config, sweep.tokens) for config in configs]
    repeats = [ceil(ENOUGH_S / sum([step(), step()][-1])) for step in steps]
    rounds_SRP = np.array([[_mean(step, n) for step, n in zip(steps, repeats, strict=True)] for _ in range(rounds)])
    gradient_S, update_S = np.median(rounds_SRP, 0).T
    flops = [training_flops(config, sweep.tokens, config.max_seq_len) for config in configs]
    params = [params_total(config) for config in configs]
    order = [gradient_S[0] * f / flops[0] + update_S[0] * p / params[0] for f, p in zip(flops, params, strict=True)]
    curve = _curve(
        sweep.row, f"{sweep.model} of {sweep.tokens} tokens a step", sweep.unit, sweep.sizes, rounds_SRP.sum(-1), order
    )
    parts = {"gradient": gradient_S, "update": update_S, "flops": flops, "params": params}
    for name, values in parts.items():
        curve[name] = list(map(float, values))
        curve["exponents"][name] = exponent(sweep.sizes, curve[name])[0]
    return curve


def _mean(step: Step, n: int) -> tuple[float, float]:
    gradient, update = np.mean([step() for _ in range(n)], 0)
    return gradient, update


def measure_plans(name: str, recipe_of: Callable[[int], Recipe], rounds: int) -> dict[str, Any]:
    """From a recipe to decisions, where nothing has been made: stages, keys, plan. No store is read."""
    recipes = [recipe_of(n) for n in STAGES]
    pipelines = [_build(recipe) for recipe in recipes]
    rounds_SR = np.array([[_plan_s(recipe) for recipe in recipes] for _ in range(rounds)])
    edges = [sum(len(stage.inputs) for stage in pipeline) for pipeline in pipelines]
    sizes = [len(pipeline.stages) for pipeline in pipelines]
    first = float(np.median(rounds_SR[:, 0]))
    curve = _curve("growth_plan", name, "stages", sizes, rounds_SR, [first * n / edges[0] for n in edges])
    curve["exponents"]["edges"] = exponent(sizes, edges)[0]
    return curve


def of_seeds(n_stages: int) -> Recipe:
    """The smallest method, 11 stages of one seed, under so many seeds."""
    recipe = load_recipe("quickstart", ["dense=false", "evaluate.routing=false"])
    domains, variants = dict([*recipe.domains.items()][:2]), {"bam": recipe.variants["bam"]}
    seeds = tuple(range(max(1, round((n_stages - 5) / 5))))
    return recipe.model_copy(update={"domains": domains, "variants": variants, "seeds": seeds})


def of_domains(n_stages: int) -> Recipe:
    """So many domains, each with its data and its expert."""
    recipe = of_seeds(0)
    first, second = recipe.domains.items()
    n_more = max(1, n_stages // 2 - 4)
    return recipe.model_copy(update={"domains": dict([first, *((f"d{i}", second[1]) for i in range(n_more))])})


def _build(recipe: Recipe) -> Pipeline:
    return bam.build(recipe, dict.fromkeys(recipe.texts, "0" * 64))


def _plan_s(recipe: Recipe) -> float:
    """Seconds of the processor: what else runs on it has no part, long or short."""
    n, started = 0, time.process_time()
    while n == 0 or time.process_time() - started < ENOUGH_S:
        pipeline = _build(recipe)
        keys = pipeline_keys(pipeline)
        plan(pipeline, keys, dict.fromkeys(keys, Facts()), Selection(), now=0.0)
        n += 1
    return (time.process_time() - started) / n


def _curve(
    row: str, model: str, unit: str, sizes: Sequence[int], rounds_SR: np.ndarray, order: Sequence[float]
) -> dict[str, Any]:
    """rounds_SR: seconds by round and size. order: seconds if the step or plan grew as the algorithm does."""
    seconds = np.median(rounds_SR, 0)
    slope, error = exponent(sizes, seconds)
    return {
        "row": row,
        "model": model,
        "unit": unit,
        "sizes": list(sizes),
        "seconds": seconds.tolist(),
        "low": rounds_SR.min(0).tolist(),
        "high": rounds_SR.max(0).tolist(),
        "order": [float(s) for s in order],
        "exponent": slope,
        "standard_error": error,
        "exponents": {"order": exponent(sizes, order)[0]},
        "rounds": len(rounds_SR),
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """b of seconds = a * size^b and its standard error, by least squares of the logarithms; needs three sizes."""
    x, y = [log(size) for size in sizes], [log(s) for s in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, sqrt(left / (len(x) - 2) / spread)


def entry(curve: Mapping[str, Any]) -> dict[str, Any]:
    """Of `table`. goal: the order's exponent over the same sizes."""
    slope, twice = curve["exponent"], 2 * curve["standard_error"]
    parts = ", ".join(f"{name} {value:.2f}" for name, value in curve["exponents"].items() if name != "order")
    sizes = f"{curve['model']}, {curve['sizes'][0]} to {curve['sizes'][-1]} {curve['unit']}"
    return {
        "row": curve["row"],
        "value": slope,
        "low": slope - twice,
        "high": slope + twice,
        "n": curve["rounds"],
        "unit": "exponent",
        "goal": curve["exponents"]["order"],
        "note": f"{sizes}; exponents of its parts: {parts}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", choices=sorted({sweep.row for sweep in SWEEPS} | {"growth_plan"}), action="append")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    curves = []
    print(f"{'row':<19}{'model':<30}{'exponent':>9}{'+- 2 s.e.':>11}{'order':>7}   seconds of each size (order's)")
    works = [(sweep.row, lambda sweep=sweep: measure_steps(sweep, given.rounds)) for sweep in SWEEPS]
    for name, recipe_of in (("plan of seeds", of_seeds), ("plan of domains", of_domains)):
        works.append(
            ("growth_plan", lambda name=name, recipe_of=recipe_of: measure_plans(name, recipe_of, given.rounds))
        )
    for row, measure in works:
        if given.row and row not in given.row:
            continue
        curve = measure()
        curves.append(curve)
        times = ", ".join(f"{s:.3g} ({o:.3g})" for s, o in zip(curve["seconds"], curve["order"], strict=True))
        shown = f"{curve['exponent']:>9.2f}{2 * curve['standard_error']:>11.2f}{curve['exponents']['order']:>7.2f}"
        print(f"{row:<19}{curve['model']:<30}{shown}   {times}", flush=True)
    result = {"threads": torch.get_num_threads(), "curves": curves, "table": [entry(curve) for curve in curves]}
    write_result("growth", result, given.out)


if __name__ == "__main__":
    main()
