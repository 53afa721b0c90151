"""One stage of a run, the same code in a thread and in a Ray task: lease, attempt, inputs, outputs, record.

Through ports only: no Ray, MLflow or fsspec here. Invariants: a record is written last and only under a live lease;
what another run made meanwhile is taken, not made again; no input is read whose bytes are not its record's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged, BamError, LeaseHeld, StageFailed, StoreError
from bam_core.graph.plan import rebuilt_input
from bam_core.graph.record import Record, artifact_digest
from bam_core.graph.stage import Stage
from bam_core.protocols import (
    Lease,
    Metrics,
    Place,
    Searcher,
    Sources,
    StageContext,
    StageFunction,
    Store,
    Tracker,
    Trainer,
)
from pipelines.heap import unscanned
from pipelines.stages.inputs import require_fitting

LiveFigures = Callable[[int, Metrics], None]
DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
"""What Arrow, safetensors and Ray say of a full disk or quota: their exceptions differ, but all quote the system."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "OutOfMemoryError")
"""What torch, CUDA, C++ and Ray say of it."""
POLL_S = 0.25
"""How often the driver looks at progress, and a stage at a lease that another run holds."""


@dataclass(frozen=True)
class StageJob:
    """All that another process needs to run one stage: plain values, picklable.

    inputs: role -> (stage, key). replaces: when the record that the plan wants made again was written; any other
    record was made by another run meanwhile, and is as good as ours.
    """

    stage: Stage
    key: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, str]]
    replaces: float | None
    owner: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Services:
    """The adapters that a stage runs with, joined in `wiring`.

    trainer: of (job, input records, attempt's folder, live log). searcher: of (stage, trainer), for a
    stage that searches. live_log: of (attempt's folder, tracker's handle).
    capture: sends this process's output to a file, where the process runs nothing else. place: where this process is.
    """

    store: Store
    tracker: Tracker
    sources: Sources
    function: Callable[[Stage], StageFunction]
    trainer: Callable[[StageJob, Mapping[str, Record], Path, LiveFigures], Trainer]
    searcher: Callable[[Stage, Trainer], Searcher | None]
    live_log: Callable[[Path, Mapping[str, Any]], LiveFigures]
    capture: Callable[[Path], AbstractContextManager[None]]
    place: Callable[[], Place]


@dataclass(frozen=True)
class StageEnd:
    """made: False when another run made it while this one waited."""

    record: Record
    made: bool


def run_stage_job(job: StageJob, tracking: Mapping[str, Any], services: Services, *, waits: bool = True) -> StageEnd:
    """Make one artifact, or take it from a run that made it meanwhile. Raises StageFailed with the reason.

    tracking: the tracker's handle of the pipeline run that this stage belongs to.
    waits: for another run that is making it; otherwise raises LeaseHeld.
    """
    store, name = services.store, job.stage.name
    try:
        while True:
            lease = _acquire_or_reuse(job, store, waits)
            if isinstance(lease, Record):
                return StageEnd(lease, made=False)
            try:
                return StageEnd(_attempt(job, tracking, services, lease), made=True)
            except Exception:
                if not _is_lost(lease):
                    raise
                # Held up for so long that another run took over: what it makes is as good, and this failure is ours.
            finally:
                lease.release()
    except LeaseHeld:
        raise
    except BamError as error:
        raise StageFailed(f"{name}: {error}") from error
    except Exception as error:
        where = store.artifact_uri(name, job.key)
        raise StageFailed(f"{name}: {type(error).__name__}: {error}{_remedy(error, where)}") from error


def _remedy(error: Exception, where: str) -> str:
    if any(words in str(error) for words in DISK_FULL):
        return f"; free some space for {where} and run the same command: nothing committed is lost"
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return "; lower runtime.micro_batch_rows or runtime.max_parallel and run the same command: it continues"
    return ""


def _is_lost(lease: Lease) -> bool:
    """Whether another run has taken the lease over; one that cannot be asked is not lost."""
    try:
        with suppress(StoreError):
            lease.require()
    except LeaseHeld:
        return True
    return False


def _acquire_or_reuse(job: StageJob, store: Store, waits: bool) -> Lease | Record:
    """The lease, or the record that another run made since the plan."""
    while True:
        if (made := _made_meanwhile(job, store)) is not None:
            return made
        try:
            lease = store.acquire(job.stage.name, job.key, job.owner)
        except LeaseHeld:
            if not waits:
                raise
            time.sleep(POLL_S)
            continue
        if (made := _made_meanwhile(job, store)) is not None:
            lease.release()
            return made
        return lease


