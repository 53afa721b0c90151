"""The records behind an artifact: itself and all that it was made from, as far as they can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bam_core.errors import StoreError
from bam_core.graph.lineage import NodeId
from bam_core.graph.record import InputRef, Record
from infra.record_files import artifact_folder, readable_record
from infra.storage import Storage

Reader = Callable[[Sequence[NodeId]], Sequence[Record | None]]


class Ancestry:
    """read: the records of these artifacts, None for each that is gone."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def of(self, nodes: Iterable[NodeId]) -> dict[NodeId, Record | None]:
        """These artifacts and everything behind them, nearest first. None: its record is gone."""
        found: dict[NodeId, Record | None] = {}
        ahead = list(dict.fromkeys(nodes))
        while ahead:
            found |= zip(ahead, self._read(ahead), strict=True)
            behind = [node_of(ref) for node in ahead if (record := found[node]) for ref in record.inputs.values()]
            ahead = [node for node in dict.fromkeys(behind) if node not in found]
        return found


def node_of(ref: InputRef | Record) -> NodeId:
    return ref.stage, ref.key


def in_records(records: Iterable[Record]) -> Ancestry:
    known = {node_of(record): record for record in records}
    return Ancestry(lambda nodes: [known.get(node) for node in nodes])


def in_storage(storage: Storage) -> Ancestry:
    """As it is at each call. Of a storage that does not answer, nothing can be read."""

    def read(nodes: Sequence[NodeId]) -> list[Record | None]:
        folders = [artifact_folder(stage, key) for stage, key in nodes]
        try:
            files = storage.read_many([f"{folder}/record.json" for folder in folders])
        except StoreError:
            return [None] * len(nodes)
        return [readable_record(data, folder) for data, folder in zip(files, folders, strict=True)]

    return Ancestry(read)
