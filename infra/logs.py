"""Where the output of a process that runs one thing goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def capture_output(path: Path) -> Iterator[None]:
    """Append this process's standard output and error, those of native code included, to `path`.

    Only for a process that does nothing else meanwhile: file descriptors belong to the whole process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, copy in enumerate(saved, start=1):
            os.dup2(copy, target)
            os.close(copy)
