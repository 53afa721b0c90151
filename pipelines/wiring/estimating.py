"""A plan on a cluster: what each stage takes there, when it runs, what it costs; refused if something cannot fit.

And what a finished store says of it: predicted beside measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from bam_core.errors import ArtifactDamaged, UsageError
from bam_core.graph.record import Record
from bam_core.graph.stage import Pipeline, Resources, Stage, StageName, kind_of
from bam_core.planner.calibration import Calibration
from bam_core.planner.cluster import NodeKind, nodes_of
from bam_core.planner.estimate import Estimate, Memory, Work, at, estimate, memory
from bam_core.planner.fit import refusal, room_of_each, smallest_change
from bam_core.planner.place import Host, Job, Placed, critical_path, schedule
from bam_core.planner.work import Training
from infra.ray_room import require_room
from infra.sources import TextSources
from pipelines.heap import unscanned
from pipelines.recipe import Recipe
from pipelines.wiring.planning import Plan
from pipelines.wiring.settings import Settings, open_store
from pipelines.workload import TextFacts, works

MOST_STAGES_AT_ONCE = {"local": 1, "ray": 16}
"""As the executors have it."""
LOOKED_S = 10.0
"""How long a text is looked at."""


@dataclass(frozen=True)
class StageForecast:
    """seconds: as it runs beside others. cost, energy_wh: its share of its nodes; None where the cluster says nothing.

    measured_s, measured_bytes: of the artifact that is there; None where there is none. The latter of a training that
    had a process of its own.
    """

    stage: str
    start: float
    seconds: float
    memory: Memory
    hosts: tuple[str, ...]
    cost: float | None
    energy_wh: float | None
    unknown: tuple[str, ...]
    measured_s: float | None = None
    measured_bytes: float | None = None


@dataclass(frozen=True)
class Forecast:
    """wall_s: from the first start to the last end. critical_s: of the longest chain. cost, energy_wh: of all nodes for
    all of that time, busy or not. calibrated_torch, measured_torch: the builds that the calibrations, and what was
    measured, were made with, as far as they say."""

    stages: tuple[StageForecast, ...]
    wall_s: float
    critical_s: float
    critical: tuple[str, ...]
    cost: float | None
    energy_wh: float | None
    calibrated_torch: tuple[str, ...] = ()
    measured_torch: tuple[str, ...] = ()


def forecast(
    recipe: Recipe,
    made: Plan,
    settings: Settings,
    kinds: Sequence[NodeKind],
    calibrations: Mapping[str, Calibration],
    *,
    compare: bool = False,
) -> Forecast:
    """Of what the plan would run; compare: of all stages, beside what the store has measured of each.

    Raises UsageError, with the arithmetic and the smallest change that helps, if a stage fits on no node.
    """
    to_do = [d.stage for d in made.decisions if compare or d.action in ("run", "wait")]
    device = calibrations[kinds[0].name]
    counted = works(recipe, made.pipeline, _texts(recipe), device.bytes_per_token)
    counted = _loading_torch(counted, made.pipeline, to_do, settings.executor, device)
    stages = [made.pipeline[name] for name in to_do]
    executor = settings.executor
    needs = {stage.name: _need(stage, counted[stage.name], kinds, calibrations, executor) for stage in stages}
    refused = [words for stage in stages for words in _refused(stage, counted[stage.name], needs[stage.name], kinds)]
    if refused:
        raise UsageError("\n".join([f"{recipe.name}: {len(refused)} stage(s) cannot run on this cluster", *refused]))
    known = {
        kind.name: {s.name: estimate(counted[s.name], calibrations[kind.name], settings.executor) for s in stages}
        for kind in kinds
    }
    on, jobs = dict(nodes_of(kinds)), _jobs(stages, known, needs, kinds)
    hosts = [
        Host(name, kind.cpus, kind.gpus, kind.memory, calibrations[kind.name].crowding) for name, kind in on.items()
    ]
    capacity = MOST_STAGES_AT_ONCE[settings.executor]
    placed = schedule(jobs, hosts, min(recipe.runtime.max_parallel or capacity, capacity))
    critical_s, critical = critical_path(jobs)
    wall = max((stage.end for stage in placed), default=0.0)
    found = tuple(
        _stage(stage, placing, known, needs[stage.name].memory, on)
        for stage, placing in zip(stages, placed, strict=True)
    )
    records = _records(found, made, settings) if compare else {}
    return Forecast(
        stages=tuple(_measured(stage, records.get(stage.stage)) for stage in found),
        wall_s=wall,
        critical_s=critical_s,
        critical=tuple(critical),
        cost=_of_nodes(kinds, "price_per_hour", wall),
        energy_wh=_of_nodes(kinds, "watts", wall),
        calibrated_torch=_torch_of(calibrations[kind.name].made for kind in kinds),
        measured_torch=_torch_of(record.provenance.get("packages", {}) for record in records.values()),
    )


def _texts(recipe: Recipe) -> dict[str, TextFacts]:
    """Every text but those of a hub, looked at for `LOOKED_S` at most."""
    return {name: _text(source) for name, source in recipe.texts.items()}


def _text(source: Mapping[str, Any]) -> TextFacts:
    if any(one["kind"] == "hf" for one in source.get("sources", [source])):
        return TextFacts((), whole=False)
    sizes, started = [], time.perf_counter()
    TextSources().digest(source)  # the stage takes it too
    with unscanned():  # as a stage reads it
        for document in TextSources().read(source):
            sizes.append(len(document.text.encode()))
            if time.perf_counter() - started > LOOKED_S:
                return TextFacts(sizes, LOOKED_S, whole=False)
    return TextFacts(sizes, time.perf_counter() - started)


def _loading_torch(
    counted: Mapping[str, Work], pipeline: Pipeline, to_do: Sequence[str], executor: str, device: Calibration
) -> dict[str, Work]:
    """In one process, the first stage that computes waits for the libraries."""
    found = dict(counted)
    first = next((stage.name for stage in pipeline if stage.name in to_do and counted[stage.name].loads_torch), None)
    if executor == "local" and first is not None:
        found[first] = replace(found[first], read_s=found[first].read_s + device.start_s)
    return found


@dataclass(frozen=True)
class _Need:
    """What a stage's worker takes: as on that of the able nodes where it is most. of: the same of another training."""

    memory: Memory
    of: Callable[[Training], Memory]


