"""`make bench`: training steps beside the machine's own bf16 matrix product, measured interleaved.

Needs `bam_core` alone, so it also runs on a GPU machine without Ray or MLflow. The result is
`.bench/train-<device>.json`. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
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
ROWS = 8


def models(dense: ModelConfig) -> dict[str, ModelConfig]:
    btx = replace(dense, ffn=FFNExperts(4, 1), experts=EXPERTS)
    return {"dense": dense, "btx": btx, "bam": replace(btx, attention=AttentionExperts(4, 4))}


def training_step(config: ModelConfig, device: str) -> Callable[[], None]:
    """One optimizer step on random tokens."""
    phase = TrainConfig(10**6, ROWS * config.max_seq_len, 1e-4, {"a": 1.0}, config.max_seq_len)
    model = LM(config)
    init_weights(model, 0)
    model.cast(torch.bfloat16).to(device)
    optimizer = Optimizer(model, phase)
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, config.max_seq_len + 1))

    def step() -> None:
        accumulate_gradient(model, optimizer, rows, phase, ROWS)
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


def measure(size: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """Each round times the matrix product and every model once, so that a noisy moment hits all of them."""
    configs = models(SIZES[size])
    works = {name: training_step(config, device) for name, config in configs.items()}
    product = matrix_product(device)
    for work in (product, *works.values()):  # the first run compiles kernels and fills caches
        seconds(work, device)
    peaks: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        peaks.append(2 * 2048**3 / seconds(product, device))
        for name, work in works.items():
            times[name].append(seconds(work, device))
    peak = statistics.median(peaks)
    return [figures(size, name, configs[name], times[name], peak) for name in works]


def figures(size: str, name: str, config: ModelConfig, times: list[float], peak: float) -> dict[str, Any]:
    tokens = ROWS * config.max_seq_len
    flops = training_flops(config, tokens, config.max_seq_len)
    median = statistics.median(times)
    return {
        "size": size,
        "model": name,
        "params": params_total(config),
        "tokens_per_s": tokens / median,
        "flop_per_s": flops / median,
        "frac_of_matrix_product": flops / median / peak,
        "step_s": {"min": min(times), "median": median, "max": max(times)},
        "matrix_product_flop_per_s": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = [row for size in options.size or SIZES for row in measure(size, options.device, options.rounds)]
    print(f"{'size':<12}{'model':<8}{'tokens/s':>10}{'GFLOP/s':>10}{'of product':>12}")
    for row in rows:
        speed = f"{row['tokens_per_s']:>10,.0f}{row['flop_per_s'] / 1e9:>10,.0f}{row['frac_of_matrix_product']:>12.2f}"
        print(f"{row['size']:<12}{row['model']:<8}{speed}")
    result = {"threads": torch.get_num_threads(), "rows": rows}
    device = torch.cuda.get_device_name() if options.device == "cuda" else None
    write_result(f"train-{options.device}", result, options.out, device)


if __name__ == "__main__":
    main()
