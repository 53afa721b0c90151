"""What the measurements on a GPU share: where figures go, timing by the device's own clock, models made on the device.

Everything also runs on a CPU, at `tiny` sizes, so that it is known to work before a GPU is at hand.
"""

from __future__ import annotations

import gc
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bam_core.config import ModelConfig
from bam_core.nn.lm import LM
from tests.benchmarks.result import write_result

DATASHEET_FLOP_PER_S = 989e12
"""Dense bf16 of an H100 or H200 (SXM), by NVIDIA's data sheet."""
LIMIT_S = 75
"""Longest time that one measurement may take."""
TOO_LONG = "took more than"

Figures = dict[str, Any]
Work = Callable[[], object]

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass
class Bench:
    """found: a measurement's name -> its figures; written to `<out>/gpu.json` after each."""

    out: Path
    device: str
    tiny: bool
    deadline: float
    found: dict[str, Figures] = field(default_factory=dict)
    table: Callable[[Bench], list[Figures]] = lambda _: []

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def peak(self) -> float:
        """FLOP/s of this device's own bf16 matrix product."""
        return float(self.found.get("ceilings", {}).get("product_flop_per_s") or DATASHEET_FLOP_PER_S)

    def attention(self) -> str | None:
        """The backend that was fastest on its own; None for torch's choice."""
        best: str | None = self.found.get("attention", {}).get("best")
        return best

    def run(self, name: str, work: Callable[[Bench], Figures]) -> bool:
        """Measure, keep and write. An error is a figure. Returns whether the device can still be used."""
        started = time.monotonic()
        if started > self.deadline:
            self.found[name] = {"error": "the budget was spent"}
            return True
        print(f"--- {name}", flush=True)
        try:
            with time_limit(LIMIT_S):
                figures = work(self)
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {error}"[:2000], "where": traceback.format_exc()[-2500:]}
        self.found[name] = figures | {"took_s": round(time.monotonic() - started, 1)}
        print(f"    {summary(self.found[name])}", flush=True)
        self.write()
        return self.is_usable()

    def is_usable(self) -> bool:
        """After an illegal access every later call fails, until the process is another."""
        gc.collect()
        if not self.on_gpu:
            return True
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception as error:
            print(f"    the device is lost: {error}", flush=True)
            return False
        return True

    def write(self) -> None:
        name = torch.cuda.get_device_name() if self.on_gpu else None
        write_result("gpu", {"measured": self.found, "table": self.table(self)}, self.out, name)


def summary(figures: Figures) -> str:
    if "error" in figures:
        return f"FAILED after {figures.get('took_s')} s: {figures['error'][:600]}"
    short = {key: value for key, value in figures.items() if not isinstance(value, list) and key != "profile"}
    words = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in short.items()}
    return ", ".join(f"{key} {word}" for key, word in words.items())


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"{TOO_LONG} {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again, if what it interrupts swallows it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seconds(bench: Bench, work: Work, rounds: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of `rounds` runs, by device events."""
    for _ in range(warm_up):
        work()
    if not bench.on_gpu:
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return times
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]


def spread(times: Sequence[float]) -> Figures:
    return {"s": statistics.median(times), "s_min": min(times), "s_max": max(times), "rounds": len(times)}


def attention_by(name: str | None, alone: bool = False) -> Any:
    """A context in which attention runs by that backend where it can; alone: or not at all."""
    if name is None:
        return nullcontext()
    others = [] if alone else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel([BACKENDS[name], *others], set_priority=True)


def build(config: ModelConfig, device: str) -> LM:
    """A model of random weights in bf16, drawn on the device: at 590M parameters a CPU takes many seconds."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.device(device):
        model = LM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if name.endswith("norm.weight") or kind in ("q_norm", "k_norm"):
                parameter.fill_(1)
            else:
                std = 0.02 if kind in ("weight", "router") else parameter.shape[-1] ** -0.5
                parameter.normal_(0, std, generator=generator)
    return model.cast(torch.bfloat16).train()


def top_kernels(work: Work, n: int = 14) -> list[str]:
    """Where the device's time goes in one run: kernels by their own time, and their share."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with profile(activities=activities) as seen:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    averages = seen.key_averages()
    on_gpu = torch.cuda.is_available()
    own = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total, e.count) for e in averages}
    total = sum(time_us for time_us, _ in own.values()) or 1.0
    ordered = sorted(own.items(), key=lambda item: -item[1][0])[:n]
    return [f"{us / total:6.1%} {us / 1e3:9.2f} ms {count:5d} x {key[:110]}" for key, (us, count) in ordered]
