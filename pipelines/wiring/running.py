"""A plan to artifacts: the jobs, and the executor that runs them."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from bam_core.errors import INTERRUPTED, ArtifactDamaged, LeaseHeld, StoreError, UsageError, nearest
from bam_core.graph.key import input_keys, stage_key, stage_payload
from bam_core.graph.plan import Decision, rebuilt_input
from bam_core.graph.record import Record
from bam_core.graph.runs import Run, RunStage, RunStatus
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline, Stage, StageName, kind_of
from bam_core.protocols import Executor
from infra.provenance import capture, mask_values
from infra.ray_address import require_answer
from infra.store import ArtifactStore
from pipelines import bam
from pipelines.attempt import StageJob
from pipelines.recipe import Recipe
from pipelines.runner import Display, PipelineRun, RunResult, StageResult, Task, terminated_as_interrupted
from pipelines.wiring.exchanging import adopted_configs
from pipelines.wiring.imported import with_imports
from pipelines.wiring.on_record import is_swept, run_on_record
from pipelines.wiring.planning import Plan, make_plan, text_digests
from pipelines.wiring.services import run_job
from pipelines.wiring.settings import Settings, open_store, open_tracker

EDITS = "edits"
"""The pipeline of stages that no recipe names."""


def run(
    recipe: Recipe,
    settings: Settings,
    selection: Selection,
    display: Display,
    *,
    keep_going: bool = True,
    wait: bool = True,
    max_parallel: int | None = None,
    inputs: Mapping[tuple[str, str], str] | None = None,
) -> RunResult:
    """Plan, then make what is missing. Ray starts only if something runs.

    wait: for stages that another run is making; otherwise raises LeaseHeld, and nothing starts.
    """
    started = time.monotonic()
    recipe = with_imports(recipe)
    made = make_plan(recipe, settings, selection, inputs)
    run_id = f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    store = open_store(settings, working=True)
    settings = replace(settings, store=store.uri)
    tracker = open_tracker(settings, display.message)
    to_do = [decision for decision in made.decisions if decision.action in ("run", "wait")]
    held = [decision for decision in to_do if decision.action == "wait"]
    if held and not wait:
        raise LeaseHeld(f"{held[0].stage}: {held[0].reason}")
    noted = run_on_record(run_id, recipe, made)
    if not to_do:
        watcher = PipelineRun(made.pipeline, made.decisions, {}, store, display)
        display.update(watcher.states())
        status: RunStatus = "failed" if any(decision.action == "blocked" for decision in made.decisions) else "done"
        if status == "done":
            with suppress(StoreError):  # nothing was made, so a store that can only be read will do
                store.runs.write(replace(noted, status=status, ended=time.time()))
        return _ended(run_id, status, started, watcher)

    if settings.address and settings.executor == "ray":
        require_answer(settings.address)
    store.check_writable()
    store.runs.write(noted)
    if is_swept(made, store):
        store.runs.remove(run_id)
        return run(
            recipe,
            settings,
            selection,
            display,
            keep_going=keep_going,
            wait=wait,
            max_parallel=max_parallel,
            inputs=inputs,
        )
    jobs = _jobs(made, to_do, run_id, {**noted.provenance, "run": run_id, "pipeline": recipe.name})
    watcher = PipelineRun(made.pipeline, made.decisions, jobs, store, display, fail_fast=not keep_going)
    display.update(watcher.states())
    if words := _memory_to_mix(made, to_do):
        display.message(words)
    status, executor = "interrupted", None
    handle: Mapping[str, Any] = {}
    try:
        # MLflow and Ray each take seconds to start, and neither needs the other.
        with ThreadPoolExecutor(1) as beside:
            tracking = beside.submit(tracker.start_pipeline, recipe.name, run_id, recipe.to_json())
            try:
                executor = _open_executor(settings, made.pipeline, [decision.stage for decision in to_do])
            finally:
                handle = tracking.result()
        most = max_parallel or recipe.runtime.max_parallel or executor.capacity
        most = min(most, executor.capacity) if settings.executor == "local" else most
        status = watcher.run(executor, Task(run_job, (handle, settings)), most)
    except KeyboardInterrupt:
        with _left_at_once():
            display.message("interrupted: what is done is kept, and the same command continues (ctrl-C: leave at once)")
    finally:
        with _left_at_once():
            if executor is not None:
                executor.close()
            with suppress(StoreError):  # what was made is on record; that this run made it was written at its start
                store.runs.write(replace(noted, status=status, ended=time.time()))
            tracker.end_pipeline(handle, status)
    return _ended(run_id, status, started, watcher)


@contextmanager
def _left_at_once() -> Iterator[None]:
    """A second ctrl-C ends the closing, and this process as soon as it has said how to continue.

    Nobody waits then for a tracker that does not answer, or for Ray. An embedded Ray dies with this process.
    """
    try:
        with terminated_as_interrupted():
            yield
    except KeyboardInterrupt:
        atexit.register(os._exit, INTERRUPTED)  # the last registered is the first to run


def _ended(run_id: str, status: RunStatus, started: float, watcher: PipelineRun) -> RunResult:
    results = watcher.results()
    return RunResult(run_id, status, time.monotonic() - started, results, _report(results))


def run_stage(
    name: str,
    recipe: Recipe,
    settings: Settings,
    inputs: Mapping[str, str],
    with_deps: bool,
    display: Display,
    *,
    wait: bool = True,
) -> RunResult:
    """Make one stage on its own. inputs: role -> reference.

    Raises UsageError if an input is neither there nor asked for.
    """
    recipe = with_imports(recipe)
    pipeline = bam.build(recipe, text_digests(recipe), adopted_configs(recipe, open_store(settings)))
    roles = pipeline[name].inputs
    for role in inputs.keys() - roles.keys():
        raise UsageError(f"{name} has no input {role!r}: {nearest(role, roles)}")
    given = {(name, role): ref for role, ref in inputs.items()}
    selection = Selection(until=(name,)) if with_deps else Selection(only=(name,))
    for decision in make_plan(recipe, settings, selection, given).decisions:
        if decision.stage == name and decision.action == "blocked":
            raise UsageError(f"{name}: {decision.reason}; or add --with-deps, or give --input ROLE=REF")
    return run(recipe, settings, selection, display, wait=wait, inputs=given)


def _memory_to_mix(made: Plan, to_do: Sequence[Decision]) -> str:
    """Known before the start, so that nobody learns it from a killed process."""
    mixed = [StageName.parse(decision.stage).plain for decision in to_do if kind_of(decision.stage) == "mix"]
    if not mixed:
        return ""
    largest = max(mixed, key=lambda stage: made.models[stage]["mixing_bytes"])
    return f"memory to mix: up to {made.models[largest]['mixing_bytes'] / 2**20:,.0f} MiB ({largest})"


def run_given(stage: Stage, inputs: Mapping[str, Record], settings: Settings, display: Display) -> RunResult:
    """Make one stage that no recipe names, in this process, from artifacts that are there; or reuse it.

    inputs: role -> what fills it.
    """
    started = time.monotonic()
    store = open_store(settings, working=True)
    settings = replace(settings, store=store.uri, executor="local")
    payload = stage_payload(stage, {role: record.key for role, record in inputs.items()})
    key, run_id = stage_key(payload), f"{stage.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    is_done = _is_done(store, stage.name, key, inputs)
    decision = Decision(stage.name, key, "reuse" if is_done else "run", "done" if is_done else "asked for", "none")
    parents = {role: (record.stage, record.key) for role, record in inputs.items()}
    owner = f"{socket.gethostname()}:{os.getpid()} {run_id}"
    made_by = capture(sys.argv)
    job = StageJob(stage, key, payload, parents, None, owner, made_by | {"run": run_id, "pipeline": EDITS})
    alone = Pipeline(stage.name, (replace(stage, inputs={}),))  # what it reads is there, and no part of this run
    watcher = PipelineRun(alone, [decision], {stage.name: job}, store, display)
    display.update(watcher.states())
    if is_done:
        return _ended(run_id, "done", started, watcher)
    store.check_writable()
    asked_for = {"name": stage.name, **stage.config}
    planned = {stage.name: RunStage(key, "run", parents)}
    noted = Run(run_id, EDITS, "running", time.time(), None, mask_values(asked_for), planned, made_by)
    store.runs.write(noted)
    tracker = open_tracker(settings, display.message)
    status: RunStatus = "interrupted"
    handle = tracker.start_pipeline(EDITS, run_id, asked_for)
    try:
        status = watcher.run(_open_executor(settings, alone, [stage.name]), Task(run_job, (handle, settings)), 1)
    except KeyboardInterrupt:
        display.message("interrupted: the same command does it again")
    finally:
        with suppress(StoreError):
            store.runs.write(replace(noted, status=status, ended=time.time()))
        tracker.end_pipeline(handle, status)
    return _ended(run_id, status, started, watcher)


def _is_done(store: ArtifactStore, stage: str, key: str, inputs: Mapping[str, Record]) -> bool:
    try:
        record = store.record(stage, key)
    except ArtifactDamaged:
        return False
    return record is not None and rebuilt_input(record, inputs) is None


def _jobs(made: Plan, to_do: list[Decision], run_id: str, provenance: Mapping[str, Any]) -> dict[str, StageJob]:
    owner = f"{socket.gethostname()}:{os.getpid()} {run_id}"
    is_forced = any(decision.cause == "forced" for decision in to_do)
    return {decision.stage: _job(decision, made, owner, provenance, is_forced) for decision in to_do}


def _job(decision: Decision, made: Plan, owner: str, provenance: Mapping[str, Any], is_forced: bool) -> StageJob:
    """is_forced: something of this run is, so that nothing that runs is taken as it was.

    Otherwise a stage that runs only because an input does is as good as it was, if that comes out with the bytes that
    it was made from: a repaired artifact costs nothing downstream of it. An adopted expert is never made again.
    """
    stage = made.pipeline[decision.stage]
    overrides = {place: record.key for place, record in made.given.items()}
    parents = {role: (parent, made.keys[parent]) for role, parent in stage.inputs.items()}
    given = {role: record for (name, role), record in made.given.items() if name == stage.name}
    may_hold = decision.cause == "input" and (not is_forced or stage.function == "adopt")
    return StageJob(
        stage=stage,
        key=decision.key,
        payload=stage_payload(stage, input_keys(stage, made.keys, overrides)),
        inputs=parents | {role: (record.stage, record.key) for role, record in given.items()},
        replaces=made.seen.get(decision.stage) if decision.action == "run" and not may_hold else None,
        owner=owner,
        provenance=provenance,
    )


def _open_executor(settings: Settings, pipeline: Pipeline, to_do: Sequence[str]) -> Executor:
    """Raises UsageError if the cluster can never hold a stage that is to be made."""
    if settings.executor == "local":
        from infra.local_executor import LocalExecutor

        return LocalExecutor()
    from infra import ray_env

    ray_env.prepare(verbose=settings.verbose, embedded=settings.address is None)
    from infra.ray_executor import RayExecutor, available_cpus

    # An embedded Ray has as many logical CPUs as the largest group asks for: a small laptop runs it too,
    # only slower.
    largest = max(stage.resources.workers * stage.resources.cpus for stage in pipeline)
    executor = RayExecutor(settings.address, max(available_cpus(), largest), settings.verbose)
    try:
        executor.require_room(pipeline[name] for name in to_do)
        if settings.address and "://" not in settings.store:
            executor.require_shared(settings.store)
    except UsageError:
        executor.close()
        raise
    return executor


def _report(results: tuple[StageResult, ...]) -> str | None:
    for result in results:
        if result.stage == "report" and result.artifact:
            return f"{result.artifact}/report.html"
    return None
