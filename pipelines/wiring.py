"""The composition root: the only file that joins the pipelines to Ray, MLflow and storage.

Slow libraries are imported where they are composed, so that a plan, or a run that reuses everything, pays for none.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import ArtifactDamaged, InvalidInput, StoreError, UsageError, nearest
from bam_core.graph import refs
from bam_core.graph.key import input_keys, pipeline_keys, stage_payload
from bam_core.graph.plan import Decision, Facts, plan
from bam_core.graph.record import Record
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline, Stage
from bam_core.nn import costs
from bam_core.protocols import Executor, Metrics, StageFunction, Store, Tracker, Trainer
from infra.live_log import LiveLog
from infra.mlflow_tracker import open_tracker as open_mlflow
from infra.provenance import capture
from infra.sources import TextSources
from infra.store import ArtifactStore
from pipelines import bam
from pipelines.recipe import Recipe
from pipelines.runner import Display, PipelineRun, RunResult, Services, StageEnd, StageJob, Task, run_stage_job
from pipelines.stages import KINDS

if TYPE_CHECKING:
    from bam_core.graph.lineage import Graph

DEFAULT_MAX_PARALLEL = 4


@dataclass(frozen=True)
class Settings:
    """Where things run and live; none of it enters a key."""

    store: str
    tracking_uri: str | None = None
    address: str | None = None
    executor: str = "ray"
    verbose: bool = False


@dataclass(frozen=True)
class Plan:
    """models: name -> sizes and costs, for the plan's table. given: (stage, role) -> record of an `--input`."""

    pipeline: Pipeline
    keys: Mapping[str, str]
    decisions: list[Decision]
    models: Mapping[str, Mapping[str, Any]]
    given: Mapping[tuple[str, str], Record]


def open_store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.store)


def open_tracker(settings: Settings, warn: Callable[[str], None] | None = None) -> Tracker:
    return open_mlflow(settings.tracking_uri, open_store(settings).uri, warn)


# --- plan ------------------------------------------------------------------------------------------------------------


def make_plan(
    recipe: Recipe, settings: Settings, selection: Selection, inputs: Mapping[tuple[str, str], str] | None = None
) -> Plan:
    """Decide what every stage does. Reads the texts (for their digests) and the store; writes nothing."""
    store = open_store(settings)
    pipeline = _absolute(bam.build(recipe, text_digests(recipe)))
    selection.stages(pipeline)
    given = {place: refs.resolve(ref, store.records()) for place, ref in (inputs or {}).items()}
    keys = pipeline_keys(pipeline, {place: record.key for place, record in given.items()})
    facts = {stage.name: _facts(store, stage.name, keys[stage.name]) for stage in pipeline}
    decisions = plan(pipeline, keys, facts, selection, now=time.time(), given=given, recipe=recipe.name)
    return Plan(pipeline, keys, decisions, _models(recipe, pipeline), given)


def text_digests(recipe: Recipe) -> dict[str, str]:
    """Content identity of each domain's text. Raises InvalidInput with every domain's problems at once."""
    sources, digests, problems = TextSources(), {}, []
    for domain in recipe.domains:
        try:
            digests[domain] = sources.digest(recipe.source(domain))
        except InvalidInput as error:
            problems += [problem.under(f"domains.{domain}.source") for problem in error.problems]
    if problems:
        raise InvalidInput(f"recipe {recipe.name}", problems)
    return digests


def _facts(store: ArtifactStore, stage: str, key: str) -> Facts:
    record, damaged = None, None
    try:
        record = store.record(stage, key)
    except ArtifactDamaged as error:
        damaged = str(error)
    older = [] if record else [other for other in store.records(stage) if other.key != key]
    return Facts(record, damaged, store.lease_info(stage, key), older[-1] if older else None)


