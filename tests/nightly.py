"""The oldest and the newest dependencies that `pyproject.toml` allows: `python -m tests.nightly [oldest] [newest]`.

Each gets a fresh environment in a temporary folder, with the wheel of this working tree and its extras; there the tests
of the core and of recipes run, beside no source but their own. What `pyproject.toml` pins is the same in both.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.run import ROOT

EXTRAS = ("s3", "hf", "sentencepiece")
"""Those that the tests below make use of."""
TOOLS = ("pytest", "pytest-timeout", "pytest-randomly", "hypothesis", "jsonschema")
"""As in constraints.txt: it is not they that are tried."""
TESTS = ("tests/core", "tests/recipe")
READ_BY_TESTS = ("tests", "docs", "examples", "pyproject.toml")
SOURCES = ("bam", "bam_core", "infra", "pipelines", "pyproject.toml", "README.md", "LICENSE")
COLUMNS = "{:<8} {:<24} {:>8}  {}"

Run = Callable[[Sequence[str | Path], Path], int]


@dataclass(frozen=True)
class Outcome:
    environment: str
    step: str
    seconds: float
    versions: str

    @property
    def is_good(self) -> bool:
        return self.step == "passed"


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def oldest() -> list[str]:
    """Each dependency that has a range, at its lower end."""
    bounds = (re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", line) for line in project()["dependencies"])
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


def tools() -> list[str]:
    pins = dict(line.split("==") for line in lines_of("constraints.txt") if "==" in line and not line.startswith("#"))
    return [f"{name}=={pins[name]}" for name in TOOLS]


def lines_of(file: str) -> list[str]:
    return (ROOT / file).read_text().splitlines()


CONSTRAINTS: dict[str, Callable[[], list[str]]] = {"oldest": oldest, "newest": list}


def call(words: Sequence[str | Path], folder: Path) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(words, cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"}).returncode


def try_out(name: str, folder: Path, run: Run = call) -> Outcome:
    """Make the environment and run the tests in it; stop at the first step that fails."""
    start = time.monotonic()
    python = folder / "venv" / "bin" / "python"
    constraints = folder / "constraints.txt"
    copy(SOURCES, folder / "source")
    copy(READ_BY_TESTS, folder / "tests")
    constraints.write_text("\n".join([*CONSTRAINTS[name](), *tools()]) + "\n")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    steps: dict[str, list[str | Path]] = {
        "no environment": [sys.executable, "-m", "venv", folder / "venv"],
        "no wheel": [*pip, "wheel", "--no-deps", "-w", folder, folder / "source"],
        "cannot be installed": [*pip, "install", "-c", constraints, wanted(folder), *TOOLS],
        "tests fail": [python, "-m", "pytest", "-q", "-m", "not long and not ray", *TESTS],
    }
    step = next((step for step, words in steps.items() if run(words, folder / "tests")), "passed")
    return Outcome(name, step, time.monotonic() - start, versions(python))


def wanted(folder: Path) -> str:
    """The wheel by its path: an index may have another package of this name."""
    wheel = folder / f"bam-{project()['version']}-py3-none-any.whl"
    return f"bam[{','.join(EXTRAS)}] @ {wheel.as_uri()}"


def copy(names: Sequence[str], folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    folder.mkdir(parents=True)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)


def versions(python: Path) -> str:
    """Of the dependencies that have a range."""
    if not python.exists():
        return ""
    names = [constraint.partition("==")[0] for constraint in oldest()]
    code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    return subprocess.run([python, "-c", code, *names], capture_output=True, text=True).stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly", description="Test a matrix of dependencies.")
    parser.add_argument("names", nargs="*", metavar="oldest or newest", help="without any, both")
    parser.add_argument("--show", action="store_true", help="what would be installed, and nothing else")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in CONSTRAINTS]:
        parser.error(f"no environment {unknown[0]!r}: one of {', '.join(CONSTRAINTS)}")
    names = options.names or list(CONSTRAINTS)
    if options.show:
        for name in names:
            print(f"{name}: {' '.join([*CONSTRAINTS[name](), *tools()])}")
        return 0
    outcomes = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bam-nightly-") as folder:
            outcomes.append(try_out(name, Path(folder)))
    print("\n" + COLUMNS.format("", "", "seconds", "versions"))
    for one in outcomes:
        print(COLUMNS.format(one.environment, one.step, f"{one.seconds:.0f}", one.versions))
    return int(not all(one.is_good for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
