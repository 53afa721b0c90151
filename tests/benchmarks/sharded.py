"""`python -m tests.benchmarks.sharded`: sharded training beside one rank's, and layers recomputed or compiled.

parity: twenty steps of variants of the method on 2 ranks under FSDP (real processes, gloo) and on 1; how far losses and
gradient norms are apart at most, also where the run is killed half way and goes on with another number of ranks.
layers: seconds of a step, peak memory above what the model and its optimizer take, seconds of the first step (which
compiles), each in a process of its own. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bam_core.config import TrainConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.train.layers import compile_layers, recompute_activations
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from tests.benchmarks.__main__ import MICRO_BATCH_ROWS as ROWS
from tests.benchmarks.__main__ import SIZES, models
from tests.benchmarks.result import OUT, write_result
from tests.golden import runs
from tests.ranks import Ranks, RankWorker, ranks

PARITY = (
    "dense",
    "btx-top-1",
    "btx-top-2-topk-softmax",
    "btx-ste",
    "btx-sample-top-1",
    "btx-balance-bias",
    "bam-expert-kv",
    "bam-shared-kv",
    "bam-router-bias",
    "bam-dense-gradient",
)
DTYPES = ("fp64", "fp32", "bf16")
HALF = runs.N_STEPS // 2
History = list[dict[str, float]]


def history(rank: int, world: int, folder: Path, name: str, dtype: str, pace: Pace, die_at: int | None) -> History:
    worker = RankWorker(folder, rank, world, die_at)
    try:
        phase = replace(runs.PHASE, dtype=dtype)
        return train(runs.initial(runs.VARIANTS[name]), runs.Tokens(), phase, worker, pace)[1].history
    except KeyboardInterrupt:
        return []


def run(group: Ranks, world: int, name: str, dtype: str, folder: Path, die_at: int | None = None) -> History:
    pace = Pace(micro_batch_rows=2, strategy="fsdp", checkpoint_steps=HALF if die_at else 10**6)
    found: list[History] = group.run(history, world, folder, name, dtype, pace, die_at)
    return found[0]


def parity(names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    with ranks(3) as group:
        for name in names:
            for dtype in DTYPES:
                with tempfile.TemporaryDirectory() as folder:
                    one = run(group, 1, name, dtype, Path(folder) / "one")
                    two = run(group, 2, name, dtype, Path(folder) / "two")
                    run(group, 2, name, dtype, Path(folder) / "resumed", HALF)
                    resumed = run(group, 3, name, dtype, Path(folder) / "resumed")
                rows.append({"model": name, "dtype": dtype, **apart("2", two, one), **apart("2 to 3", resumed, one)})
                print(line(rows[-1]), flush=True)
    return rows


def apart(what: str, found: History, expected: History) -> dict[str, float]:
    """The largest relative difference at any step."""
    assert len(found) == len(expected) == runs.N_STEPS
    return {
        f"{figure}, {what} ranks": max(
            abs(a[figure] - b[figure]) / abs(b[figure]) for a, b in zip(found, expected, strict=True)
        )
        for figure in runs.FIGURES
    }


def line(row: dict[str, Any]) -> str:
    figures = "".join(f"{value:>12.1e}" for key, value in row.items() if key not in ("model", "dtype"))
    return f"{row['model']:<26}{row['dtype']:<6}{figures}"


def measure(
    rank: int, world: int, size: str, name: str, recompute: bool, compiled: bool, rounds: int
) -> dict[str, Any]:
    """One model's training step, in this process alone."""
    config = models(SIZES[size])[name]
    phase = TrainConfig(10**6, ROWS * config.max_seq_len, 1e-4, {"a": 1.0}, config.max_seq_len)
    model = LM(config)
    init_weights(model, 0)
    model.cast(torch.bfloat16).train()
    if compiled:
        warnings.simplefilter("ignore")  # torch hides its compiler's own warnings in a way that errors break
        compile_layers(model, "cpu")
    if recompute:
        recompute_activations(model)
    optimizer = Optimizer(model, phase)
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, config.max_seq_len + 1))

    def step() -> float:
        started = time.perf_counter()
        accumulate_gradient(model, optimizer, rows, phase, ROWS)
        optimizer.step(1e-4)
        return time.perf_counter() - started

    before = memory("VmRSS")
    first = step()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which compiling may have set
    times = [step() for _ in range(rounds)]
    return {
        "size": size,
        "model": name,
        "how": " and ".join(["computed again"] * recompute + ["compiled"] * compiled) or "plain",
        "step_s": statistics.median(times),
        "step_min_s": min(times),
        "first_step_s": first,
        "peak_bytes_above_model": memory("VmHWM") - before,
    }


def memory(figure: str) -> int:
    found = re.search(rf"{figure}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, figure
    return int(found[1]) * 1024


def layers(size: str, rounds: int) -> list[dict[str, Any]]:
    found = []
    for name in models(SIZES[size]):
        for recompute, compiled in ((False, False), (True, False), (False, True), (True, True)):
            with ranks(1) as group:
                found += group.run(measure, 1, size, name, recompute, compiled, rounds)
            print(row_of_layers(found[-1]), flush=True)
    return found


def row_of_layers(row: dict[str, Any]) -> str:
    seconds = f"{row['step_s']:>9.3f} s{row['step_min_s']:>9.3f} s{row['first_step_s']:>9.1f} s"
    peak = f"{row['peak_bytes_above_model'] / 2**20:>9.0f} MiB"
    return f"{row['size']:<12}{row['model']:<8}{row['how']:<28}{seconds}{peak}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("parity", "layers"), nargs="?", default="parity")
    parser.add_argument("--model", choices=runs.VARIANTS, action="append")
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.what == "parity":
        print(f"{'largest relative difference':<32}{'2 ranks':>18}{'killed, then 3 ranks':>24}")
        print(f"{'model':<26}{'dtype':<6}" + f"{'loss':>12}{'grad norm':>12}" * 2)
        rows = parity(options.model or PARITY)
    else:
        print(f"{'size':<12}{'model':<8}{'layers':<28}{'step':>11}{'fastest':>11}{'first step':>11}{'peak memory':>13}")
        rows = layers(options.size, options.rounds)
    write_result(f"sharded-{options.what}", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
