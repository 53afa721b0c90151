"""A plan on a cluster: what each stage takes there, when it runs, what it costs; refused if something cannot fit.

And what a finished store says of it: predicted beside measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import yaml

from bam_core.errors import ArtifactDamaged, InvalidInput, Problem, UsageError
from bam_core.graph.stage import Pipeline, Resources, Stage, StageName, kind_of
from bam_core.planner.calibration import Calibration
from bam_core.planner.cluster import NodeKind, nodes_of, read_cluster
from bam_core.planner.estimate import Estimate, Memory, Work, at, estimate, memory
from bam_core.planner.fit import refusal, room_of_each, smallest_change
from bam_core.planner.place import Host, Job, Placed, critical_path, schedule
from infra.ray_room import require_room
from infra.sources import TextSources
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

    measured_s, measured_bytes: of the artifact that is there; None where there is none.
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
    all of that time, busy or not."""

    stages: tuple[StageForecast, ...]
    wall_s: float
    critical_s: float
    critical: tuple[str, ...]
    cost: float | None
    energy_wh: float | None


def open_cluster(file: Path, calibration: Path | None = None) -> tuple[tuple[NodeKind, ...], dict[str, Calibration]]:
    """The nodes of a cluster file, and for each kind what it does in a second. calibration: of kinds that name none.

    Raises InvalidInput with all that is wrong.
    """
    kinds = read_cluster(_document(file), str(file))
    found, problems = {}, []
    for place, kind in enumerate(kinds):
        path = file.parent / kind.calibration if kind.calibration else calibration
        key = f"nodes.{place}.calibration"
        if path is None:
            remedy = "make one there with `bam doctor --calibrate --out FILE`; --calibration FILE is for all kinds"
            problems.append(Problem(key, None, "is missing", remedy))
            continue
        try:
            found[kind.name] = Calibration.from_json(json.loads(path.read_text()), str(path))
        except OSError as error:
            problems.append(Problem(key, str(path), f"cannot be read: {error.strerror}"))
        except ValueError as error:
            problems.append(Problem(key, str(path), f"is not JSON: {error}"))
        except InvalidInput as error:
            problems += [problem.under(key) for problem in error.problems]
    if problems:
        raise InvalidInput(str(file), problems)
    return kinds, found


def _document(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"--on {file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--on {file}: is not YAML: {str(error).splitlines()[0]}") from error


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
    if refused := [words for stage in stages for words in _refused(stage, counted[stage.name], kinds, calibrations)]:
        raise UsageError("\n".join([f"{recipe.name}: {len(refused)} stage(s) cannot run on this cluster", *refused]))
    known = {
        kind.name: {s.name: estimate(counted[s.name], calibrations[kind.name], settings.executor) for s in stages}
        for kind in kinds
    }
    on, jobs = dict(nodes_of(kinds)), _jobs(stages, known, kinds)
    hosts = [
        Host(name, kind.cpus, kind.gpus, kind.memory, calibrations[kind.name].crowding) for name, kind in on.items()
    ]
    capacity = MOST_STAGES_AT_ONCE[settings.executor]
    placed = schedule(jobs, hosts, min(recipe.runtime.max_parallel or capacity, capacity))
    critical_s, critical = critical_path(jobs)
    wall = max((stage.end for stage in placed), default=0.0)
    found = tuple(_stage(stage, placing, known, on) for stage, placing in zip(stages, placed, strict=True))
    return Forecast(
        stages=_measured(found, made, settings) if compare else found,
        wall_s=wall,
        critical_s=critical_s,
        critical=tuple(critical),
        cost=_of_nodes(kinds, "price_per_hour", wall),
        energy_wh=_of_nodes(kinds, "watts", wall),
    )


def _texts(recipe: Recipe) -> dict[str, TextFacts]:
    """Every text but those of a hub, looked at for `LOOKED_S` at most."""
    return {name: _text(source) for name, source in recipe.texts.items()}


def _text(source: Mapping[str, Any]) -> TextFacts:
    if source["kind"] == "hf":
        return TextFacts((), whole=False)
    sizes, started = [], time.perf_counter()
    TextSources().digest(source)  # the stage takes it too
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


