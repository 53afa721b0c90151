"""`record.json` as bytes of a store, and the folders that stages and keys name. All of it is checked before it is used.

Invariant: no stage, key or path of a record leaves the folder where it belongs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bam_core.errors import ArtifactDamaged, StoreError, UsageError
from bam_core.graph.key import KEY12, key12
from bam_core.graph.record import Output, Record, artifact_digest

SIGNATURE = "record.sig.json"
"""Beside `record.json`, of which it is the signature."""
STAGE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
KEY = re.compile(rf"[0-9a-f]{{{KEY12},}}")


def parse_record(data: bytes, where: str) -> Record:
    """Raises ArtifactDamaged, naming `where`, unless it is a whole record that holds together."""
    record = Record.from_json(_content(data, where), where)
    _require_names(record, where)
    if artifact_digest(record.outputs) != record.digest:
        raise ArtifactDamaged(f"{where}: record.json lists outputs that do not have its digest")
    return record


@dataclass(frozen=True)
class Examined:
    """A record.json as it lies there. record: what it says, also where it does not hold, as the record of where it
    lies; None where that cannot be told. content: all of its JSON. fault: why it does not hold. sealed: it has a
    checksum.
    """

    record: Record | None
    content: Mapping[str, Any]
    fault: str | None
    sealed: bool


def examine(data: bytes, stage: str, key: str) -> Examined:
    """What `parse_record` would refuse, and as much of it as can be read nevertheless."""
    where = f"{stage}@{key12(key)}"
    record, content, fault = None, dict[str, Any](), None
    try:
        record = parse_record(data, where)
    except ArtifactDamaged as error:
        fault = str(error).removeprefix(f"{where}: ")
    with contextlib.suppress(ArtifactDamaged):
        found = _content(data, where)
        content = found if isinstance(found, dict) else {}
        if record is None and content:
            record = Record.from_json(content | {"checksum": None}, where)
            _require_names(record, where)
    if record is not None and (record.stage, record.key[: len(key)]) != (stage, key):
        fault = fault or f"its record is of {record.stage}@{record.key}"
        record = replace(record, stage=stage, key=key)
    return Examined(record, content, fault, sealed=content.get("checksum") is not None)


def _content(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ArtifactDamaged(f"{where}: record.json is not JSON ({error})") from error


def _require_names(record: Record, where: str) -> None:
    """Raises ArtifactDamaged for a stage or a key, its own or an input's, that no artifact can have."""
    for ref in (record.ref, *record.inputs.values()):
        texts = isinstance(ref.stage, str) and isinstance(ref.key, str)
        if not (texts and STAGE.fullmatch(ref.stage) and KEY.fullmatch(ref.key)):
            raise ArtifactDamaged(f"{where}: its record names {ref.stage!r}@{ref.key!r}, which no artifact can be")


def size_fault(output: Output, sizes: Mapping[str, int]) -> str | None:
    if output.path not in sizes:
        return f"output {output.path} is missing"
    size = sizes[output.path]
    return None if size == output.size else f"output {output.path} has {size} bytes, not {output.size}"


def readable_record(data: bytes | None, folder: str) -> Record | None:
    """The record in `folder`, if it is one and belongs there."""
    with contextlib.suppress(ArtifactDamaged):
        record = None if data is None else parse_record(data, folder)
        if record is not None and folder == artifact_folder(record.stage, record.key):
            return record
    return None


def check_sizes(record: Record, sizes: Mapping[str, int], where: str) -> None:
    for output in record.outputs:
        fault = size_fault(output, sizes)
        if fault is not None:
            raise ArtifactDamaged(f"{where}: {fault}")


def artifact_folder(stage: str, key: str) -> str:
    if not STAGE.fullmatch(stage):
        raise UsageError(f"{stage!r} cannot be a stage's name: letters, digits, '-', '_' and single dots")
    if not KEY.fullmatch(key):
        raise StoreError(f"{stage}: {key!r} is not a key: hex digits, at least {KEY12}")
    return f"artifacts/{stage}/{key12(key)}"


def training_folder(stage: str, key: str) -> str:
    return artifact_folder(stage, key).replace("artifacts/", "training/").replace(f"{stage}/", f"{stage}-")
