"""Whether the tests would notice: `python -m tests.mutation [AREA or FILE ...]` changes the code a thousand times over.

mutmut makes the mutants (an operator swapped, a number moved, an argument left out) and runs, for each, the tests that
reach its function. Whatever survives is listed, until a test kills it or `answers.toml` says why none can. Errors that
are raised and what is asserted for the reader are left as they are. Works on a copy under `build/mutation`, on an
otherwise idle machine: a test that takes too long counts as noticed, since an endless loop is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence, Set
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

from tests.mutation.areas import AREAS, Area
from tests.run import ROOT, n_processes

ANSWERS = Path(__file__).with_name("answers.toml")
FOLDER = ROOT / "build" / "mutation"
SETTINGS = """
[tool.mutmut]
source_paths = ["bam_core"]
only_mutate = {files}
pytest_add_cli_args_test_selection = {tests}
do_not_mutate_patterns = ['^\\s*(raise|assert) ']
process_isolation = "forkserver"  # torch has threads, which no fork carries over
use_git_change_detection = false
timeout_constant = 60.0  # seconds: on a busy machine a slow test is no endless loop
"""
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}

Place = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Survivor:
    """change: the lines that differ, each with its `-` or `+`."""

    function: str
    change: tuple[str, ...]

    @property
    def place(self) -> Place:
        """What an answer is looked up by: a number would move with every edit of the function."""
        return self.function, tuple(" ".join(line.split()) for line in self.change)

    def is_answered(self, answers: Set[Place]) -> bool:
        """By an answer with this change, or with nothing but the lines that are gone, whatever takes their place."""
        function, change = self.place
        gone = tuple(line for line in change if line.startswith("-"))
        return not answers.isdisjoint({(function, change), (function, gone)})


@dataclass(frozen=True)
class Score:
    area: str
    n_mutants: int
    survivors: tuple[Survivor, ...]
    answered: tuple[Survivor, ...]

    @property
    def percent(self) -> float:
        """Killed, of those that could be."""
        n_possible = self.n_mutants - len(self.answered)
        return 100 * (n_possible - len(self.survivors)) / max(1, n_possible)


def prepare(area: Area) -> Path:
    """A folder with the area's settings, and links to what mutmut will copy."""
    folder = FOLDER / area.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tests = sorted(str(found.relative_to(ROOT)) for pattern in area.tests for found in ROOT.glob(pattern))
    settings = SETTINGS.format(files=list(area.files), tests=tests)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
    for name in ("bam_core", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(area: Area, functions: Sequence[str] = ()) -> Score:
    """functions: nothing but them, as the table names them; without any, all. Raises SystemExit if the tests fail as
    they are."""
    folder = prepare(area)
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(n_processes()), *map(mutants_of, functions)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (FOLDER / f"{area.name}.log").open("wb") as log:
        status = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=log).returncode
    if status:
        raise SystemExit(f"mutmut ended with status {status}: {log.name}")
    return score(area, folder)


def mutants_of(function: str) -> str:
    """The pattern of mutmut's names for the mutants of `FILE: FUNCTION` or `FILE: CLASS.FUNCTION`."""
    file, _, name = function.partition(": ")
    owner, _, own = name.rpartition(".")
    module = file.removesuffix(".py").replace("/", ".")
    return f"{module}.{f'xǁ{owner}ǁ' if owner else 'x_'}{own}__mutmut_*"


def score(area: Area, folder: Path) -> Score:
    """Of the mutants that were tried. Raises SystemExit if the area has not been run."""
    if not (folder / "mutants").exists():
        raise SystemExit(f"{area.name} has not been run here")
    from mutmut.configuration import reset_config
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key as names_of

    n_mutants, survivors = 0, []
    with chdir(folder):
        reset_config()
        for file in area.files:
            data = SourceFileMutationData(path=Path(file))
            data.load()
            tried = {key: code for key, code in data.exit_code_by_key.items() if code is not None}
            n_mutants += len(tried)
            for key, code in tried.items():
                if status_by_exit_code[code] not in NOTICED:
                    function, owner = names_of(key)
                    name = f"{file}: {f'{owner}.' if owner else ''}{function}"
                    survivors.append(Survivor(name, changed(get_diff_for_mutant(key, path=Path(file)))))
    answers = known()
    answered = tuple(one for one in survivors if one.is_answered(answers))
    return Score(area.name, n_mutants, tuple(one for one in survivors if not one.is_answered(answers)), answered)


def changed(diff: str) -> tuple[str, ...]:
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return tuple(line for line in lines if line[:1] in ("-", "+"))


def known() -> set[Place]:
    """Survivors that have an answer."""
    rows = tomllib.loads(ANSWERS.read_text()).get("equivalent", [])
    return {Survivor(row["function"], tuple(row["change"])).place for row in rows}


def asked(words: Sequence[str]) -> list[Area]:
    """The areas of these names, and of these files with nothing but them."""
    found = []
    for area in AREAS:
        files = tuple(file for file in area.files if file in words)
        if not words or area.name in words:
            found.append(area)
        elif files:
            found.append(replace(area, files=files))
    names = {name for area in AREAS for name in (area.name, *area.files)}
    if unknown := [word for word in words if word not in names]:
        raise SystemExit(f"no area and no file of one: {unknown[0]}; there are {', '.join(sorted(names))}")
    return found


def show(scores: Sequence[Score]) -> str:
    lines = []
    for score in scores:
        for one in score.survivors:
            lines += [f"{one.function}", *(f"  {line}" for line in one.change), ""]
    lines.append(f"{'area':<12}{'mutants':>9}{'killed':>8}{'answered':>10}{'survived':>10}{'score':>8}")
    for score in scores:
        n_killed = score.n_mutants - len(score.answered) - len(score.survivors)
        counts = f"{score.n_mutants:>9}{n_killed:>8}{len(score.answered):>10}{len(score.survivors):>10}"
        lines.append(f"{score.area:<12}{counts}{score.percent:>7.1f}%")
    return "\n".join(lines)


def scored(area: Area, *, again: bool, survived: bool) -> Score:
    """again: of the last run. survived: of a new one, of the functions that had survivors, if any had."""
    if not (again or survived):
        return run(area)
    last = score(area, FOLDER / area.name)
    functions = sorted({one.function for one in last.survivors})
    return run(area, functions) if functions and not again else last


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every survivor has an answer, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Would the tests notice?")
    parser.add_argument("words", nargs="*", metavar="AREA or FILE", help="without any, every area")
    parser.add_argument("--again", action="store_true", help="the table of the last run, with today's answers")
    parser.add_argument("--survived", action="store_true", help="only the functions that had survivors in the last run")
    options = parser.parse_args(argv)
    areas = asked(options.words)
    scores = [scored(area, again=options.again, survived=options.survived) for area in areas]
    print(show(scores))
    return int(any(one.survivors for one in scores))


if __name__ == "__main__":
    sys.exit(main())
