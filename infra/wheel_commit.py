"""The commit that an installed wheel was made from: `make wheel` puts it into the version, `0.1.0+g<commit>`.

Invariant: it is told of the code that runs, not of another bam that happens to be installed beside it, and changes made
to the installed files are seen, as those of a checkout are.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import metadata
from pathlib import Path

COMMIT = re.compile(r"\+g([0-9a-f]{40})$")
CODE = frozenset({"bam", "bam_core", "infra", "pipelines"})


def wheel_commit(source: Path) -> tuple[str, str | None] | None:
    """(commit, hash of what differs from it) of the wheel whose installed file `source` is; None where that is none.

    source: `bam_core/__init__.py` as it was imported. The hash is None where every file is as it was installed.
    """
    try:
        wheel = metadata.distribution("bam")
    except metadata.PackageNotFoundError:
        return None
    found = COMMIT.search(wheel.version)
    if not found or Path(str(wheel.locate_file("bam_core/__init__.py"))).resolve() != source:
        return None
    return found[1], _changes(wheel)


def _changes(wheel: metadata.Distribution) -> str | None:
    changed = b""
    for file in wheel.files or ():
        if file.parts[0] in CODE and file.hash is not None:
            path = Path(str(file.locate()))
            data = path.read_bytes() if path.is_file() else b""
            digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, data).digest()).decode().rstrip("=")
            if digest != file.hash.value:
                changed += file.as_posix().encode() + b"\0" + hashlib.sha256(data).digest()
    return hashlib.sha256(changed).hexdigest() if changed else None
