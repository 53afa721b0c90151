"""What a plan takes on a cluster, as a table; and predicted beside measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli import text

if TYPE_CHECKING:
    from pipelines.wiring.estimating import Forecast, StageForecast


def forecast_text(found: Forecast) -> str:
    """Stages with their start, time, memory, cost and energy; then the whole."""
    if not found.stages:
        return "nothing to run: no time, no cost"
    rows = [
        [
            stage.stage,
            text.duration(stage.start),
            text.duration(stage.seconds),
            text.size(int(stage.memory.total)),
            _places(stage.hosts),
            _money(stage.cost),
            _energy(stage.energy_wh),
        ]
        for stage in found.stages
    ]
    headers = ["stage", "starts after", "time", "peak memory", "on", "cost", "energy"]
    total = sum(stage.seconds for stage in found.stages)
    whole = [
        f"predicted: {text.duration(found.wall_s)} from start to end; all stages {text.duration(total)}; "
        f"longest chain {text.duration(found.critical_s)} ({' > '.join(found.critical)})",
        *([f"all nodes for that time: {_bill(found)}"] if _bill(found) else []),
        *_unknown(found),
    ]
    return "\n".join([text.table(headers, rows, right=(1, 2, 3, 5, 6)), "", *whole])


def _places(hosts: tuple[str, ...]) -> str:
    names = list(dict.fromkeys(hosts))
    return names[0] if len(hosts) == 1 else f"{len(hosts)} workers on {', '.join(names)}"


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:.2f}" if cost >= 0.995 else f"{cost:.2g}"


def _energy(watt_hours: float | None) -> str:
    return "" if watt_hours is None else f"{watt_hours / 1000:.3g} kWh" if watt_hours >= 100 else f"{watt_hours:.2g} Wh"


def _bill(found: Forecast) -> str:
    return ", ".join(words for words in (_money(found.cost), _energy(found.energy_wh)) if words)


def _unknown(found: Forecast) -> list[str]:
    words = {what: [s.stage for s in found.stages if what in s.unknown] for s in found.stages for what in s.unknown}
    return [f"not counted: {what} ({', '.join(stages)})" for what, stages in words.items()]


def comparison_text(found: Forecast) -> str:
    """Predicted beside measured, of the stages that are there."""
    known = [stage for stage in found.stages if stage.measured_s is not None]
    if not known:
        return "no stage of this recipe is in the store: nothing to compare with"
    rows = [
        [
            stage.stage,
            text.duration(stage.seconds),
            text.duration(stage.measured_s or 0.0),
            f"{ratio:.2f}" if (ratio := time_ratio(stage)) is not None else "",
            text.size(int(stage.memory.total)),
            text.size(int(stage.measured_bytes)) if stage.measured_bytes else "",
            f"{ratio:.2f}" if (ratio := memory_ratio(stage)) is not None else "",
        ]
        for stage in known
    ]
    headers = ["stage", "predicted", "measured", "ratio", "memory predicted", "measured", "ratio"]
    total, measured = (sum(values) for values in zip(*((s.seconds, s.measured_s or 0.0) for s in known), strict=True))
    ends = f"together: predicted {text.duration(total)}, measured {text.duration(measured)}"
    told = [text.table(headers, rows, right=range(1, 7)), "", f"{ends}, ratio {total / measured:.2f}"]
    if not any(stage.measured_bytes for stage in known):
        told.append("memory is compared where a training has a process of its own, as on Ray")
    calibrated = found.calibrated_torch
    if calibrated and (others := [version for version in found.measured_torch if version not in calibrated]):
        told.append(
            f"made with torch {', '.join(others)}, calibrated with {', '.join(calibrated)}: a build for CUDA"
            " takes hundreds of MiB more than one for CPUs, in every process; calibrate with the one that runs"
        )
    return "\n".join(told)


def time_ratio(stage: StageForecast) -> float | None:
    """Predicted over measured."""
    return stage.seconds / stage.measured_s if stage.measured_s else None


def memory_ratio(stage: StageForecast) -> float | None:
    return stage.memory.total / stage.measured_bytes if stage.measured_bytes else None
