"""Whether a record holds together: with itself, with the records of its inputs, and with a foreign one that it adopted.

Pure: records in, faults in words out, none if all is well. What a record says of files is checked where the files are
(`infra.store`), and what it says of tensors in `bam_core.upcycle.retrace`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bam_core.errors import ArtifactDamaged
from bam_core.graph.key import UnstableValue, key12, stage_key
from bam_core.graph.lineage import origin_of
from bam_core.graph.record import InputRef, Record, artifact_digest

ORIGIN_FILE = "origin.json"
"""Of an adopted artifact: the foreign records that it continues."""

DIGEST_SHOWN = 12


def record_faults(record: Record) -> list[str]:
    """What a record contradicts of itself: its key, stage and inputs follow from its payload, its digest from its
    outputs."""
    return [*_key_faults(record), *_payload_faults(record), *_digest_faults(record)]


def input_faults(record: Record, parents: Mapping[tuple[str, str], Record]) -> list[str]:
    """Inputs that are on record with another digest than was read. parents: (stage, key) -> the record that is there;
    one that is not says nothing."""
    found = []
    for role, ref in record.inputs.items():
        parent = parents.get((ref.stage, ref.key))
        if parent is not None and parent.digest != ref.digest:
            found.append(
                f"input {role}: {_name(ref)} was read with digest {ref.digest[:DIGEST_SHOWN]} and has "
                f"{parent.digest[:DIGEST_SHOWN]} now: made again since with other bytes, or altered"
            )
    return found


def origin_faults(record: Record, document: Mapping[str, Any]) -> list[str]:
    """Of an adopted artifact: that its files are those of the foreign record in its `origin.json`."""
    origin = origin_of(record)
    assert origin is not None, f"{record.stage} is not adopted"
    try:
        foreign = Record.from_json(document.get("record"), ORIGIN_FILE)
    except ArtifactDamaged as error:
        return [str(error)]
    if foreign.ref != origin:
        return [f"{ORIGIN_FILE}: its record is of {_name(foreign.ref)}, and the key names {_name(origin)}"]
    found = [f"{ORIGIN_FILE}: {fault}" for fault in record_faults(foreign)]
    theirs = {output.path: output.sha256 for output in foreign.outputs}
    for output in record.outputs:
        if output.path != ORIGIN_FILE and theirs.get(output.path) != output.sha256:
            found.append(f"output {output.path} is not the file of {_name(origin)} that was adopted")
    return found


def _key_faults(record: Record) -> Iterator[str]:
    try:
        key = stage_key(record.payload)
    except UnstableValue as error:
        yield f"its payload has no key: {error}"
        return
    if key != record.key:
        yield f"its key is not its payload's: {key12(record.key)}, not {key12(key)}"


def _payload_faults(record: Record) -> Iterator[str]:
    stage, inputs = record.payload.get("stage"), record.payload.get("inputs")
    if stage != record.stage:
        yield f"its payload is of stage {stage!r}"
    wanted = dict(inputs) if isinstance(inputs, Mapping) else {}
    have = {role: ref.key for role, ref in record.inputs.items()}
    for role in sorted(wanted.keys() | have.keys()):
        if wanted.get(role) != have.get(role):
            keys = [key12(str(keys[role])) if role in keys else "nothing" for keys in (have, wanted)]
            yield f"input {role}: it names {keys[0]}, its payload {keys[1]}"


def _digest_faults(record: Record) -> Iterator[str]:
    digest = artifact_digest(record.outputs)
    if digest != record.digest:
        yield f"its digest is {record.digest[:DIGEST_SHOWN]}, and that of its outputs {digest[:DIGEST_SHOWN]}"


def _name(ref: InputRef) -> str:
    return f"{ref.stage}@{key12(ref.key)}"
