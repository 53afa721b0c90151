"""The tutorial as somebody would follow it: its text, recipe and commands, in an empty folder and without Ray."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BAM = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())"]
SERVES = "bam ui"
"""Goes on until somebody stops it."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line != SERVES]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    [script], [recipe] = blocks("python"), blocks("yaml")
    (tmp_path / "texts.py").write_text(script)
    (tmp_path / "mine.yaml").write_text(recipe)
    environment = {**os.environ, "BAM_EXECUTOR": "local", "PYTHONWARNINGS": "default"}
    said = {}
    for words in commands():
        program = {"python": [sys.executable], "bam": BAM}[words[0]]
        result = subprocess.run(
            [*program, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3000
        )
        assert result.returncode == 0 or words[1] == "doctor", f"{shlex.join(words)}: {result.stdout}{result.stderr}"
        said[shlex.join(words)] = result.stdout
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "lineage.html").is_file()
    assert "14 reused" in said["bam run mine.yaml"], "the second time"
    assert re.search(r"expert.code .* run .* phase.lr", said["bam plan mine.yaml --set phases.expert.lr=1e-3"])
    assert said["bam ls train.bam"].count("train.bam") == 2