def _models(recipe: Recipe, pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Sizes and costs by arithmetic. train_flops: of the model's own stage."""
    models = {}
    for name, config in bam.model_configs(recipe).items():
        phase = pipeline[name].config.get("phase")
        tokens = -(-phase["tokens"] // phase["batch_tokens"]) * phase["batch_tokens"] if phase else 0
        models[name] = {
            "params_total": costs.params_total(config),
            "params_active": costs.params_active(config),
            "flops_per_token": costs.flops_per_token(config, config.max_seq_len),
            "train_tokens": tokens,
            "train_flops": costs.training_flops(config, tokens, config.max_seq_len),
            "training_bytes": costs.training_bytes(config) if phase else None,
            "cache_bytes_per_token": costs.cache_bytes_per_token(config),
        }
    return models


def _absolute(pipeline: Pipeline) -> Pipeline:
    """Stages run in other folders than the command: relative paths of texts become absolute."""

    def absolute(value: Any, name: str = "") -> Any:
        if isinstance(value, Mapping):
            return {key: absolute(part, key) for key, part in value.items()}
        if name == "path" and isinstance(value, str) and "://" not in value:
            return str(Path(value).expanduser().absolute())
        return value

    stages = (
        stage
        if any(source.get("kind") == "hf" for source in [stage.runtime.get("source", {})])
        else replace(stage, runtime=absolute(stage.runtime))
        for stage in pipeline
    )
    return Pipeline(pipeline.name, tuple(stages))


# --- run -------------------------------------------------------------------------------------------------------------


def run(
    recipe: Recipe,
    settings: Settings,
    selection: Selection,
    display: Display,
    *,
    keep_going: bool = True,
    max_parallel: int | None = None,
    inputs: Mapping[tuple[str, str], str] | None = None,
) -> RunResult:
    """Plan, then make what is missing. Ray starts only if something runs."""
    started = time.monotonic()
    made = make_plan(recipe, settings, selection, inputs)
    run_id = f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    store = open_store(settings)
    settings = replace(settings, store=store.uri)
    tracker = open_tracker(settings, display.message)
    to_do = [decision for decision in made.decisions if decision.action in ("run", "wait")]
    handle: Mapping[str, Any] = {}
    if to_do:
        store.check_writable()
        handle = tracker.start_pipeline(recipe.name, run_id, recipe.model_dump(mode="json", exclude_none=True))
    pipeline_run = PipelineRun(
        made.pipeline,
        made.decisions,
        {decision.stage: _job(decision, made, run_id, handle) for decision in to_do},
        store,
        display,
        max_parallel=max_parallel or recipe.runtime.max_parallel or DEFAULT_MAX_PARALLEL,
        fail_fast=not keep_going,
    )
    executor: Executor | None = None
    status = "interrupted"
    try:
        if to_do:
            executor = _open_executor(settings, made.pipeline)
            status = pipeline_run.run(executor, Task(_run_stage, (settings,)))
        else:
            display.update(pipeline_run.states())
            status = "failed" if any(decision.action == "blocked" for decision in made.decisions) else "done"
    except KeyboardInterrupt:
        display.message("interrupted: what is done is kept, and the same command continues")
    finally:
        if executor is not None:
            executor.close()
        tracker.end_pipeline(handle, status)
    results = pipeline_run.results()
    return RunResult(run_id, status, time.monotonic() - started, results, _report(store, results))


def run_stage(
    name: str,
    recipe: Recipe,
    settings: Settings,
    inputs: Mapping[str, str],
    with_deps: bool,
    display: Display,
) -> RunResult:
    """Make one stage on its own. inputs: role -> reference. Raises UsageError if an input is neither there nor asked for."""
    pipeline = bam.build(recipe, text_digests(recipe))
    roles = pipeline[name].inputs
    for role in inputs.keys() - roles.keys():
        raise UsageError(f"{name} has no input {role!r}: {nearest(role, roles)}")
    given = {(name, role): ref for role, ref in inputs.items()}
    selection = Selection(until=(name,)) if with_deps else Selection(only=(name,))
    for decision in make_plan(recipe, settings, selection, given).decisions:
        if decision.stage == name and decision.action == "blocked":
            raise UsageError(f"{name}: {decision.reason}; or add --with-deps, or give --input ROLE=REF")
    return run(recipe, settings, selection, display, inputs=given)


def _job(decision: Decision, made: Plan, run_id: str, handle: Mapping[str, Any]) -> StageJob:
    stage = made.pipeline[decision.stage]
    overrides = {place: record.key for place, record in made.given.items()}
    parents = {
        role: (made.given[stage.name, role].stage, made.given[stage.name, role].key)
        if (stage.name, role) in made.given
        else (parent, made.keys[parent])
        for role, parent in stage.inputs.items()
    }
    return StageJob(
        stage=stage,
        key=decision.key,
        payload=stage_payload(stage, input_keys(stage, made.keys, overrides)),
        inputs=parents,
        redo=decision.action == "run",
        owner=f"{socket.gethostname()}:{os.getpid()} {run_id}",
        provenance=capture(sys.argv),
        tracking=handle,
    )


def _open_executor(settings: Settings, pipeline: Pipeline) -> Executor:
    if settings.executor == "local":
        from infra.local_executor import LocalExecutor

        return LocalExecutor()
    from infra.ray_executor import RayExecutor, available_cpus

    # An embedded Ray has as many logical CPUs as the largest group asks for: a small laptop runs it too, only slower.
    largest = max(stage.resources.workers * stage.resources.cpus for stage in pipeline)
    return RayExecutor(settings.address, max(available_cpus(), largest), settings.verbose)


def _run_stage(job: StageJob, settings: Settings) -> StageEnd:
    """The task that an executor runs, in this process or another."""
    return run_stage_job(job, _services(settings))


def _services(settings: Settings) -> Services:
    store = open_store(settings)
    tracker = open_tracker(settings)
    return Services(
        store=store,
        tracker=tracker,
        sources=TextSources(),
        function=_stage_function,
        trainer=lambda job, records, attempt, log: _trainer(settings, store, job, records, attempt, log),
        live_log=lambda attempt, handle: LiveLog(attempt, tracker, handle),
        capture=_capture(settings),
    )


def _stage_function(stage: Stage) -> StageFunction:
    return KINDS[stage.function].function()


def _capture(settings: Settings) -> Callable[[Path], Any]:
    """A Ray task has a process to itself, so its output goes to the attempt's log; a thread has not."""
    if settings.executor == "local":
        return lambda path: nullcontext()
    from infra.logs import capture_output

    return capture_output


def _trainer(
    settings: Settings,
    store: ArtifactStore,
    job: StageJob,
    records: Mapping[str, Record],
    attempt: Path,
    log: Callable[[int, Metrics], None],
) -> Trainer:
    training_uri = store.training_uri(job.stage.name, job.key)
    locate = LocateInputs(store.uri, dict(records))
    if settings.executor == "local":
        from infra.local_executor import LocalTrainer

        return LocalTrainer(Path(training_uri), locate(), log)
    from infra.ray_train import RayTrainer

    return RayTrainer(training_uri, locate, log, attempt)


@dataclass(frozen=True)
class LocateInputs:
    """Local folders of a stage's inputs, wherever it is called."""

    store_uri: str
    records: Mapping[str, Record]

    def __call__(self) -> dict[str, Path]:
        store = ArtifactStore(self.store_uri)
        return {role: store.localize(record) for role, record in self.records.items()}


def _report(store: Store, results: tuple[Any, ...]) -> str | None:
    for result in results:
        if result.stage == "report" and result.artifact:
            return f"{result.artifact}/report.html"
    return None


# --- look ------------------------------------------------------------------------------------------------------------


def lineage(ref: str, settings: Settings, direction: str) -> Graph:
    from bam_core.graph.lineage import lineage as graph_of

    records = open_store(settings).records()
    return graph_of(records, refs.resolve(ref, records).key, direction)  # type: ignore[arg-type]


def lineage_sync(settings: Settings) -> int:
    """Write every record of the store into MLflow; returns how many are there. Raises StoreError if MLflow is down."""
    from infra.mlflow_lineage import sync
    from infra.mlflow_tracker import MlflowTracker, default_tracking_uri

    store = open_store(settings)
    uri = settings.tracking_uri or default_tracking_uri(store.uri)
    if uri is None:
        raise UsageError("a remote store needs --tracking-uri: it cannot hold MLflow's SQLite database")
    try:
        synced = sync(store.records(), MlflowTracker(uri, store.uri), store.localize)
    except Exception as error:
        raise StoreError(f"MLflow at {uri}: {error}") from error
    return synced.total
