"""MLflow's view of a store: rebuilt from its files, read back as a graph, and served as pages."""

from __future__ import annotations

import signal
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bam_core.errors import ArtifactDamaged, BamError, StoreError, UsageError
from bam_core.graph.record import Record
from infra.provenance import mask_text
from infra.store import ArtifactStore
from pipelines.wiring.origins import known_records, upstream
from pipelines.wiring.settings import Settings, open_store, require_tracking_uri

if TYPE_CHECKING:
    from bam_core.graph.lineage import Direction, Graph


def lineage_sync(settings: Settings) -> int:
    """Write into MLflow what it lacks of the store's records, runs and promotions; returns how many artifacts it has.

    Raises BamError if MLflow refuses, UsageError if a remote store is given no server, and, when all else is written,
    ArtifactDamaged naming what was left out.
    """
    from infra.adopting import foreign_records
    from infra.mlflow_lineage import is_model
    from infra.mlflow_registry import restore_registry
    from infra.mlflow_sync import sync
    from infra.mlflow_tracker import MlflowTracker
    from infra.small_files import SmallFiles

    store = open_store(settings)
    uri = tracking_uri(settings, store)
    tracker = MlflowTracker(uri, store.uri)
    known = known_records(store)

    def is_live(stage: str, key: str) -> bool:
        try:
            return store.lease_info(stage, key) is not None
        except UsageError:  # a name that MLflow has of somebody else
            return False

    def models_behind(record: Record) -> list[Record]:
        return [made for made in upstream(record, known) if is_model(made)]

    with _in_words(uri), SmallFiles(store) as folder_of:
        foreign_of = partial(foreign_records, store)
        synced = sync(known.values(), store.runs.all(), tracker, folder_of, is_live, foreign_of)
        restore_registry(tracker.client, known.values(), store.pins, store.artifact_uri, models_behind)
    if synced.damaged:
        left_out = "; ".join(synced.damaged)
        raise ArtifactDamaged(f"{synced.total} artifacts are in MLflow; left out, since they are damaged: {left_out}")
    return synced.total


def lineage_from_mlflow(ref: str, settings: Settings, direction: Direction) -> Graph:
    """As `lineage`, from MLflow alone. Raises BamError if MLflow does not answer."""
    from infra.mlflow_connect import connect, sqlite_file
    from infra.mlflow_graph import graph_from_mlflow

    uri = tracking_uri(settings, open_store(settings))
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: nothing was tracked here yet; `bam lineage sync` fills it in from the records")
    with _in_words(uri):
        return graph_from_mlflow(connect(uri), ref, direction)


def serve_ui(settings: Settings, port: int, open_browser: bool) -> None:
    """Serve MLflow's pages on loopback until interrupted, opened at the last run of a pipeline."""
    from infra.mlflow_connect import artifact_root
    from infra.mlflow_ui import LANDING, last_run, serve

    uri = tracking_uri(settings, open_store(settings))
    with serve(uri, artifact_root(uri), port=port) as address:
        latest = last_run(uri)
        print(f"MLflow: {address}{LANDING}")
        if latest is not None:
            print(f"last run, {latest.name}: {address}{latest.page}")
            print("  nested runs are its stages; Models shows what they made and from what; Artifacts has its lineage")
        print("ctrl-C stops it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server does not outlive us
        if open_browser:
            webbrowser.open(address + (latest.page if latest is not None else LANDING))
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return


def tracking_uri(settings: Settings, store: ArtifactStore) -> str:
    """Raises UsageError when there can be none."""
    from infra.mlflow_connect import default_tracking_uri

    require_tracking_uri(settings.tracking_uri)
    uri = settings.tracking_uri or default_tracking_uri(store.uri)
    if uri is None:
        raise UsageError(
            f"{mask_text(store.uri)}: a remote store cannot hold MLflow's SQLite database; give --tracking-uri"
        )
    return uri


@contextmanager
def _in_words(uri: str) -> Iterator[None]:
    """What MLflow raises, with its address."""
    try:
        yield
    except (UsageError, StoreError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BamError(f"MLflow at {mask_text(uri)}: {mask_text(reason)[:500]}") from error
