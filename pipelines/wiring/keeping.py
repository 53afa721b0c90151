"""Keeping house: what goes and what stays, pins, and the runs on record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bam_core.errors import BamError, UsageError, nearest
from bam_core.graph import refs
from bam_core.graph.holdings import Artifact, Node, Policy, Reach, is_collected, node_of, run_nodes
from bam_core.graph.key import key12
from bam_core.graph.pins import PIN_NAME, Pin, pin_name
from bam_core.graph.reach import is_alive
from bam_core.graph.record import Record
from bam_core.graph.runs import Run, RunStage
from infra.housekeeping import Housekeeping, Removal
from infra.store import ArtifactStore
from pipelines.wiring.settings import Settings, open_store

QUIET_S = 60.0
"""How long a run may hold no lease, at its start and between two stages, and still count as running."""
COLLECTED_WITHIN_S = 60.0


@dataclass(frozen=True)
class House:
    """A store looked over. artifacts: as they were then. removals: None of a look alone."""

    artifacts: Mapping[Node, Artifact]
    reach: Reach
    removals: tuple[Removal, ...] | None = None


def collect(
    settings: Settings, policy: Policy, *, apply: bool = False, tell: Callable[[Removal], None] = lambda removal: None
) -> House:
    """What nothing needs; removed if `apply`. tell: of each removal as it happens.

    Raises UsageError for a run that is not on record, BamError if nothing may be removed now, with the reasons.
    """
    store = open_store(settings, working=apply)
    house = Housekeeping(store, policy)
    names = [run.name for run in house.contents.runs]
    for name in policy.keep_runs:
        if name not in names:
            raise UsageError(f"--keep-run {name}: no such run on record; {nearest(name, names[-20:])}")
    looked = House(house.contents.artifacts, house.reach)
    if not apply:
        return looked
    if looked.reach.blocked:
        raise BamError("nothing was removed:\n" + "\n".join(f"  {why}" for why in looked.reach.blocked))
    removals = []
    for removal in house.apply():
        removals.append(removal)
        tell(removal)
    return House(looked.artifacts, looked.reach, tuple(removals))


def pin(settings: Settings, ref: str, name: str | None, why: str) -> Pin:
    """Keep an artifact and its ancestors. name: by default after the artifact. Raises UsageError."""
    store = open_store(settings)
    record = refs.resolve(ref, store.records())
    name = name or pin_name(record.stage, key12(record.key))
    if not PIN_NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: at most 200 letters, digits, '-', '_' and '.', with no '.' first")
    there = store.pins.get(name)
    if there is not None and (there.stage, there.key) != (record.stage, record.key):
        raise UsageError(
            f"the name {name!r} pins {there.stage}@{key12(there.key)}: give another --name, or `bam unpin {name}` first"
        )
    made = Pin(name, record.stage, record.key, why, time.time())
    store.pins.write(made)
    # A collector looks at the pins under the artifact's lease. So either it has seen this one, or we see its lease.
    if not _outlives_collector(store, record):
        store.pins.remove(name)
        raise UsageError(f"{ref!r}: was being removed by `bam gc` at this moment, and is gone")
    return made


def _outlives_collector(store: ArtifactStore, record: Record) -> bool:
    deadline = time.monotonic() + COLLECTED_WITHIN_S
    while (lease := store.lease_info(record.stage, record.key)) is not None and is_collected(lease.owner):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return any(there.key == record.key for there in store.records(record.stage))


def unpin(settings: Settings, name: str, *, force: bool = False) -> None:
    """Raises UsageError if there is no such pin, or if the model registry needs it and `force` is not given."""
    store = open_store(settings)
    there = {made.name: made for made in store.pins.all()}
    if not force and name in there and there[name].registered:
        raise UsageError(
            f"{name} keeps what MLflow has registered as {there[name].registered}: delete that version; --force unpins "
            "all the same"
        )
    if not store.pins.remove(name):
        raise UsageError(f"no pin {name!r}: {nearest(name, there)}")


def pins(settings: Settings) -> list[Pin]:
    store = open_store(settings)
    store.storage.folders("artifacts")  # raises StoreError for what is no store; a listing of files would be empty
    return store.pins.all()


@dataclass(frozen=True)
class RunRow:
    """One run on record. status: as recorded, or `stopped`: it says that it runs, and holds no lease.

    seconds: None while it is under way, or unknown. made, reused, failed, left: counts of its stages.
    """

    name: str
    recipe: str
    status: str
    age_s: float
    seconds: float | None
    made: int
    reused: int
    failed: int
    left: int


def runs(settings: Settings, recipe: str | None = None) -> list[RunRow]:
    """The newest first. recipe: its name. Raises UsageError if no run is of it."""
    store = open_store(settings)
    found = store.runs.all()
    if recipe is not None and not any(run.pipeline == recipe for run in found):
        raise UsageError(f"no run of {recipe!r} on record: {nearest(recipe, {run.pipeline for run in found})}")
    records = {node_of(record.stage, record.key): record for record in store.records()}
    now = time.time()
    return [_row(run, store, records, now) for run in reversed(found) if recipe in (None, run.pipeline)]


def _row(run: Run, store: ArtifactStore, records: Mapping[Node, Record], now: float) -> RunRow:
    status: str = run.status
    if run.status == "running":
        leased = [node for node in run_nodes(run) if store.lease_info(*node) is not None]
        made = {node: records[node].ended for node in run_nodes(run) if node in records}
        status = "running" if is_alive(run, leased, made, now, QUIET_S) else "stopped"
    stages = run.stages.items()
    became = Counter(_became(run, name, stage, records.get(node_of(name, stage.key)), store) for name, stage in stages)
    counts = (became[word] for word in ("made", "reused", "failed", "left"))
    seconds = None if run.ended is None else run.ended - run.started
    return RunRow(run.name, run.pipeline, status, max(0.0, now - run.started), seconds, *counts)


def _became(run: Run, stage: str, planned: RunStage, record: Record | None, store: ArtifactStore) -> str:
    """made, reused, failed or left (not made). What a later run made of it does not count."""
    if planned.action == "reuse":
        return "reused"
    if record is not None:
        maker = record.provenance.get("run")
        end = float("inf") if run.ended is None else run.ended
        if maker == run.name or (maker is None and run.started <= record.ended <= end):
            return "made"
        if record.ended <= end:
            return "reused"  # another run made it while this one waited
    if run.status == "done":
        return "made"  # and is gone, or made again since
    if planned.action == "blocked" or run.ended is None:
        return "left"
    return "failed" if store.error(stage, planned.key) else "left"
