"""`record.json` as bytes of a store, and the folders that stages and keys name. All of it is checked before it is used.

Invariant: no stage, key or path of a record leaves the folder where it belongs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping

from bam_core.errors import ArtifactDamaged, StoreError, UsageError
from bam_core.graph.key import KEY12, key12
from bam_core.graph.record import Output, Record, artifact_digest

STAGE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
KEY = re.compile(rf"[0-9a-f]{{{KEY12},}}")


def parse_record(data: bytes, where: str) -> Record:
    """Raises ArtifactDamaged, naming `where`, unless it is a whole record that holds together."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ArtifactDamaged(f"{where}: record.json is not JSON ({error})") from error
    record = Record.from_json(content, where)
    for ref in (record.ref, *record.inputs.values()):
        texts = isinstance(ref.stage, str) and isinstance(ref.key, str)
        if not (texts and STAGE.fullmatch(ref.stage) and KEY.fullmatch(ref.key)):
            raise ArtifactDamaged(f"{where}: its record names {ref.stage!r}@{ref.key!r}, which no artifact can be")
    if artifact_digest(record.outputs) != record.digest:
        raise ArtifactDamaged(f"{where}: record.json lists outputs that do not have its digest")
    return record


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
