"""Looking over a store and removing what nothing needs: `bam_core.graph.reach` decides, this reads and removes.

Each removal happens under the artifact's lease, so that no run makes or takes it meanwhile, and only after the runs and
pins on record were looked at again: a run is on record before it starts, so either it sees the lease or this sees the
run. Children go before what they were made from, and in each artifact the record before its outputs: killed at any
point, what is left has all its ancestors, and no record describes what is not there. The next call goes on from there.
Files that this machine keeps of a remote store are not touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bam_core.errors import LeaseHeld
from bam_core.graph import holdings, reach
from bam_core.graph.holdings import Artifact, Contents, Going, Leftover, Node, Policy, Reach, RecordState
from bam_core.graph.key import KEY12
from bam_core.graph.pins import Pin
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from infra.leases import is_lease_file
from infra.record_files import KEY, STAGE, artifact_folder, readable_record, size_fault
from infra.storage import FileInfo
from infra.store import ArtifactStore

Files = Mapping[str, FileInfo]
_TRAINING = re.compile(rf"(?P<stage>.+)-(?P<key>[0-9a-f]{{{KEY12}}})")
_HALF_WRITTEN = re.compile(r"\.(?!lease).+\.[0-9a-f]{32}")
"""What an atomic write leaves when it is killed. A lease's is not ours: others write theirs without holding it."""


@dataclass(frozen=True)
class Removal:
    """What became of something that was to go. kept: why it was not removed after all."""

    going: Going
    kept: str | None = None


