"""The JSON files of artifacts, read in one way; and what stands in the place of a file that was not fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-LFS leaves in the place of one that was not fetched."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ArtifactDamaged, naming it, if there is none."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactDamaged(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ArtifactDamaged(f"{path}: must hold a JSON object")
    return data
