"""What a stage gets where it runs, in this process or in a Ray task's: the adapters, joined to the ports."""

from __future__ import annotations

import functools
import hashlib
import socket
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_core.errors import StageFailed
from bam_core.graph.record import Record
from bam_core.graph.stage import Stage
from bam_core.plugins import require_same
from bam_core.protocols import Metrics, Place, Searcher, StageFunction, Tracker, Trainer
from infra.devices import device_name
from infra.leases import Watch
from infra.live_log import LiveLog
from infra.provenance import mask_text
from infra.sources import TextSources
from infra.store import ArtifactStore
from pipelines.attempt import Services, StageEnd, StageJob, run_stage_job
from pipelines.plugging import PLUGINS
from pipelines.stages import KINDS
from pipelines.wiring.settings import Settings, open_store, open_tracker


def run_job(job: StageJob, tracking: Mapping[str, Any], settings: Settings) -> StageEnd:
    """The task that an executor runs, in this process or another. tracking: the pipeline run's handle."""
    try:
        # One stage at a time here, so a run that waited for another's could do nothing else.
        return run_stage_job(job, tracking, _services(settings, tracking), waits=settings.executor != "local")
    except StageFailed as error:  # in the words of whatever library failed
        raise StageFailed(mask_text(str(error))) from error


@functools.lru_cache(maxsize=1)
def _stage_tracker(settings: Settings, run_id: str | None) -> Tracker:
    """One for all stages of a run that this process makes: if MLflow does not answer, it is given up once."""
    return open_tracker(settings)


@functools.lru_cache(maxsize=1)
def _watch(store: str) -> Watch:
    """One for all that this process tries: a lease is over once nobody has renewed it for its term under the same eyes,
    and an attempt that finds it held does not stay to see that."""
    return Watch()


def _services(settings: Settings, tracking: Mapping[str, Any]) -> Services:
    store = open_store(settings, working=True, watch=_watch(settings.store))
    tracker = _stage_tracker(settings, tracking.get("run_id"))
    return Services(
        store=store,
        tracker=tracker,
        sources=TextSources(),
        function=_stage_function,
        trainer=lambda job, records, attempt, log: _trainer(settings, store, job, records, attempt, log),
        searcher=_searcher,
        live_log=lambda attempt, handle: LiveLog(attempt, tracker, handle),
        capture=_capture(settings),
        place=_place(settings),
    )


def _stage_function(stage: Stage) -> StageFunction:
    """Raises BamError if a plug-in is not, where the stage runs, the one that was planned with."""
    require_same(stage.config.get(PLUGINS, {}))
    return KINDS[stage.function].function()


def _capture(settings: Settings) -> Callable[[Path], Any]:
    """A Ray task has a process to itself, so its output goes to the attempt's log; a thread has not."""
    if settings.executor == "local":
        return lambda path: nullcontext()
    from infra.logs import capture_output

    return capture_output


def _place(settings: Settings) -> Callable[[], Place]:
    if settings.executor == "local":
        return lambda: {"host": socket.gethostname(), "device": device_name()}
    from infra.ray_train import place

    return place


def _trainer(
    settings: Settings,
    store: ArtifactStore,
    job: StageJob,
    records: Mapping[str, Record],
    attempt: Path,
    log: Callable[[int, Metrics], None],
) -> Trainer:
    name = _training_name(job, records)
    locate = LocateInputs(store.uri, dict(records))
    if settings.executor == "local":
        from infra.local_executor import LocalTrainer

        here = store.training_dir(job.stage.name, job.key) / name
        return LocalTrainer(here, locate(), log)
    from infra.ray_train import RayTrainer

    return RayTrainer(f"{store.training_uri(job.stage.name, job.key)}/{name}", locate, log, attempt)


def _searcher(stage: Stage, trainer: Trainer) -> Searcher | None:
    """Only for a stage that searches: Ray Tune takes long to import."""
    if stage.function != "tune":
        return None
    from infra.local_executor import LocalTrainer

    if isinstance(trainer, LocalTrainer):
        from infra.local_search import LocalSearcher

        return LocalSearcher(trainer)
    from infra.ray_train import RayTrainer
    from infra.ray_tune import RaySearcher

    assert isinstance(trainer, RayTrainer)
    return RaySearcher(trainer)


def _training_name(job: StageJob, records: Mapping[str, Record]) -> str:
    """A run resumes by name, so the name says what it is and, since a key does not see bytes, what it read.

    What it replaces is in it too: a forced run continues its own checkpoints, never those of the run that it repeats.
    """
    read = "".join(f"{role}={record.digest};" for role, record in sorted(records.items()))
    identity = read if job.replaces is None else f"{read}replaces={job.replaces}"
    return f"{job.stage.name}-{job.key[:12]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class LocateInputs:
    """Local folders of a stage's inputs, wherever it is called."""

    store_uri: str
    records: Mapping[str, Record]

    def __call__(self) -> dict[str, Path]:
        store = ArtifactStore(self.store_uri)
        return {role: store.localize(record) for role, record in self.records.items()}
