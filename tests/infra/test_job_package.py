"""What travels with a job: the code and the recipe, small and the same each time; what checks it where it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from infra.job_package import VERSIONS, job_package
from pipelines import job_start

MOST_BYTES = 1 << 20
HERE = {"python": "{}.{}".format(*sys.version_info[:2]), "ray": version("ray")}


def test_it_holds_the_code_and_nothing_else(tmp_path: Path) -> None:
    package = job_package({"recipe.yaml": b"name: tiny\n"})
    size = package.write(tmp_path / "a.zip")
    names = set(zipfile.ZipFile(tmp_path / "a.zip").namelist())
    assert size == (tmp_path / "a.zip").stat().st_size < MOST_BYTES
    assert {"bam_core/nn/lm.py", "infra/ray_train.py", "pipelines/report/templates/report.html.j2"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"bam_core", "infra", "pipelines", "recipe.yaml", VERSIONS}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert json.loads(package.files[VERSIONS]) == HERE


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    one, two = job_package({"a": b"1", "b": b"2"}), job_package({"b": b"2", "a": b"1"})
    one.write(tmp_path / "1.zip")
    two.write(tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert one.digest == two.digest
    assert one.digest != job_package({"a": b"1", "b": b"3"}).digest
    assert one.digest != job_package({"a": b"12", "b": b""}).digest


def test_the_code_runs_from_the_package_alone(tmp_path: Path) -> None:
    """Unpacked anywhere, it is this code that runs, not an installed one."""
    start = Path(job_start.__file__).read_bytes()
    job_package({"start.py": start}).write(tmp_path / "a.zip")
    folder = tmp_path / "unpacked"
    zipfile.ZipFile(tmp_path / "a.zip").extractall(folder)
    cli = folder / "pipelines" / "cli" / "doctor.py"
    cli.write_text(cli.read_text().replace("Is everything there that a run needs?", "It is the package that runs."))
    done = subprocess.run(
        [sys.executable, "start.py", "doctor", "--help"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "It is the package that runs." in done.stdout


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (HERE | {"python": "3.7"}, "the submitter's is 3.7: use one, or give --python PATH"),
        (HERE | {"ray": "2.9.3"}, "the submitter's has 2.9.3: install the same on both"),
    ],
)
def test_other_versions_are_refused_in_words(tmp_path: Path, wanted: dict[str, str], words: str) -> None:
    (tmp_path / "start.py").write_bytes(Path(job_start.__file__).read_bytes())
    (tmp_path / VERSIONS).write_text(json.dumps(wanted))
    done = subprocess.run(
        [sys.executable, "start.py", "run", "recipe.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_the_packages_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_start, "NEEDED", ("ray", "no_such_package"))
    words = job_start.problem(HERE)
    assert words is not None
    assert "has no no_such_package: install bam's packages there" in words
    monkeypatch.setattr(job_start, "NEEDED", ("ray",))
    assert job_start.problem(HERE) is None
