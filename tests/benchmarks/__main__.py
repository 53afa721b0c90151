"""`make bench`: training steps beside the machine's own bf16 matrix product, measured interleaved.

Needs `bam_core` alone, so it also runs on a GPU machine without Ray or MLflow. The result is
`.bench/train-<device>.json`; its `table` is that of the d512 models. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.nn.costs import params_total, training_flops
from bam_core.nn.lm import LM, init_weights
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from tests.benchmarks.result import OUT, write_result

EXPERTS = ("general", "code", "law", "math")
SIZES = {
    "quickstart": ModelConfig(4096, 128, 4, 4, 4, 352, 256),
    "d512": ModelConfig(4096, 512, 6, 8, 8, 1408, 256),
}
BATCH_TOKENS = 4096
"""Of one optimizer step, as in the shipped recipes."""
MICRO_BATCH_ROWS = 8
"""Of one forward pass; the default of `runtime.micro_batch_rows`."""


def models(dense: ModelConfig) -> dict[str, ModelConfig]:
    btx = replace(dense, ffn=FFNExperts(4, 1), experts=EXPERTS)
    return {"dense": dense, "btx": btx, "bam": replace(btx, attention=AttentionExperts(4, 4))}


def training_step(config: ModelConfig, device: str) -> Callable[[], None]:
    """One optimizer step on random tokens."""
    phase = TrainConfig(10**6, BATCH_TOKENS, 1e-4, {"a": 1.0}, config.max_seq_len)
    model = LM(config)
    init_weights(model, 0)
    model.cast(torch.bfloat16).to(device)
    optimizer = Optimizer(model, phase)
    draw = np.random.default_rng(0)

    def step() -> None:  # other rows each time, so that experts get other numbers of tokens, as in a training
        rows = draw.integers(0, config.vocab_size, (phase.rows_per_batch, config.max_seq_len + 1))
        accumulate_gradient(model, optimizer, rows, phase, MICRO_BATCH_ROWS)
        optimizer.step(1e-4)

    return step


def matrix_product(device: str, n: int = 2048) -> Callable[[], None]:
    a = torch.randn(n, n, device=device).bfloat16()
    b = torch.randn(n, n, device=device).bfloat16()
    return lambda: void(a @ b)


def void(_: Any) -> None:
    pass


def seconds(work: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Measured:
    """FLOP/s of the matrix product and of each model's training step, round by round."""

    size: str
    product: list[float]
    steps: dict[str, list[float]]


def measure(size: str, device: str, rounds: int) -> Measured:
    """Each round times the matrix product and every model once, so that a noisy moment hits all of them."""
    configs = models(SIZES[size])
    works = {name: training_step(config, device) for name, config in configs.items()}
    flops = {name: training_flops(config, BATCH_TOKENS, config.max_seq_len) for name, config in configs.items()}
    product = matrix_product(device)
    for work in (product, *works.values()):  # the first run compiles kernels and fills caches
        seconds(work, device)
    measured = Measured(size, [], {name: [] for name in works})
    for _ in range(rounds):
        measured.product.append(2 * 2048**3 / min(seconds(product, device) for _ in range(3)))
        for name, work in works.items():
            measured.steps[name].append(flops[name] / seconds(work, device))
    return measured


def figures(measured: Measured, name: str) -> dict[str, Any]:
    config, rates = models(SIZES[measured.size])[name], measured.steps[name]
    flops = training_flops(config, BATCH_TOKENS, config.max_seq_len)
    rate, peak = statistics.median(rates), statistics.median(measured.product)
    return {
        "size": measured.size,
        "model": name,
        "params": params_total(config),
        "tokens_per_s": BATCH_TOKENS * rate / flops,
        "flop_per_s": rate,
        "frac_of_matrix_product": rate / peak,
        "step_s": {"min": flops / max(rates), "median": flops / rate, "max": flops / min(rates)},
        "matrix_product_flop_per_s": peak,
    }


def table_rows(measured: Measured) -> list[dict[str, Any]]:
    """The dense model's FLOP/s over the matrix product's, and each mixture's over the dense model's, round by round."""
    dense = measured.steps["dense"]
    below = {"dense": measured.product, "btx": dense, "bam": dense}
    rows = []
    for name, rates in measured.steps.items():
        ratios = [rate / other for rate, other in zip(rates, below[name], strict=True)]
        rows.append(
            {
                "row": f"{name}_step",
                "value": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "n": len(ratios),
                "unit": "ratio",
                "note": f"{measured.size}, {BATCH_TOKENS:,} tokens a step in passes of {MICRO_BATCH_ROWS} rows",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    all_measured = [measure(size, options.device, options.rounds) for size in options.size or SIZES]
    rows = [figures(measured, name) for measured in all_measured for name in measured.steps]
    print(f"{'size':<12}{'model':<8}{'tokens/s':>10}{'GFLOP/s':>10}{'of product':>12}")
    for row in rows:
        speed = f"{row['tokens_per_s']:>10,.0f}{row['flop_per_s'] / 1e9:>10,.0f}{row['frac_of_matrix_product']:>12.2f}"
        print(f"{row['size']:<12}{row['model']:<8}{speed}")
    table = [row for measured in all_measured if measured.size == "d512" for row in table_rows(measured)]
    for row in table:
        print(f"{row['row']:<12}{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
    result = {"threads": torch.get_num_threads(), "rows": rows, "table": table}
    device = torch.cuda.get_device_name() if options.device == "cuda" else None
    write_result(f"train-{options.device}", result, options.out, device)


if __name__ == "__main__":
    main()
