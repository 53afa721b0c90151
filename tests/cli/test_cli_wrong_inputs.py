"""Hundreds of wrong inputs over all commands: the right exit status, words that help, no traceback, nothing lost."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from infra import openai_server
from pipelines.cli import app, main
from pipelines.wiring import scoring
from tests.cli import wrong_lines, wrong_models
from tests.cli.conftest import VARIABLES
from tests.cli.wrong_world import build, snapshot

ROWS = (*wrong_lines.ROWS, *wrong_models.ROWS)
SECRET = ("BAM_SIGNING_KEY", "BAM_TRUSTED_KEYS", "BAM_SERVE_TOKEN")
PASSWORD = "hunter2"
VARIABLE = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    build(folder)
    return folder


@pytest.fixture
def world(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; none of the environment's settings, and extras as if they were installed."""
    monkeypatch.chdir(filled)
    for name in (*VARIABLES, *SECRET):
        monkeypatch.delenv(name, raising=False)
    for module in (openai_server, scoring):
        monkeypatch.setattr(module, "find_spec", lambda name: name)
    return filled


def split(line: str) -> tuple[dict[str, str], list[str]]:
    """The variables that stand before a command, and its words."""
    words, variables = shlex.split(line), {}
    while words and (found := VARIABLE.fullmatch(words[0])):
        variables[found[1]] = found[2]
        del words[0]
    return variables, words


@pytest.mark.parametrize(("line", "status", "words"), ROWS, ids=[line or "nothing" for line, _, _ in ROWS])
def test_a_wrong_input(
    line: str,
    status: int,
    words: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variables, argv = split(line)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = snapshot(world)
    ended = main(argv)
    out, err = capsys.readouterr()
    assert (ended, out) == (status, ""), err
    assert words in err
    assert "Traceback" not in err
    assert "bam: unexpected" not in err
    assert PASSWORD not in err
    after = snapshot(world)
    assert {name for name in before | after if before.get(name, ...) != after.get(name, ...)} == set()


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


def test_there_are_rows_for_every_command_and_each_row_once(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    typed = [tuple(split(line)[1]) for line, _, _ in ROWS]
    without = [path for path in leaves(app.bam) if not any(words[: len(path)] == path for words in typed)]
    assert without == []
    assert len({line for line, _, _ in ROWS}) == len(ROWS) > 150


def test_what_is_right_is_taken(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or the rows would prove nothing: the recipe plans, the store is whole, the model speaks."""
    before = snapshot(world)
    for line in (
        "plan good.yaml",
        "verify dense",
        "generate dense hello --max-new-tokens 1",
        "tasks dense items.jsonl",
    ):
        ended = main(line.split())
        assert (ended, capsys.readouterr().err) == (0, "")
    assert snapshot(world) == before
