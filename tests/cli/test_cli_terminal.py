"""What a terminal gets that a pipe does not: colours, unless NO_COLOR is set, and lines that fit."""

from __future__ import annotations

import io
import re
from pathlib import Path

import click
import pytest

from pipelines.cli import main, text
from pipelines.cli.display import LiveTable, open_display
from tests.cli.test_cli_display import STATES
from tests.cli.wrong_world import build

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7]|4[0-8])(?:;\d+)*m")
LINES = (
    "ls",
    "gc",
    "plan good.yaml",
    "tree train.bam",
    "diff seed expert.law",
    "lineage train.bam",
    "verify train.bam --deep",
    "check seed expert.law",
    "show seed",
    "runs",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    build(folder)
    return folder


@pytest.fixture
def shown(here: Path, filled: Path, monkeypatch: pytest.MonkeyPatch):
    """`shown(line, width)`: what a terminal gets; without a width, what a pipe gets."""
    monkeypatch.chdir(filled)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(line: str, width: int | None = None) -> str:
        stream = io.StringIO() if width is None else Terminal()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            if width is not None:
                patch.setenv("COLUMNS", str(width))
            assert main(line.split()) in (0, 1)
        return stream.getvalue()

    return run


@pytest.mark.parametrize("line", LINES)
def test_a_pipe_gets_no_escape_codes_and_whole_lines(shown, line: str) -> None:
    assert "\x1b" not in shown(line)


def test_colours_are_for_terminals_and_no_color_takes_them_away(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COLOUR.search(shown("ls", 100))
    monkeypatch.setenv("NO_COLOR", "1")
    for line in LINES:
        assert "\x1b" not in shown(line, 100)
    monkeypatch.setenv("NO_COLOR", "")
    assert COLOUR.search(shown("ls", 100)), "an empty NO_COLOR says nothing"


def test_the_live_table_respects_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> str:
        stream = Terminal()
        display = open_display(stream)
        assert isinstance(display, LiveTable)
        display.update(STATES)
        display.close()
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert COLOUR.search(seen())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(seen())


@pytest.mark.parametrize("line", [line for line in LINES if line != "show seed"])  # it has JSON, which is not cut
def test_lines_fit_a_terminal_of_60_to_200_columns(shown, line: str) -> None:
    wide = click.unstyle(shown(line, 200))
    for width in (60, 80, 120, 200):
        narrow = click.unstyle(shown(line, width))
        assert max(map(len, narrow.splitlines())) <= width
        if line not in ("diff seed expert.law", "lineage train.bam"):  # they say what they leave out
            words = {word for word in wide.split() if len(word) <= text.FEWEST}
            assert words - set(narrow.split()) == set(), "no word is cut"


def test_words_go_on_below_and_numbers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["seed", "1.33M", "never made, and its input has changed since"], ["expert.law", "2M", "done"]]
    assert text.table(["stage", "size", "reason"], rows, right=(1,), width=44).splitlines() == [
        f"{click.style('stage', dim=True)}        {click.style('size', dim=True)}  {click.style('reason', dim=True)}",
        "seed        1.33M  never made, and its input",
        "                   has changed since",
        "expert.law     2M  done",
    ]


def test_a_cut_cell_keeps_its_style() -> None:
    cell = click.style("one two three four five six", fg="red")
    cut = text.table(["a", "b"], [["x", cell]], width=20).splitlines()[1:]
    assert [click.unstyle(line).strip() for line in cut] == ["x  one two three", "four five six"]
    assert all("\x1b[31m" in line and line.endswith("\x1b[0m") for line in cut)


def test_too_many_numbers_become_tables_below_each_other() -> None:
    headers = ["model", *(f"domain{n}" for n in range(9))]
    cut = text.table(headers, [["seed", *("123.45" for _ in range(9))]], right=range(1, 10), width=60)
    assert max(len(click.unstyle(line)) for line in cut.splitlines()) <= 60
    assert len(cut.split("\n\n")) == 2
    assert cut.count("seed") == 2
    assert cut.count("123.45") == 9


def test_a_long_value_goes_on_beside_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "columns", lambda: 30)
    found = text.pairs([("made", "a while ago, by somebody else"), ("by", "me")], indent=2)
    assert click.unstyle(found).splitlines() == ["  made  a while ago, by", "        somebody else", "  by    me"]