def _refused(
    stage: Stage, work: Work, kinds: Sequence[NodeKind], calibrations: Mapping[str, Calibration]
) -> Iterator[str]:
    nodes = [kind for _, kind in nodes_of(kinds)]
    try:
        require_room(stage.resources, [node.resources for node in nodes], (), stage.name)
    except UsageError as error:
        yield str(error)
        return
    on = min(calibrations, key=lambda name: memory(work, calibrations[name]).total)
    need = memory(work, calibrations[on])
    room, where = _room(stage.resources, need, nodes)
    if need.total <= room:
        return
    change = None
    if work.training is not None:
        change = smallest_change(
            work.training,
            lambda training: memory(at(work, training), calibrations[on]).total,
            lambda workers: _room(replace(stage.resources, workers=workers), need, nodes)[0],
            _group(stage.name),
            stage.resources.workers,
        )
    yield refusal(stage.name, need, room, where, change, trains=work.training is not None)


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


def _jobs(stages: Sequence[Stage], known: Mapping[str, Mapping[str, Estimate]], kinds: Sequence[NodeKind]) -> list[Job]:
    made = []
    for stage in stages:
        group, needs = stage.resources, {kind: found[stage.name].memory for kind, found in known.items()}
        able = [(name, kind) for name, kind in nodes_of(kinds) if _fits(kind, stage, needs[kind.name])]
        asked = {kind.name: needs[kind.name].total for _, kind in able if not needs[kind.name].on_gpu}
        made.append(
            Job(
                name=stage.name,
                seconds={name: known[kind.name][stage.name].seconds for name, kind in able},
                after=(*stage.inputs.values(), *stage.checks),
                workers=group.workers,
                cpus=group.cpus,
                gpus=group.gpus,
                memory=max(asked.values(), default=0.0),
            )
        )
    return made


def _fits(kind: NodeKind, stage: Stage, need: Memory) -> bool:
    """One worker on an idle node."""
    has = kind.gpu_memory if need.on_gpu else kind.memory
    group = stage.resources
    return kind.cpus >= group.cpus and kind.gpus >= group.gpus and (has is None or has >= need.total)


def _stage(
    stage: Stage, placed: Placed, known: Mapping[str, Mapping[str, Estimate]], on: Mapping[str, NodeKind]
) -> StageForecast:
    kinds = [on[host] for host in placed.hosts]
    found, hours = known[kinds[0].name][stage.name], placed.seconds / 3600
    shares = [_share(stage, kind) for kind in kinds]

    def of(what: str) -> float | None:
        rates = [getattr(kind, what) for kind in kinds]
        return None if None in rates else hours * sum(rate * share for rate, share in zip(rates, shares, strict=True))

    cost, energy = of("price_per_hour"), of("watts")
    return StageForecast(
        stage.name, placed.start, placed.seconds, found.memory, placed.hosts, cost, energy, found.unknown
    )


def _share(stage: Stage, kind: NodeKind) -> float:
    """The part of a node that one worker takes: of its CPUs or of its GPUs, whichever is more."""
    parts = ((stage.resources.cpus, kind.cpus), (stage.resources.gpus, kind.gpus))
    return max((asked / has for asked, has in parts if has), default=0.0)


def _of_nodes(kinds: Sequence[NodeKind], what: str, seconds: float) -> float | None:
    rates = [getattr(kind, what) for kind in kinds]
    if None in rates:
        return None
    return sum(rate * kind.count for rate, kind in zip(rates, kinds, strict=True)) * seconds / 3600


def _measured(stages: Sequence[StageForecast], made: Plan, settings: Settings) -> tuple[StageForecast, ...]:
    store, found = open_store(settings), []
    for stage in stages:
        try:
            record = store.record(stage.stage, made.keys[stage.stage])
        except ArtifactDamaged:
            record = None
        if record is not None:
            stage = replace(stage, measured_s=record.seconds, measured_bytes=record.metrics.get("peak_memory_bytes"))
        found.append(stage)
    return tuple(found)
