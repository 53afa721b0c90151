"""The benchmark of a GPU works before one is at hand: at sizes that mean nothing, on the processor."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.benchmarks import gpu, gpu_kit, gpu_parts, gpu_steps


@pytest.fixture
def bench(tmp_path: Path) -> gpu_kit.Bench:
    return gpu_kit.Bench(tmp_path, "cpu", True, time.monotonic() + 60, {}, gpu.table)


def kept(bench: gpu_kit.Bench) -> dict[str, dict[str, object]]:
    return json.loads((bench.out / "gpu.json").read_text())["measured"]


@pytest.mark.parametrize("model", ["dense", "bam"])
def test_a_step_gives_its_row(bench: gpu_kit.Bench, model: str) -> None:
    assert bench.run("ceilings", gpu_parts.ceilings)
    assert bench.run(f"{model}_eager", gpu_steps.training_step(gpu_steps.Variant(model)))
    (row,) = json.loads((bench.out / "gpu.json").read_text())["table"]
    assert row["row"] == f"gpu_{model}"
    assert 0 < row["low"] <= row["value"] <= row["high"]
    assert row["value"] == pytest.approx(kept(bench)[f"{model}_eager"]["tflop_per_s"] * 1e12 / bench.peak(), rel=1e-6)


def test_what_fails_is_a_figure_and_the_rest_goes_on(bench: gpu_kit.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu_kit.Bench) -> gpu_kit.Figures:
        raise RuntimeError("no such kernel")

    def endless(_: gpu_kit.Bench) -> gpu_kit.Figures:
        while True:
            time.sleep(0.01)

    assert bench.run("broken", broken)
    monkeypatch.setattr(gpu_kit, "LIMIT_S", 0.05)
    assert bench.run("endless", endless)
    assert "no such kernel" in str(kept(bench)["broken"]["error"])
    assert "took more than" in str(kept(bench)["endless"]["error"])
    bench.deadline = 0
    assert bench.run("late", endless)
    assert bench.found["late"] == {"error": "the budget was spent"}


def test_measurements_have_names_of_their_own_and_the_goals_come_first() -> None:
    names = list(gpu.measurements())
    assert names[0] == "ceilings"
    assert {name.split("_")[0] for name in names[2:6]} == {"dense", "bam"}
