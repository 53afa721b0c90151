"""The layer diagram holds, and a planted upward import would be seen."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        ("bam_core/graph/key.py", "import infra.store", "bam > cli > wiring"),
        ("pipelines/cli/text.py", "import bam.words", "bam > cli > wiring"),
        ("bam_core/plugins.py", "import bam_core.config", "inside the core"),
        ("bam_core/nn/losses.py", "import bam_core.train.loop", "inside the core"),
        ("bam_core/data/text.py", "import fsspec", "the core is pure"),
        ("infra/store.py", "import pipelines.stages", "stages know nothing of infra"),
        ("pipelines/stages/data.py", "import infra.sources", "pipelines reach infra"),
        ("pipelines/runner.py", "import ray", "Ray, MLflow and fsspec"),
    ],
)
def test_planted_import_is_seen(tmp_path: Path, file: str, statement: str, contract: str) -> None:
    for package in ("bam", "bam_core", "infra", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / file
    planted.write_text(f"{planted.read_text()}\n{statement}\n")
    result = lint(tmp_path)
    broken = [line for line in result.stdout.splitlines() if "BROKEN" in line]
    assert result.returncode == 1, result.stdout
    assert any(line.startswith(contract) for line in broken), broken


def test_core_loads_no_outside_service() -> None:
    code = (
        "import importlib, pkgutil, sys, bam_core\n"
        "for module in pkgutil.walk_packages(bam_core.__path__, 'bam_core.'): importlib.import_module(module.name)\n"
        "print(sorted({'ray', 'mlflow', 'pydantic', 'fsspec', 'datasets', 'infra', 'pipelines'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_planning_loads_no_slow_library() -> None:
    """`bam plan` and a run that reuses everything answer at once."""
    code = "import sys, pipelines.wiring, pipelines.cli; print(sorted({'ray', 'mlflow', 'torch'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_stages_that_only_read_text_load_no_torch() -> None:
    """A second of each such process on a cluster."""
    modules = ", ".join(f"pipelines.stages.{name}" for name in ("tokenizer", "data", "overlap"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "False"
