"""A file that a person asked for: whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bam_core.errors import UsageError


def write_text(file: Path, text: str, option: str = "--out", make_folder: bool = False) -> None:
    """What was there stays until the new file is whole. A link stays too: the file that it leads to is written.

    Raises UsageError, which names the option and the file.
    """
    part = None
    try:
        if make_folder:
            file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # such as /dev/stdout, which no file may replace
            file.write_text(text, encoding="utf-8")
            return
        target = Path(os.path.realpath(file))
        part = target.parent / f".{target.name}-{os.getpid()}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        if part is not None:
            with suppress(OSError):
                part.unlink()
        raise UsageError(f"{option} {file}: cannot be written: {error.strerror or error}") from error