def _made_meanwhile(job: StageJob, store: Store) -> Record | None:
    try:
        record = store.record(job.stage.name, job.key)
        if record is None or record.ended == job.replaces:
            return None
        inputs = {role: _input_record(store, role, parent) for role, parent in job.inputs.items()}
    except ArtifactDamaged:
        return None
    return record if rebuilt_input(record, inputs) is None else None


def _attempt(job: StageJob, tracking: Mapping[str, Any], services: Services, lease: Lease) -> Record:
    store, tracker, stage = services.store, services.tracker, job.stage
    records = {role: _input_record(store, role, parent) for role, parent in job.inputs.items()}
    attempt = store.next_attempt(stage.name, job.key)
    handle = tracker.start_stage(tracking, stage, job.key, records)
    error: dict[str, Any] | None = None
    try:
        return _make(job, services, lease, records, attempt, handle)
    except BaseException as failure:
        error = {"type": type(failure).__name__, "message": str(failure), "traceback": traceback.format_exc()}
        if not _is_lost(lease):  # else MLflow's run is the other's now
            tracker.fail_stage(handle, str(failure))
        raise
    finally:
        with suppress(StoreError, OSError):  # a record that is written holds, and what failed first is the news
            store.close_attempt(stage.name, job.key, attempt, error)


def _make(
    job: StageJob,
    services: Services,
    lease: Lease,
    records: Mapping[str, Record],
    attempt: int,
    handle: Mapping[str, Any],
) -> Record:
    store, stage = services.store, job.stage
    started = time.time()
    require_fitting(stage, records)
    attempt_dir = store.attempt_dir(stage.name, job.key, attempt)
    live_log = services.live_log(attempt_dir, handle)
    trainer = services.trainer(job, records, attempt_dir, live_log)
    with services.capture(attempt_dir / "log.txt"), store.scratch(stage.name, job.key) as out:
        context = StageContext(
            stage=stage.name,
            key=job.key,
            config=stage.config,
            runtime=stage.runtime,
            resources=stage.resources,
            inputs={role: _whole(store.localize(record), record) for role, record in records.items()},
            records=records,
            out=out,
            trainer=trainer,
            sources=services.sources,
            history=store.records,
            log=live_log,
            searcher=services.searcher(stage, trainer),
        )
        function = services.function(stage)
        with unscanned():
            metrics = function(context)
        ran_on = trainer.workers or [services.place()]
        record = _record(job, records, out, metrics, started, attempt, store, ran_on)
        lease.require()
        record = replace(record, mlflow=services.tracker.end_stage(handle, record, out))
        store.commit(out, record)
    store.clear_training(stage.name, job.key)
    return record


def _input_record(store: Store, role: str, parent: tuple[str, str]) -> Record:
    record = store.record(*parent)
    if record is None:
        raise StageFailed(f"input {role!r}: {parent[0]}@{parent[1][:12]} is gone from the store")
    return record


def _whole(folder: Path, record: Record) -> Path:
    """The folder, if all in it is as recorded: what is about to be read is worth its hash."""
    for output in record.outputs:
        with (folder / output.path).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != output.sha256:
                raise ArtifactDamaged(
                    f"{record.stage}@{record.key[:12]}: {output.path} has other bytes than recorded; "
                    f"`--only {record.stage} --force {record.stage}` makes it again"
                )
    return folder


def _record(
    job: StageJob,
    records: Mapping[str, Record],
    out: Path,
    metrics: Mapping[str, Any],
    started: float,
    attempt: int,
    store: Store,
    ran_on: Sequence[Place],
) -> Record:
    outputs = store.hash_outputs(out)
    return Record(
        stage=job.stage.name,
        key=job.key,
        payload=job.payload,
        inputs={role: record.ref for role, record in records.items()},
        outputs=outputs,
        digest=artifact_digest(outputs),
        metrics=metrics,
        provenance={**job.provenance, **_said_of(job.stage), "ran_on": [dict(place) for place in ran_on]},
        started=started,
        ended=time.time(),
        attempt=attempt,
    )


def _said_of(stage: Stage) -> dict[str, Any]:
    """What a recipe says of a domain's text and no key holds: its `licence`, and its name on the hub (`dataset`). And
    the `plugins` that the stage uses."""
    of_text = {name: stage.runtime[name] for name in ("licence", "dataset", "imported_from") if name in stage.runtime}
    return of_text | ({"plugins": stage.config["plugins"]} if "plugins" in stage.config else {})
