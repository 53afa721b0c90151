"""`python -m tests.benchmarks.gpu`: utilisation of one GPU in training, at the paper's small size with 8k context.

Needs `bam_core`, torch and numpy alone. Measurements come in order of importance, and `--budget` seconds after the
start no other begins. Each is written to `<out>/gpu.json` when it is done; what fails is written too, and the rest goes
on: in another process, if the device was lost. `--tiny --device cpu` runs all of it at sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.result import OUT

LOST = 3
"""Exit status of a process whose device is lost."""
GRACE_S = 80
"""How long a measurement that has begun may outlast the budget."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--budget", type=float, default=150.0, help="seconds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", action="append", help="a measurement's name, or how it begins")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sys.exit(child(options) if options.child else parent(options))


def parent(options: argparse.Namespace) -> int:
    """Run the measurements in a process of their own, and in another when its device is lost."""
    (options.out / "gpu.json").unlink(missing_ok=True)
    (options.out / "gpu.begun").unlink(missing_ok=True)
    deadline = time.monotonic() + options.budget
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}
    while (left := deadline - time.monotonic()) > 0:
        command = [sys.executable, "-m", "tests.benchmarks.gpu", "--child", *sys.argv[1:], "--budget", str(left)]
        try:
            status = subprocess.run(command, env=environment, timeout=left + GRACE_S).returncode
        except subprocess.TimeoutExpired:
            print("a measurement hangs; the rest goes on without it", flush=True)
            continue
        if status == 0:
            return 0
        print(f"the process ended with {status}; the rest goes on in another", flush=True)
    return 1


def child(options: argparse.Namespace) -> int:
    from tests.benchmarks.gpu_kit import Bench

    begun = options.out / "gpu.begun"
    skip = set(begun.read_text().split()) if begun.exists() else set()
    kept = options.out / "gpu.json"
    found = json.loads(kept.read_text())["measured"] if kept.exists() else {}
    bench = Bench(options.out, options.device, options.tiny, time.monotonic() + options.budget, found, table)
    for name, work in measurements().items():
        wanted = not options.only or any(name.startswith(start) for start in options.only)
        if name in skip or not wanted:
            continue
        with begun.open("a") as file:
            file.write(f"{name}\n")
        if not bench.run(name, work):
            return LOST
    bench.write()
    print_table(bench.found)
    return 0


def measurements() -> dict[str, Callable[[Any], dict[str, Any]]]:
    """In order of importance."""
    from tests.benchmarks import gpu_parts, gpu_small, gpu_steps

    def steps(variants: tuple[gpu_steps.Variant, ...]) -> dict[str, Callable[[Any], dict[str, Any]]]:
        return {variant.name: gpu_steps.training_step(variant) for variant in variants}

    return {
        "ceilings": gpu_parts.ceilings,
        "attention": gpu_parts.attention,
        **steps(gpu_steps.FIRST),
        **{f"study_{name}": gpu_small.small(name) for name in gpu_small.MODELS},
        "repeats": gpu_small.repeats,
        "loss": gpu_parts.loss,
        "decode": gpu_steps.decode,
        "grouped": gpu_parts.grouped,
        **steps(gpu_steps.THEN),
        "sharded": gpu_small.sharded,
        **steps(gpu_steps.LAST),
        "study_btx_top3of6_compiled": gpu_small.small("btx_top3of6", compiled=True),
    }


def table(bench: Any) -> list[dict[str, Any]]:
    """The rows of docs/performance.md: of each model, its best way."""
    rows = []
    for model, row in (("dense", "gpu_dense"), ("bam", "gpu_bam")):
        ways = {k: v for k, v in bench.found.items() if k.startswith(f"{model}_") and "of_product" in v}
        if ways:
            name = max(ways, key=lambda way: ways[way]["of_product"])
            best = ways[name]
            rows.append(
                {
                    "row": row,
                    "value": best["of_product"],
                    "low": best["of_product_low"],
                    "high": best["of_product_high"],
                    "n": best["rounds"],
                    "unit": "ratio",
                    "note": f"{name}: {best['tflop_per_s']:.0f} TFLOP/s, {best['of_datasheet']:.2f} of the data sheet",
                }
            )
    return rows


def print_table(found: dict[str, Any]) -> None:
    print(f"{'step':<44}{'tokens/s':>10}{'TFLOP/s':>9}{'of product':>12}{'of sheet':>10}{'first':>8}{'peak GiB':>10}")
    for name, row in found.items():
        if "of_product" in row:
            speed = f"{row['tokens_per_s']:>10,.0f}{row['tflop_per_s']:>9.0f}{row['of_product']:>12.3f}"
            rest = f"{row['of_datasheet']:>10.3f}{row['first_step_s']:>8.1f}{row.get('peak_bytes', 0) / 2**30:>10.1f}"
            print(f"{name:<44}{speed}{rest}")
        elif "error" in row:
            print(f"{name:<44}{row['error'][:100]}")


if __name__ == "__main__":
    main()
