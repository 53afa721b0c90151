"""MLflow as a view for people, told while a pipeline runs: implements `protocols.Tracker` on `infra.mlflow_view`.

Invariants: no method of the port raises - the first failure warns once, then this process leaves MLflow
alone; nothing here decides reuse. A server that is being started again is no failure yet: points that it
misses are written when their stage ends, and what must be told waits for it a while.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bam_core.errors import StoreError
from bam_core.graph.record import Record
from bam_core.graph.stage import Stage
from bam_core.protocols import Metrics, Tracker
from infra import mlflow_runs as runs
from infra.adopting import foreign_records
from infra.ancestry import Ancestry, in_storage
from infra.mlflow_catalog import Catalog
from infra.mlflow_connect import absolute_tracking_uri, connect, default_tracking_uri, local_path, sqlite_file
from infra.mlflow_view import ERROR, RUN_STATUS, ForeignOf, Handle, View
from infra.provenance import capture, mask_text
from infra.store import ArtifactStore
from infra.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

WarningsSink = Callable[[str], None]
Result = TypeVar("Result")

AWAY_S, LOOK_EVERY_S = 20.0, 0.5
"""For how long a server that was there is waited for, and how often it is asked."""

_log_warning: WarningsSink = logging.getLogger("bam.mlflow").warning


def open_tracker(tracking_uri: str | None, store_uri: str, warnings_sink: WarningsSink | None = None) -> Tracker:
    """MLflow at `tracking_uri`, or at the store's own database; without either, none, with one warning."""
    uri = tracking_uri or default_tracking_uri(store_uri)
    if uri is not None:
        return MlflowTracker(uri, store_uri, warnings_sink)
    (warnings_sink or _log_warning)(
        "MLflow is off: a remote store cannot hold its database; give --tracking-uri to turn it on"
    )
    return NullTracker()


class NullTracker:
    """Tracks nothing."""

    def start_pipeline(self, pipeline: str, run: str, recipe: Mapping[str, Any]) -> Handle:
        return {}

    def end_pipeline(self, handle: Handle, status: str) -> None:
        pass

    def start_stage(self, parent: Handle, stage: Stage, key: str, inputs: Mapping[str, Record]) -> Handle:
        return {}

    def log(self, handle: Handle, step: int, metrics: Metrics) -> None:
        pass

    def end_stage(self, handle: Handle, record: Record, folder: Path) -> Mapping[str, Any]:
        return {}

    def fail_stage(self, handle: Handle, error: str) -> None:
        pass


