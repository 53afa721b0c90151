"""How people name an artifact: `stage`, `stage@latest`, `stage@keyprefix`, or a tracked model's id."""

from __future__ import annotations

from collections.abc import Iterable

from bam_core.errors import UsageError, nearest
from bam_core.graph.key import key12
from bam_core.graph.record import Record


def resolve(ref: str, records: Iterable[Record]) -> Record:
    """The record that `ref` names. Raises UsageError when it names none, or several."""
    records = sorted(records, key=lambda record: record.ended)
    name, at, prefix = ref.partition("@")
    by_model = [record for record in records if record.mlflow.get("model_id") == ref]
    found = by_model or [record for record in records if record.stage == name]
    if not found:
        hint = nearest(name, {record.stage for record in records}) if records else "the store holds no artifact yet"
        raise UsageError(f"{ref!r} names no artifact: {hint}")
    if not at or prefix == "latest":
        return found[-1]
    matches = [record for record in found if prefix and record.key.startswith(prefix.lower())]
    if len(matches) == 1:
        return matches[0]
    shown = ", ".join(f"{record.stage}@{key12(record.key)}" for record in matches or found)
    raise UsageError(f"{ref!r} names {'several artifacts' if matches else 'no artifact'}: {shown}")
