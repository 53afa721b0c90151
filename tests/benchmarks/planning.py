"""The planner against a run: predicted over measured seconds and memory of every stage of a small recipe.

    python -m tests.benchmarks.planning [--calibration FILE] [--out DIR]

Calibrates this machine (or reads FILE), predicts the recipe, runs its stages one after another, each in a process that
has done nothing else, so that its peak memory is its own, and compares. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bam_core.graph.select import Selection
from bam_core.planner.calibration import Calibration
from bam_core.planner.cluster import NodeKind
from pipelines.cli.forecasts import memory_ratio, time_ratio
from pipelines.recipe import Recipe
from pipelines.recipe.load import recipe_from
from pipelines.wiring import Settings, make_plan, run
from pipelines.wiring.calibrating import calibrate
from pipelines.wiring.estimating import Forecast, StageForecast, forecast
from pipelines.wiring.rehearsing import Silent
from tests.benchmarks.result import OUT, write_result

LEAST_S = 2.0
"""Stages below it say more of the clock than of the planner; they are listed and do not count."""


def recipe() -> Recipe:
    """The quickstart's shape and text, a tenth of its tokens."""
    phase = {"batch_tokens": 4096, "lr": 1.5e-3}
    document: dict[str, Any] = {
        "name": "planned",
        "domains": {
            "general": {"source": {"kind": "python-docs"}, "max_bytes": "3M"},
            "code": {"source": {"kind": "python-code"}, "max_bytes": "2M"},
            "math": {"source": {"kind": "generated-math", "documents": 2000}},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 4096, "domains": ["general"]},
        "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 352, "max_seq_len": 256},
        "phases": {
            "seed": {**phase, "tokens": "160k", "data": {"general": 1.0}},
            "expert": {**phase, "tokens": "100k"},
            "mixture": {**phase, "tokens": "60k"},
        },
        "variants": {
            "bam": {"attention": {"routing": "soft"}, "ffn": {"top_k": 1}},
            "btx": {"attention": "merged", "ffn": {"top_k": 1}},
        },
        "evaluate": {"tokens": "8k", "allow_overlap": True, "routing": {"tokens": 2000, "knock_out_tokens": 1000}},
        "runtime": {"micro_batch_rows": 4},
    }
    return recipe_from(document, "planned")


def run_stage(name: str, settings: Settings) -> int:
    """Make one stage in this process. Returns its peak memory in bytes."""
    from bam_core.train.peak import forget_peak, peak_of_process

    forget_peak("cpu")
    ended = run(recipe(), settings, Selection(only=(name,)), Silent())
    assert ended.status == "done", [stage.error for stage in ended.stages]
    return peak_of_process("cpu")


def measured(folder: Path, device: Calibration) -> Forecast:
    settings = Settings(str(folder / "store"), executor="local")
    nodes = (NodeKind("here", cpus=device.cpus),)
    plan = make_plan(recipe(), settings, Selection())
    context = get_context("forkserver")
    context.set_forkserver_preload(["bam_core.planner.measure", "pipelines.wiring.rehearsing"])
    peaks: dict[str, int] = {}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for stage in plan.pipeline:
            print(f"running: {stage.name}", flush=True)
            peaks[stage.name] = pool.submit(run_stage, stage.name, settings).result()
    # Here the libraries are loaded before each stage.
    found = forecast(recipe(), plan, settings, nodes, {"here": replace(device, start_s=0.0)}, compare=True)
    return replace(found, stages=tuple(replace(s, measured_bytes=float(peaks[s.stage])) for s in found.stages))


def worst(ratios: Mapping[str, float | None]) -> dict[str, Any]:
    """The stage that is furthest off, as a row. value: predicted over measured or the inverse, whichever is above 1."""
    known = {stage: max(ratio, 1 / ratio) for stage, ratio in ratios.items() if ratio}
    stage = max(known, key=lambda name: known[name])
    ratio = ratios[stage]
    note = f"worst of {len(known)} stages: {stage}, predicted over measured {ratio:.2f}"
    return {"value": known[stage], "low": min(known.values()), "high": known[stage], "n": len(known), "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path, help="of this machine, by `bam doctor --calibrate`")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bam-planning-") as folder:
        if options.calibration:
            device = Calibration.from_json(json.loads(options.calibration.read_text()), str(options.calibration))
        else:
            device = calibrate(Settings(folder, executor="local"), lambda words: print(f"measuring: {words}"))
        calibrated_s = time.perf_counter() - started
        found = measured(Path(folder), device)
    print(f"{'stage':<14}{'predicted':>10}{'measured':>10}{'ratio':>7}{'memory':>9}{'measured':>10}{'ratio':>7}")
    for stage in found.stages:
        print(_line(stage))
    counted = [stage for stage in found.stages if (stage.measured_s or 0) >= LEAST_S]
    trained = [stage for stage in found.stages if "weights, gradients, masters, moments" in stage.memory.parts]
    table = [
        {"row": "plan_time", "unit": "ratio", **worst({s.stage: time_ratio(s) for s in counted})},
        {"row": "plan_memory", "unit": "ratio", **worst({s.stage: memory_ratio(s) for s in trained})},
    ]
    for row in table:
        print(f"{row['row']}: {row['value']:.2f} ({row['note']})")
    details = [
        {"stage": s.stage, "predicted_s": s.seconds, "measured_s": s.measured_s, "parts": dict(s.memory.parts)}
        | {"predicted_bytes": s.memory.total, "measured_bytes": s.measured_bytes}
        for s in found.stages
    ]
    fits = {"steps": {n: p.worst for n, p in device.steps.items()}, "memory": device.peak.worst}
    result = {"calibrated_s": calibrated_s, "fit_worst": fits, "details": details, "table": table}
    write_result("planning", result, options.out)


def _line(stage: StageForecast) -> str:
    seconds, peak = f"{stage.seconds:>10.1f}{stage.measured_s or 0:>10.1f}", stage.measured_bytes or 0
    memory = f"{stage.memory.total / 2**20:>9.0f}{peak / 2**20:>10.0f}"
    return f"{stage.stage:<14}{seconds}{time_ratio(stage) or 0:>7.2f}{memory}{memory_ratio(stage) or 0:>7.2f}"


if __name__ == "__main__":
    main()