def _need(
    stage: Stage, work: Work, kinds: Sequence[NodeKind], calibrations: Mapping[str, Calibration], executor: str
) -> _Need:
    able = [kind for kind in kinds if _has_units(kind, stage)] or kinds
    needs = {kind.name: memory(work, calibrations[kind.name], executor) for kind in able}
    most = max(needs, key=lambda name: needs[name].total)
    device = calibrations[most]
    return _Need(needs[most], lambda training: memory(at(work, training), device, executor))


def _refused(stage: Stage, work: Work, need: _Need, kinds: Sequence[NodeKind]) -> Iterator[str]:
    nodes, group = [kind for _, kind in nodes_of(kinds)], stage.resources
    try:
        require_room(group, [node.resources for node in nodes], (), stage.name)
    except UsageError as error:
        yield str(error)
        return
    room, where = _room(group, need.memory, nodes)
    if need.memory.total <= room:
        return
    change = None
    if work.training is not None:
        change = smallest_change(
            work.training,
            lambda training: need.of(training).total,
            lambda workers: _room(replace(group, workers=workers), need.memory, nodes)[0],
            _group(stage.name),
            group.workers,
        )
    yield refusal(stage.name, need.memory, room, where, change, trains=work.training is not None)


def _group(stage: str) -> str:
    kind = kind_of(StageName.parse(stage).plain)
    return kind if kind in ("seed", "expert") else "train"


