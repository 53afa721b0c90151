"""What is written, last, when a stage is done: `record.json`. Its presence and its outputs' sizes decide reuse.

Invariants: a record never contains a path outside its own folder, and nothing in it is executed. Its `checksum` is over
all else in it, so that a changed field is noticed; who changed both is noticed by a signature only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bam_core.errors import ArtifactDamaged

SCHEMA = 1


@dataclass(frozen=True)
class InputRef:
    stage: str
    key: str
    digest: str


@dataclass(frozen=True)
class Output:
    """path: relative to the artifact's folder, with `/`. sha256: hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The contract of DESIGN section 6. started, ended: seconds since the epoch, UTC. attempt counts from 1."""

    stage: str
    key: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, InputRef]
    outputs: tuple[Output, ...]
    digest: str
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    started: float
    ended: float
    attempt: int
    mlflow: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def ref(self) -> InputRef:
        """How a consumer's record names this artifact."""
        return InputRef(self.stage, self.key, self.digest)

    def to_json(self) -> dict[str, Any]:
        content = self._content()
        return content | {"checksum": record_checksum(content)}

    def _content(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "stage": self.stage,
            "key": self.key,
            "payload": dict(self.payload),
            "inputs": {role: vars(ref) for role, ref in self.inputs.items()},
            "outputs": [vars(output) for output in self.outputs],
            "digest": self.digest,
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "started": self.started,
            "ended": self.ended,
            "attempt": self.attempt,
            "mlflow": dict(self.mlflow),
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> Record:
        """Raises ArtifactDamaged, naming `where`, unless `data` is a whole record with safe output paths."""
        try:
            record = cls(
                schema=data["schema"],
                stage=data["stage"],
                key=data["key"],
                payload=dict(data["payload"]),
                inputs={role: InputRef(**ref) for role, ref in data["inputs"].items()},
                outputs=tuple(Output(**output) for output in data["outputs"]),
                digest=data["digest"],
                metrics=dict(data["metrics"]),
                provenance=dict(data["provenance"]),
                started=float(data["started"]),
                ended=float(data["ended"]),
                attempt=data["attempt"],
                mlflow=dict(data["mlflow"]),
            )
            for output in record.outputs:
                require_inside(output.path, where)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ArtifactDamaged(f"{where}: not a record of this version of bam ({error!r})") from error
        if record.schema != SCHEMA:
            raise ArtifactDamaged(f"{where}: schema {record.schema!r}; this version of bam reads {SCHEMA}")
        if data.get("checksum") not in (None, record_checksum(data)):  # None: written before there were checksums
            raise ArtifactDamaged(f"{where}: record.json was changed since it was written: its checksum differs")
        return record


def record_checksum(data: Mapping[str, Any]) -> str:
    """sha256 over all of a record's JSON but the checksum itself, its keys sorted."""
    content = {name: value for name, value in data.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def require_inside(path: str, where: str) -> None:
    """Raises ArtifactDamaged for an absolute path or one that climbs out of its folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith(("/", "~")) or "\\" in path or ".." in parts or ":" in parts[0]:
        raise ArtifactDamaged(f"{where}: output path {path!r} leaves the artifact's folder")


def artifact_digest(outputs: Iterable[Output]) -> str:
    """sha256 over the sorted (path, sha256) of all outputs: equal digests mean equal bytes under equal names."""
    lines = sorted(f"{output.path}\0{output.sha256}\n" for output in outputs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
