"""What the documents promise is there: links, files, commands, the recipe and the Python of the README."""

from __future__ import annotations

import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest
import yaml

from pipelines.cli import app
from pipelines.recipe import recipe_from

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")
FILE = re.compile(r"`((?:bam_core|infra|pipelines|tests|docs)/[a-z0-9_/.]*\.[a-z]+)`")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_files_exist(document: Path) -> None:
    text = document.read_text()
    wanted = [document.parent / link for link in LINK.findall(text)] + [ROOT / file for file in FILE.findall(text)]
    assert [str(path) for path in wanted if not path.exists()] == []


@pytest.mark.parametrize("document", ["README.md", "docs/lineage.md", "docs/cluster.md"])
def test_documents_name_real_commands(document: str) -> None:
    app.main(["--version"])  # which is when the commands are gathered
    blocks = "".join(re.findall(r"```\w*\n(.*?)```", (ROOT / document).read_text(), re.DOTALL))
    named = set(re.findall(r"^(?:\.venv/bin/)?bam (\w+)", blocks, re.MULTILINE))
    assert named
    assert named <= set(app.bam.commands)


def test_recipe_of_the_readme_is_valid() -> None:
    recipe_from(yaml.safe_load(_block("yaml")), "README.md")


def test_python_of_the_readme_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _block("python")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    receipt, op = result.stdout.splitlines()
    assert all(expert["max_abs_diff"] < 1e-9 for expert in literal_eval(receipt).values())
    assert op == "stack"


def _block(language: str) -> str:
    return next(code for name, code in BLOCK.findall((ROOT / "README.md").read_text()) if name == language)