def _room(group: Resources, need: Memory, nodes: Sequence[NodeKind]) -> tuple[float, str]:
    """The most bytes that every worker of the group can have at once, and the node with the most memory."""
    able: list[tuple[float, int, str]] = []
    for node in nodes:
        limits = [has // asked for has, asked in ((node.cpus, group.cpus), (node.gpus, group.gpus)) if asked]
        has = node.gpu_memory if need.on_gpu else node.memory
        able.append((inf if has is None else has, min([*limits, group.workers]), node.name))
    if need.on_gpu:  # each has its own
        able = [(memory, 1, name) for memory, most, name in able for _ in range(most)]
    room = room_of_each([(memory, most) for memory, most, _ in able], group.workers)
    return room, max(one for one in able if one[1])[2]


def _jobs(
    stages: Sequence[Stage],
    known: Mapping[str, Mapping[str, Estimate]],
    needs: Mapping[str, _Need],
    kinds: Sequence[NodeKind],
) -> list[Job]:
    made = []
    for stage in stages:
        group, need = stage.resources, needs[stage.name].memory
        able = [(name, kind) for name, kind in nodes_of(kinds) if _fits(kind, stage, need)]
        made.append(
            Job(
                name=stage.name,
                seconds={name: known[kind.name][stage.name].seconds for name, kind in able},
                after=(*stage.inputs.values(), *stage.checks),
                workers=group.workers,
                cpus=group.cpus,
                gpus=group.gpus,
                memory=0.0 if need.on_gpu else need.total,
            )
        )
    return made


def _has_units(kind: NodeKind, stage: Stage) -> bool:
    """For one worker."""
    return kind.cpus >= stage.resources.cpus and kind.gpus >= stage.resources.gpus


def _fits(kind: NodeKind, stage: Stage, need: Memory) -> bool:
    """One worker on an idle node."""
    has = kind.gpu_memory if need.on_gpu else kind.memory
    return _has_units(kind, stage) and (has is None or has >= need.total)


def _stage(
    stage: Stage,
    placed: Placed,
    known: Mapping[str, Mapping[str, Estimate]],
    need: Memory,
    on: Mapping[str, NodeKind],
) -> StageForecast:
    kinds = [on[host] for host in placed.hosts]
    unknown, hours = known[kinds[0].name][stage.name].unknown, placed.seconds / 3600
    shares = [_share(stage, kind) for kind in kinds]

    def of(what: str) -> float | None:
        rates = [getattr(kind, what) for kind in kinds]
        return None if None in rates else hours * sum(rate * share for rate, share in zip(rates, shares, strict=True))

    cost, energy = of("price_per_hour"), of("watts")
    return StageForecast(stage.name, placed.start, placed.seconds, need, placed.hosts, cost, energy, unknown)


def _share(stage: Stage, kind: NodeKind) -> float:
    """The part of a node that one worker takes: of its CPUs or of its GPUs, whichever is more."""
    parts = ((stage.resources.cpus, kind.cpus), (stage.resources.gpus, kind.gpus))
    return max((asked / has for asked, has in parts if has), default=0.0)


def _of_nodes(kinds: Sequence[NodeKind], what: str, seconds: float) -> float | None:
    rates = [getattr(kind, what) for kind in kinds]
    if None in rates:
        return None
    per_hour: float = sum(rate * kind.count for rate, kind in zip(rates, kinds, strict=True))
    return per_hour * seconds / 3600


def _records(stages: Sequence[StageForecast], made: Plan, settings: Settings) -> dict[str, Record]:
    """Stage -> the record of what is there."""
    store, found = open_store(settings), {}
    for stage in stages:
        with suppress(ArtifactDamaged):
            if (record := store.record(stage.stage, made.keys[stage.stage])) is not None:
                found[stage.stage] = record
    return found


def _measured(stage: StageForecast, record: Record | None) -> StageForecast:
    if record is None:
        return stage
    return replace(stage, measured_s=record.seconds, measured_bytes=_own_peak(record))


def _torch_of(packages: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """packages: name -> version, of each place."""
    return tuple(sorted({its["torch"] for its in packages if "torch" in its}))


def _own_peak(record: Record) -> float | None:
    """Of a training with processes of its own, as on Ray; without Ray, one process holds what all stages left."""
    apart = all("node" in place for place in record.provenance.get("ran_on", ()))
    return record.metrics.get("peak_memory_bytes") if apart else None
