"""The tests in layers, what fails soonest first: `python -m tests.run [LAYER ...]`; `make test` runs all of them.

Tests without Ray run in a process per core, a file at a time in each, so that what a file has made is made once. Those
with Ray run one after the other: they share one Ray, and look at its processes. A layer that fails is the last.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "build" / "coverage" / "data"
MOST_PROCESSES = 4
"""Each has torch, and models beside it."""
INTERRUPTED = 130
COVERAGE = ("--cov", "--cov-append", "--cov-report=")


@dataclass(frozen=True)
class Layer:
    """with_ray: the tests of these folders that are marked `ray`, else all others."""

    name: str
    folders: tuple[str, ...]
    with_ray: bool = False


LAYERS = (
    Layer(
        "core",
        ("arch", "benchmarks", "cli", "core", "golden", "oracles", "python", "recipe", "report", "results"),
    ),
    Layer("adapters", ("browser", "infra", "security")),
    Layer("end-to-end", ("e2e", "faults")),
    Layer("ray", ("cluster", "e2e", "faults", "infra", "security"), with_ray=True),
)
NAMES = tuple(layer.name for layer in LAYERS)


def command(layer: Layer, options: argparse.Namespace) -> list[str]:
    """How pytest is called for a layer."""
    marks = ["ray" if layer.with_ray else "not ray", *([] if options.all else ["not long"])]
    words = ["-m", " and ".join(marks), f"--randomly-seed={options.seed}", *(COVERAGE if options.coverage else ())]
    if not layer.with_ray and n_processes() > 1:
        words += ["-n", str(n_processes()), "--dist", "loadfile", "--no-loadscope-reorder"]
    return [sys.executable, "-m", "pytest", *words, *(f"tests/{folder}" for folder in layer.folders)]


def n_processes() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


def run(words: list[str]) -> int:
    """The exit status of a command. Ctrl-C reaches it as well as us; it says what it has found and ends by itself."""
    interrupted = False
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(DATA)})
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            interrupted = True
        else:
            return INTERRUPTED if interrupted else status if status >= 0 else 128 - status


def read(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.run", description="Run the tests in layers.")
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"{', '.join(NAMES)}; without any, all of them")
    parser.add_argument("--lint", action="store_true", help="`make lint` first")
    parser.add_argument("--all", action="store_true", help="those too that are marked `long`")
    parser.add_argument("--coverage", action="store_true", help="measure, and print a table by layer of the code")
    parser.add_argument("--seed", type=int, help="of the order; without one, another each time")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.layers if name not in NAMES]:
        parser.error(f"no layer {unknown[0]!r}: one of {', '.join(NAMES)}")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**32)
    return options


def main(argv: list[str] | None = None) -> int:
    options = read(argv)
    if options.coverage:
        shutil.rmtree(DATA.parent, ignore_errors=True)
        DATA.parent.mkdir(parents=True)
    asked = [layer for layer in LAYERS if layer.name in (options.layers or NAMES)]
    todo = [("lint", ["make", "lint"])] if options.lint else []
    todo += [(layer.name, command(layer, options)) for layer in asked]
    status, said = 0, []
    for name, words in todo:
        start = time.monotonic()
        status = run(words)
        said.append(f"{name:<12}{time.monotonic() - start:>7.0f} s  {'ok' if status == 0 else f'exit status {status}'}")
        if status:
            break
    if options.coverage and status != INTERRUPTED:
        run([sys.executable, "-m", "tests.coverage_by_layer"])
    skipped = "".join(f"\n{name:<12}        not run" for name, _ in todo[len(said) :])
    print("\n" + "\n".join(said) + skipped + f"\nsame order again: --seed {options.seed}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