def _never_raises(nothing: Callable[[], Any]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a method return `nothing()` when MLflow fails now, has failed before, or never knew the handle."""

    def decorate(method: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(method)
        def guarded(self: MlflowTracker, handle: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_down or not handle:
                return nothing()
            try:
                return method(self, handle, *args, **kwargs)
            except Exception as error:  # of any kind: a view must not stop the work
                self.give_up(error)
                return nothing()

        return guarded

    return decorate


def _is_cut(error: BaseException | None) -> bool:
    """Whether nothing listened, or it went away while it was asked: so it is while a server is started again."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError | ConnectionResetError | BrokenPipeError):
            return True
        error = error.__cause__ or error.__context__
    return False


class MlflowTracker:
    """`protocols.Tracker` on an MLflow server or SQLite file. Picklable; safe to use from several threads.

    Handles: see `View`.
    """

    def __init__(self, tracking_uri: str, store_uri: str, warnings_sink: WarningsSink | None = None) -> None:
        self.tracking_uri = absolute_tracking_uri(tracking_uri)
        self.store_uri = str(local_path(store_uri) or store_uri.rstrip("/"))
        self.is_down = False
        self._warn = warnings_sink or _log_warning
        self._client: MlflowClient | None = None
        self._watching: dict[str, SystemMetrics] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process needs. The sink stays here; a tracker that is down stays down, silently."""
        return _reopen, (self.tracking_uri, self.store_uri, self.is_down)

    @_never_raises(dict)
    def start_pipeline(self, pipeline: str, run: str, recipe: Mapping[str, Any]) -> Handle:
        opened = self.live.open_pipeline(pipeline, run, recipe, capture(sys.argv), time.time())
        handle = {"run_id": opened.run_id, "parent_run_id": None, "experiment_id": opened.experiment_id}
        return {**handle, "run": run, "pipeline": pipeline}

    @_never_raises(lambda: None)
    def end_pipeline(self, handle: Handle, status: str) -> None:
        self._await_server()
        run_id = handle["run_id"]
        for left in self.live.catalog.nested_in(run_id):
            if left.status == "RUNNING":
                self.client.set_terminated(left.run_id, "KILLED")
        noted = None
        with contextlib.suppress(StoreError):  # then its page lacks some words, and a sync writes them
            noted = self._store.runs.read(handle["run"])
        opened = self.live.catalog.run(run_id)
        if noted is None or opened is None:
            self.client.set_terminated(run_id, RUN_STATUS[status])
        else:
            self.live.close_pipeline(opened, noted, RUN_STATUS[status])

    @_never_raises(dict)
    def start_stage(self, parent: Handle, stage: Stage, key: str, inputs: Mapping[str, Record]) -> Handle:
        self._await_server()
        refs = {role: record.ref for role, record in inputs.items()}
        handle = self.live.open_stage(parent, stage, key, refs, time.time())
        watching = SystemMetrics(functools.partial(self.log, handle), handle["started"])
        with self._lock:
            self._watching[handle["run_id"]] = watching
        watching.start()
        return handle

    @_never_raises(lambda: None)
    def log(self, handle: Handle, step: int, metrics: Metrics) -> None:
        try:
            runs.log_metrics(self.client, handle["run_id"], metrics, step)
        except Exception as error:
            if not _is_cut(error):
                raise

    @_never_raises(dict)
    def end_stage(self, handle: Handle, record: Record, folder: Path) -> Mapping[str, Any]:
        self._unwatch(handle)
        self._await_server()
        return self.live.close_stage(handle, record, folder)

    @_never_raises(lambda: None)
    def fail_stage(self, handle: Handle, error: str) -> None:
        self._unwatch(handle)
        self._await_server()
        runs.set_tags(self.client, handle["run_id"], {ERROR: mask_text(error)})
        self.client.set_terminated(handle["run_id"], "FAILED")

    def give_up(self, error: Exception) -> None:
        """Warn once and stop: the pipeline goes on without its view."""
        with self._lock:
            first, self.is_down = not self.is_down, True
        if first:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._warn(
                f"MLflow at {mask_text(self.tracking_uri)} is unavailable, so this run goes on untracked: "
                f"{mask_text(reason)[:300]} (`bam lineage sync` fills it in later)"
            )

    def _await_server(self) -> None:
        """Until it listens, for at most `AWAY_S`. Raises what was met last; a database file is not asked."""
        end = time.monotonic() + AWAY_S
        while sqlite_file(self.tracking_uri) is None:
            try:
                self.client.search_experiments(max_results=1)
                return
            except Exception as error:
                if not _is_cut(error) or time.monotonic() >= end:
                    raise
            time.sleep(LOOK_EVERY_S)

    def _unwatch(self, handle: Handle) -> None:
        with self._lock:
            watching = self._watching.pop(handle["run_id"], None)
        if watching is not None:
            watching.stop()

    # What follows does the work and raises what MLflow raises: `bam lineage sync` wants to know.

    @property
    def client(self) -> MlflowClient:
        """Connected on first use."""
        with self._lock:
            if self._client is None:
                self._client = connect(self.tracking_uri)
            return self._client

    def view(
        self, catalog: Catalog, ancestry: Ancestry, folder_of: Callable[[Record], Path], foreign_of: ForeignOf
    ) -> View:
        return View(catalog, ancestry, folder_of, foreign_of, self.tracking_uri, self.store_uri)

    @functools.cached_property
    def _store(self) -> ArtifactStore:
        return ArtifactStore(self.store_uri)

    @functools.cached_property
    def live(self) -> View:
        """Over what MLflow holds at each moment, and what the store does."""
        foreign_of = functools.partial(foreign_records, self._store)
        return self.view(Catalog(self.client), in_storage(self._store.storage), self._store.localize, foreign_of)


def _reopen(tracking_uri: str, store_uri: str, is_down: bool) -> MlflowTracker:
    tracker = MlflowTracker(tracking_uri, store_uri)
    tracker.is_down = is_down
    return tracker
