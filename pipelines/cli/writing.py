"""A file that a person asked for: whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bam_core.errors import UsageError


def write_text(file: Path, text: str, option: str = "--out", make_folder: bool = False) -> None:
    """What was there stays until the new file is whole. Raises UsageError, which names the option and the file."""
    part = file.parent / f".{file.name}-{os.getpid()}.part"
    try:
        if make_folder:
            file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UsageError(f"{option} {file}: cannot be written: {error.strerror or error}") from error
