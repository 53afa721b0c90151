"""`python -m tests.benchmarks.mixing`: how fast a mixture is written, beside `cp` of the same bytes; and its memory.

Four dense models of 250 MB each become a BAM, as the stage `mix` makes and writes it: with the digest of every tensor,
by `upcycle` and `write_model`. Then `cp -r` copies the folder that came out. Both end with an fsync of every file, and
both read from the page cache. The time without it is told beside: there the disk has no part. Peak memory is that of a
process of its own, mapped files included, over what it had before, in units of the largest tensor of a dense model
times (E + 2). The result is `.bench/mixing.json`. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from bam_core.checkpoint import read_config, read_digests, write_model
from bam_core.config import ModelConfig
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.variants import VARIANTS, mixture_config, rules_for
from bam_core.upcycle.walk import ReopenedTensors
from pipelines.stages.mix import shard_bytes
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.timing import entry, ratios

NAMES = ("general", "code", "law", "math")
DENSE = ModelConfig(vocab_size=8192, d_model=1024, n_layers=1, n_heads=16, n_kv_heads=16, d_ff=16_384, max_seq_len=256)
TINY = ModelConfig(vocab_size=64, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_seq_len=16)


def write_dense(root: Path, dense: ModelConfig) -> None:
    for seed, name in enumerate(NAMES):
        write_model(root / name, dense, _drawn(dense, seed), tokenizer=None, card="")


def _drawn(dense: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = Generator().manual_seed(seed)
    for name, shape in tensor_shapes(dense).items():
        yield name, torch.randn(shape, generator=generator)


def mix(root: Path, out: Path) -> None:
    variant, sources = VARIANTS["bam"], {name: ReopenedTensors(root / name) for name in NAMES}
    target = mixture_config(read_config(root / NAMES[0]), NAMES, variant)
    made: dict[str, Any] = {}
    digests = {name: read_digests(root / name) for name in NAMES}
    tensors = upcycle(target, rules_for(variant, target), sources, 0, made, digests=digests)
    limit = shard_bytes(next(iter(sources.values())))
    write_model(out, target, tensors, tokenizer=None, card=None, max_shard_bytes=limit, made=made)


def measure(root: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Of each round, the seconds until all is written (`write_s`) and until it is on the disk (`disk_s`)."""
    kept = root / "kept"
    mix(root, kept)
    works: dict[str, Callable[[Path], object]] = {
        "mix": lambda out: mix(root, out),
        "cp": lambda out: subprocess.run(["cp", "-r", str(kept), str(out)], check=True),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for i in range(rounds):
        for name in list(works)[:: -1 if i % 2 else 1]:
            found[name].append(_timed(works[name], root / "out"))
    return found


def _timed(work: Callable[[Path], object], out: Path) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what others wrote is no part of it
    started = time.perf_counter()
    work(out)
    written = time.perf_counter()
    for path in out.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {"write_s": written - started, "disk_s": time.perf_counter() - started}


def peak_bytes(root: Path) -> int:
    """Of a process that mixes, beside what it had before."""
    command = [sys.executable, "-m", "tests.benchmarks.mixing", "--child", str(root)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _child(root: Path) -> None:
    with tempfile.TemporaryDirectory() as tiny:  # what is loaded at the first use is no part of it
        write_dense(Path(tiny), TINY)
        mix(Path(tiny), Path(tiny) / "out")
    before = _kilobytes("VmRSS")
    mix(root, root / "of-child")
    print(1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, as the stage's `cpus`")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        _child(options.child)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bam-bench-") as folder:
        root = Path(folder)
        write_dense(root, DENSE)
        times = measure(root, options.rounds)
        n_bytes = sum(path.stat().st_size for path in (root / "kept").iterdir())
        n_experts = len(read_config(root / "kept").experts)
        peak = peak_bytes(root)
    largest = 4 * max(prod(shape) for shape in tensor_shapes(DENSE).values())
    of_peak = peak / (largest * (n_experts + 2))
    speed = {part: _over_cp(times, part) for part in ("disk_s", "write_s")}
    print(f"{n_bytes / 1e6:,.0f} MB{'to the disk, MB/s':>24}{'written, MB/s':>18}")
    for name, rows in times.items():
        medians = [n_bytes / 1e6 / statistics.median(row[part] for row in rows) for part in ("disk_s", "write_s")]
        print(f"{name:<8}{medians[0]:>24,.0f}{medians[1]:>18,.0f}")
    ratio = {part: statistics.median(values) for part, values in speed.items()}
    print(f"mixing over cp {ratio['disk_s']:.2f}, without fsync {ratio['write_s']:.2f}")
    print(f"peak memory {peak / 1e6:,.0f} MB, {of_peak:.2f} of the largest tensor times (E + 2)")
    table = [
        entry("mix_over_cp", speed["disk_s"], "ratio", f"both with fsync; without {ratio['write_s']:.2f}"),
        entry("mix_peak_memory", [of_peak], "ratio", "over the largest dense tensor times (E + 2)"),
    ]
    figures = {"threads": options.threads, "bytes": n_bytes, "rounds": times, "peak_bytes": peak}
    write_result("mixing", {**figures, "largest_tensor_bytes": largest, "table": table}, options.out)


def _over_cp(times: dict[str, list[dict[str, float]]], part: str) -> list[float]:
    return ratios([row[part] for row in times["cp"]], [row[part] for row in times["mix"]])


if __name__ == "__main__":
    main()