class Housekeeping:
    """One store looked over. clock: seconds since the epoch."""

    def __init__(self, store: ArtifactStore, policy: Policy, clock: Callable[[], float] = time.time) -> None:
        self._store, self._policy, self._clock = store, policy, clock
        self._holds: Node | None = None
        self._owner = f"{socket.gethostname()}:{os.getpid()} {holdings.COLLECTOR}"
        self._read: dict[Node, tuple[FileInfo, Record | None]] = {}
        self.look()

    def look(self) -> None:
        """Read all that decides: `contents` is what is there, `reach` what stays and goes."""
        self._on_record = self._runs_and_pins()  # listed before it is read: what changes meanwhile is read again
        self.contents = self._contents()
        self.reach: Reach = reach.reach(self.contents, self._policy, self._clock())
        self._goes = {going.identity for going in self.reach.goes}
        self._is_stale = False

    def apply(self) -> Iterator[Removal]:
        """Remove what goes, one after another. What has become needed meanwhile stays. Nothing if `reach` is blocked.

        Raises StoreError if the store cannot be written: what is removed by then is, and the next call continues.
        """
        if not self.reach.goes:
            return
        self._store.check_writable()  # also that leases hold here
        for going in self.reach.goes:
            yield Removal(going, self._remove_run(going) if going.node is None else self._remove(going, going.node))

    def _remove(self, going: Going, node: Node) -> str | None:
        """Why it stays, or None."""
        try:
            lease = self._store.acquire(*node, self._owner)
        except LeaseHeld as error:
            self._is_stale = True
            return str(error).partition(";")[0]
        self._holds = node
        try:
            # A lease that is over was taken over by ours, and goes with it.
            if going.kind == "lease":
                return None
            if why := self._needed_by_now(going):
                return why
            lease.require()
            if going.kind == "artifact":
                self._store.storage.remove(f"{artifact_folder(*node)}/record.json")
                lease.require()  # held up for longer than a lease lives, it would take what another made since
            self._empty(going, node)
        except LeaseHeld as error:
            self._is_stale = True
            return str(error).partition(";")[0]
        finally:
            self._holds = None
            lease.release()
            self._remove_empty_folder(node)
        return None

    def _remove_run(self, going: Going) -> str | None:
        assert going.run is not None, going
        why = self._needed_by_now(going)
        if why is None:
            self._store.runs.remove(going.run)
            self._on_record["runs"].pop(f"{going.run}.json", None)  # a change of our own is no reason to look again
        return why

    def _needed_by_now(self, going: Going) -> str | None:
        if self._is_stale or self._on_record != self._runs_and_pins():
            self.look()
        if going.identity in self._goes:
            return None
        if self.reach.blocked:
            return self.reach.blocked[0]
        reasons = self.reach.stays.get(going.node, ()) if going.node else ()
        return reasons[0] if reasons else "has changed meanwhile"

    def _empty(self, going: Going, node: Node) -> None:
        """Remove all that goes, but the lease."""
        storage, folder = self._store.storage, artifact_folder(*node)
        if going.kind == "checkpoints":
            self._store.clear_training(*node)
            return
        is_all = going.kind == "artifact"
        for name in storage.folders(folder):
            if is_all or _is_scratch(name):
                storage.remove_tree(f"{folder}/{name}")
        for name in storage.files(folder):
            if "/" not in name and not is_lease_file(name) and (is_all or _is_scratch(name)):
                storage.remove(f"{folder}/{name}")

    def _remove_empty_folder(self, node: Node) -> None:
        if self._store.storage.is_local:
            with contextlib.suppress(OSError):  # it is not empty, or gone
                self._store.storage.local(artifact_folder(*node)).rmdir()

    def _runs_and_pins(self) -> dict[str, dict[str, FileInfo]]:
        return {folder: self._store.storage.files(folder) for folder in ("runs", "pins")}

    def _contents(self) -> Contents:
        runs, pins = self._store.runs.all(), self._store.pins.all()
        folders = self._folders()
        records = self._records(folders)
        artifacts = {node: self._artifact(node, files, records.get(node)) for node, files in folders.items()}
        leftovers = (*self._checkpoints(), *self._left_beside(folders, artifacts))
        return Contents(artifacts, runs, pins, leftovers, self._unreadable(runs, pins))

    def _unreadable(self, runs: Sequence[Run], pins: Sequence[Pin]) -> tuple[str, ...]:
        """Files of runs and pins that are there and say nothing to us."""
        listed = {f"{folder}/{name}" for folder, files in self._on_record.items() for name in files}
        read = {f"runs/{run.name}.json" for run in runs} | {f"pins/{pin.name}.json" for pin in pins}
        left = sorted(path for path in listed - read if path.endswith(".json") and path.count("/") == 1)
        there = self._store.storage.read_many(left)  # one that another collector has removed meanwhile is none
        return tuple(path for path, data in zip(left, there, strict=True) if data is not None)

    def _folders(self) -> dict[Node, dict[str, FileInfo]]:
        """Every artifact's files. Folders of other names are nobody's business here."""
        folders: dict[Node, dict[str, FileInfo]] = {}
        for path, info in self._store.storage.files("artifacts").items():
            stage, _, rest = path.partition("/")
            key, _, name = rest.partition("/")
            if name and STAGE.fullmatch(stage) and KEY.fullmatch(key):
                folders.setdefault((stage, key), {})[name] = info
        if self._store.storage.is_local:  # what was killed may leave folders without any file
            for node in self._store.artifacts():
                folders.setdefault(node, {})
        return folders

    def _records(self, folders: Mapping[Node, Files]) -> dict[Node, Record | None]:
        """Those that changed since the last look are read."""
        files = {node: there["record.json"] for node, there in folders.items() if "record.json" in there}
        new = [node for node, info in files.items() if node not in self._read or self._read[node][0] != info]
        data = self._store.storage.read_many([f"{artifact_folder(*node)}/record.json" for node in new])
        for node, found in zip(new, data, strict=True):
            self._read[node] = files[node], readable_record(found, artifact_folder(*node))
        return {node: self._read[node][1] for node in files}

    def _artifact(self, node: Node, files: Files, record: Record | None) -> Artifact:
        held = self._store.lease_info(*node) if any(map(is_lease_file, files)) else None
        lease = held.owner if held is not None and node != self._holds else None
        own = {name: info for name, info in files.items() if not is_lease_file(name)}
        size = sum(info.size for info in own.values())
        if record is None:
            state: RecordState = "unreadable" if "record.json" in files else "none"
            return Artifact(size, self._changed(node, own), state, (), lease)
        sizes = {name: info.size for name, info in files.items()}
        is_whole = all(size_fault(output, sizes) is None for output in record.outputs)
        return Artifact(size, record.ended, "whole" if is_whole else "damaged", holdings.inputs_of(record), lease)

    def _changed(self, node: Node, files: Files) -> float:
        if not files and self._store.storage.is_local:
            with contextlib.suppress(OSError):
                return self._store.storage.local(artifact_folder(*node)).stat().st_mtime
        return self._newest(files)

    def _checkpoints(self) -> Iterator[Leftover]:
        folders: dict[str, dict[str, FileInfo]] = {}
        for path, info in self._store.storage.files("training").items():
            top, _, rest = path.partition("/")
            if rest:
                folders.setdefault(top, {})[rest] = info
        if self._store.storage.is_local:
            for name in self._store.storage.folders("training"):
                folders.setdefault(name, {})
        for name, files in folders.items():
            found = _TRAINING.fullmatch(name)
            if found and STAGE.fullmatch(found["stage"]):
                yield self._leftover("checkpoints", (found["stage"], found["key"]), files)

    def _left_beside(self, folders: Mapping[Node, Files], artifacts: Mapping[Node, Artifact]) -> Iterator[Leftover]:
        for node, files in folders.items():
            scratch = {name: info for name, info in files.items() if _is_scratch(name.partition("/")[0])}
            if scratch:
                yield self._leftover("scratch", node, scratch)
            leases = {name: info for name, info in files.items() if is_lease_file(name)}
            # Of what is not done, whoever makes it takes the lease over.
            if leases and artifacts[node].record == "whole":
                yield self._leftover("lease", node, leases)

    def _leftover(self, kind: Literal["checkpoints", "scratch", "lease"], node: Node, files: Files) -> Leftover:
        return Leftover(kind, node, sum(info.size for info in files.values()), self._newest(files))

    def _newest(self, files: Files) -> float:
        """When the last of them changed: now, where the storage does not say; long ago, if there is none."""
        now = self._clock()
        return max((now if info.changed is None else info.changed for info in files.values()), default=0.0)


def _is_scratch(name: str) -> bool:
    """Of what lies directly in an artifact's folder: what a commit under way writes, or has left when it was killed."""
    return name.startswith("scratch-") or _HALF_WRITTEN.fullmatch(name) is not None
