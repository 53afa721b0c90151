"""What CI and the nightly commands are made of: no test is left out of the layers, no bound or answer is stale."""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import coverage_by_layer, nightly, run
from tests.mutation import __main__ as mutation
from tests.mutation.areas import AREAS

ROOT = Path(__file__).parents[2]
WITH_TESTS = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
MARKED = re.compile(r"mark\.ray\b|\bray_cluster: None\b")


def test_every_test_is_in_one_layer() -> None:
    """`cluster` has tests with Ray and no others."""
    alone = Counter(folder for layer in run.LAYERS if not layer.with_ray for folder in layer.folders)
    assert alone == Counter(WITH_TESTS - {"cluster"})
    for path in (ROOT / "tests" / "cluster").glob("test_*.py"):
        assert re.search(r"^pytestmark = .*mark\.ray\b", path.read_text(), re.MULTILINE), path
    [ray] = [layer for layer in run.LAYERS if layer.with_ray]
    assert set(ray.folders) == {folder for folder in WITH_TESTS - {"arch"} if any(map(_asks, _tests(folder)))}


def _tests(folder: str) -> list[str]:
    return [path.read_text() for path in (ROOT / "tests" / folder).glob("test_*.py")]


def _asks(text: str) -> bool:
    return MARKED.search(text) is not None


def test_layers_with_ray_run_one_test_at_a_time() -> None:
    options = run.read(["--seed", "7"])
    for layer in run.LAYERS:
        _, *words = run.command(layer, options)
        assert words[:4] == ["-m", "pytest", "-m", "ray and not long" if layer.with_ray else "not ray and not long"]
        assert "--randomly-seed=7" in words
        assert ("-n" in words) == (not layer.with_ray and run.n_processes() > 1)


def test_a_layer_that_fails_is_the_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def fails_at_adapters(words: list[str]) -> int:
        asked.append(words[-1])
        return 1 if "tests/infra" in words else 0

    monkeypatch.setattr(run, "run", fails_at_adapters)
    assert run.main(["--seed", "7", "--lint"]) == 1
    said = capsys.readouterr().out.split("\n")
    assert asked == ["lint", "tests/results", "tests/security"]
    assert [line.split()[0] for line in said if line.strip()] == ["lint", *run.NAMES, "same"]
    assert [line.split()[-2:] for line in said if "not run" in line] == [["not", "run"]] * 2


def test_a_command_that_was_killed_has_failed() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert run.run([sys.executable, "-c", code]) == 128 + 15
    assert run.run([sys.executable, "-c", "raise SystemExit(5)"]) == 5


def test_coverage_is_summed_by_folder() -> None:
    rows = [("bam_core/nn", 10, 1), ("bam_core/nn", 30, 3), ("infra", 10, 8), ("empty", 0, 0)]
    assert [line.split() for line in coverage_by_layer.table(iter(rows))][1:] == [
        ["bam_core/nn", "40", "4", "90.0%"],
        ["infra", "10", "8", "20.0%"],
        ["all", "50", "12", "76.0%"],
    ]
    assert coverage_by_layer.layer_of(ROOT / "bam_core" / "nn" / "moe.py") == "bam_core/nn"
    assert coverage_by_layer.layer_of(ROOT / "infra" / "deploy" / "kube" / "x.py") == "infra/deploy"
    assert coverage_by_layer.layer_of(ROOT / "bam" / "words.py") == "bam"


def test_every_dependency_is_pinned_or_has_an_oldest_version() -> None:
    ranges = {line.partition("==")[0] for line in nightly.oldest()}
    for line in nightly.project()["dependencies"]:
        name = re.split(r"[\[<>=]", line)[0]
        assert "==" in line or name in ranges, f"{name}: say from which version on"


def test_the_nightly_table_names_the_step_that_failed(tmp_path: Path) -> None:
    steps: list[Sequence[str | Path]] = []

    def cannot_install(words: Sequence[str | Path], folder: Path) -> int:
        steps.append(words)
        return int("install" in words)

    outcome = nightly.try_out("oldest", tmp_path, cannot_install)
    assert (outcome.environment, outcome.step, outcome.is_good) == ("oldest", "cannot be installed", False)
    assert [words[2] for words in steps] == ["venv", "pip", "pip"]
    pins = (tmp_path / "constraints.txt").read_text().splitlines()
    assert set(pins) == {*nightly.oldest(), *nightly.tools()}
    assert (tmp_path / "source" / "bam_core" / "nn" / "moe.py").is_file()
    assert not (tmp_path / "tests" / "bam_core").exists(), "the tests would not be of the wheel"
    assert nightly.try_out("newest", tmp_path / "b", lambda words, folder: 0).is_good


def test_areas_of_mutation_name_what_is_there() -> None:
    for area in AREAS:
        assert [file for file in area.files if not (ROOT / file).is_file()] == []
        assert [pattern for pattern in area.tests if not list(ROOT.glob(pattern))] == []


def test_every_answer_is_to_a_line_that_is_there() -> None:
    rows = tomllib.loads(mutation.ANSWERS.read_text())["equivalent"]
    files = {file for area in AREAS for file in area.files}
    for row in rows:
        file, _, function = row["function"].partition(": ")
        assert file in files
        text = (ROOT / file).read_text()
        assert f"def {function.rpartition('.')[2]}(" in text, row
        there = {" ".join(line.split()) for line in text.splitlines()}
        gone = [line for line in row["change"] if line[0] == "-" and " ".join(line[1:].split()) not in there]
        assert gone == [], f"no longer in {row['function']}"
        assert row["because"]
    places = Counter(mutation.Survivor(row["function"], tuple(row["change"])).place for row in rows)
    assert max(places.values()) == 1


def test_a_score_is_of_what_could_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = mutation.Survivor("f.py: f", ("-  a", "+  b"))
    found = mutation.Score("routing", 11, (one,), (one,))
    assert found.percent == 90
    shown = mutation.show([found]).splitlines()
    assert shown[:3] == ["f.py: f", "  -  a", "  +  b"]
    assert shown[-1].split() == ["routing", "11", "9", "1", "1", "90.0%"]
    assert mutation.changed("--- f\n+++ f\n@@ -1 +1 @@\n x\n-  a\n+  b\n") == one.change
    assert [area.files for area in mutation.asked(["bam_core/nn/routing.py"])] == [("bam_core/nn/routing.py",)]


def test_an_answer_is_for_a_change_or_for_whatever_a_line_becomes() -> None:
    one = mutation.Survivor("f.py: f", ("-  a", "+  b"))
    assert one.is_answered({one.place})
    assert one.is_answered({("f.py: f", ("- a",))})
    assert not one.is_answered({("f.py: f", ("- b",)), ("f.py: g", ("- a",)), ("f.py: f", ("- a", "+ c"))})


def test_the_mutants_of_a_function_have_its_name() -> None:
    assert mutation.mutants_of("a/b.py: f") == "a.b.x_f__mutmut_*"
    assert mutation.mutants_of("a/b.py: C._f") == "a.b.xǁCǁ_f__mutmut_*"
