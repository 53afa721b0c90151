"""The command line in this process: an empty folder to work in, and none of the environment's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cli import main

VARIABLES = ("BAM_STORE", "BAM_EXECUTOR", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


Bam = Callable[..., Ended]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def bam(here: Path, capsys: pytest.CaptureFixture[str]) -> Bam:
    def run(*argv: str) -> Ended:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return Ended(status, *capsys.readouterr())

    return run
