"""The documentation builds as a site, with every warning an error: links, anchors, pages that no navigation names."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import bam
import bam_core

ROOT = Path(__file__).parents[2]
NEEDS = ("sphinx", "myst_parser", "furo")
RENAMED = {"upcycle", "extract"}
"""Names of `bam` for what `bam_core` has under another one."""


@pytest.mark.skipif(not all(map(find_spec, NEEDS)), reason="needs Sphinx: pip install -c constraints.txt -e '.[docs]'")
@pytest.mark.timeout(900)
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    result = subprocess.run([*command, "docs", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    front = (tmp_path / "site" / "index.html").read_text()
    assert "tutorial.html" in front
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert 'id="bam-run"' in commands
    api = "".join((tmp_path / "site" / "reference" / f"api-{name}.html").read_text() for name in ("bam", "bam-core"))
    shown = set(re.findall(r'id="bam(?:_core)?\.(\w+)"', api)) | RENAMED
    assert sorted({*bam.__all__, *bam_core.__all__} - shown) == []
