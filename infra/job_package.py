"""What travels with a submitted job: bam's own code and the recipe, in one zip file. No data, no store, no environment.

The same content gives the same bytes, so that a cluster which has it already is not sent it again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import bam_core

VERSIONS = "submitted.json"
SUFFIXES = frozenset({".py", ".typed", ".yaml", ".json", ".css", ".js", ".html", ".j2"})
"""Of the code and what it reads; anything else that lies about in the checkout stays there."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class JobPackage:
    """files: path inside the package -> bytes."""

    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """sha256 of what is in it: of two submissions with the same, one is enough."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()

    def write(self, file: Path) -> int:
        """Write the zip file; returns its size."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(self.files.items()):
                archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), data, zipfile.ZIP_DEFLATED)
        return file.stat().st_size


def job_package(files: Mapping[str, bytes]) -> JobPackage:
    """The code that runs here, wherever it is installed, the versions that it runs with, and `files` on top."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2]), "ray": metadata.version("ray")}
    found = {VERSIONS: json.dumps(versions).encode(), **files}
    top = Path(bam_core.__file__).resolve().parent.parent
    for package in ("bam_core", "infra", "pipelines"):
        for path in sorted((top / package).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
                found[path.relative_to(top).as_posix()] = path.read_bytes()
    return JobPackage(found)
