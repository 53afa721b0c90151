"""Figures of GPUs, from a stand-in for NVML's binding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infra import gpu_metrics
from infra.system_metrics import _figures


class NVMLError(Exception):
    pass


def nvml(n_gpus: int, **parts: Any) -> ModuleType:
    """`parts` in the place of what two idle GPUs of 80 GB would say."""

    def refuse(gpu: int) -> None:
        raise NVMLError

    module = ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: n_gpus
    module.nvmlDeviceGetHandleByIndex = lambda number: number
    module.nvmlDeviceGetMemoryInfo = lambda gpu: SimpleNamespace(used=20e9, total=80e9)
    module.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=gpu * 50)
    module.nvmlDeviceGetPowerUsage = lambda gpu: 65_500
    for name, part in parts.items():
        setattr(module, name, refuse if part is None else part)
    return module


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    gpu_metrics._gpus.cache_clear()
    yield
    gpu_metrics._gpus.cache_clear()


def test_every_gpu_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(2))
    found = gpu_metrics.gpu_figures()
    assert len(found) == 8
    assert found["system/gpu_0_utilization_percentage"] == 0
    assert found["system/gpu_1_utilization_percentage"] == 50
    assert found["system/gpu_1_memory_usage_megabytes"] == 20e3
    assert found["system/gpu_1_memory_usage_percentage"] == 25
    assert found["system/gpu_1_power_usage_watts"] == 65.5
    assert found.items() <= _figures().items()


def test_what_a_gpu_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "pynvml", nvml(1, nvmlDeviceGetUtilizationRates=None, nvmlDeviceGetPowerUsage=None)
    )
    assert set(gpu_metrics.gpu_figures()) == {
        "system/gpu_0_memory_usage_megabytes",
        "system/gpu_0_memory_usage_percentage",
    }


def test_without_the_binding_or_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_metrics.gpu_figures() == {}

    def no_driver() -> None:
        raise NVMLError

    gpu_metrics._gpus.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", nvml(1, nvmlInit=no_driver))
    assert gpu_metrics.gpu_figures() == {}
