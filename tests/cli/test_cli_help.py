"""Help texts end with examples that can be typed, and the shell completes what is typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from pipelines.cli import app, completing, main
from pipelines.cli.commands import folded
from pipelines.cli.sections import SECTIONS
from pipelines.recipe import shipped_recipes
from tests.cli.conftest import Bam
from tests.cli.wrong_world import build


def tree(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from tree(inner, (*path, name))


@pytest.fixture
def commands(bam: Bam) -> dict[tuple[str, ...], click.Command]:
    """Words -> the command that they name; the program itself has none."""
    assert bam("--help").status == 0
    return dict(tree(app.bam))


def examples(help_text: str) -> list[str]:
    """The whole command lines at the end of a help text."""
    _, heading, end = help_text.rpartition("\nExamples:\n")
    assert heading
    return end.replace("\\\n", " ").strip().splitlines()


def words_of(example: str) -> list[str]:
    """The words of the command in it: neither what the shell does with its output, nor variables before it."""
    inside = re.search(r"\$\((.*)\)", example)
    words = shlex.split((inside[1] if inside else example).partition(" > ")[0])
    while "=" in words[0]:
        del words[0]
    assert words[0] == "bam"
    return words[1:]


def test_every_command_is_listed_once_with_its_whole_sentence(
    bam: Bam, commands: dict[tuple[str, ...], click.Command]
) -> None:
    names = [name for names in SECTIONS.values() for name in names]
    shown = {name: command for name, command in app.bam.commands.items() if not command.hidden}
    assert sorted(names) == sorted(shown)
    text = " ".join(bam("--help").out.partition("\nMake:")[2].split())
    assert "..." not in text
    for name, command in shown.items():
        sentence = command.get_short_help_str(limit=1000)
        assert f"{name} {sentence}".replace("- ", "-") in text.replace("- ", "-"), name


def test_every_help_text_ends_with_examples_that_can_be_typed(
    bam: Bam, commands: dict[tuple[str, ...], click.Command]
) -> None:
    wrong = []
    for path, command in commands.items():
        for example in examples(bam(*path, "--help").out):
            words = words_of(example)
            named = next(way for way in sorted(commands, key=len, reverse=True) if tuple(words[: len(way)]) == way)
            if named[: len(path)] != path or isinstance(commands[named], click.Group):
                wrong.append((path, example))
                continue
            context = commands[named].make_context(named[-1], words[len(named) :])
            asked = context.params.get("recipe") or context.params.get("recipes") or ()
            recipes = (asked,) if isinstance(asked, str) else asked
            if named != ("runs",):
                wrong += [(path, name) for name in recipes if name not in shipped_recipes() and name != "mine.yaml"]
        assert command.get_short_help_str()
    assert wrong == []


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_help_text_fits_its_terminal(
    bam: Bam, commands: dict[tuple[str, ...], click.Command], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for path in commands:
        shown = bam(*path, "--help").out
        assert max(map(len, shown.splitlines())) <= width
        assert examples(shown)


def test_a_folded_example_is_the_same_command() -> None:
    line = "bam run mine.yaml --set name='a name' --only 'expert.*' --until train.bam"
    lines = list(folded(line, 40))
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == shlex.split(line)
    assert list(folded(line, 100)) == [line]


@pytest.mark.parametrize("shell", completing.SHELLS)
def test_the_script_of_a_shell(bam: Bam, shell: str) -> None:
    done = bam("completion", shell)
    assert (done.status, done.err) == (0, "")
    assert f"_BAM_COMPLETE={shell}_complete" in done.out


def completed(*words: str) -> list[tuple[str, str]]:
    *args, incomplete = words
    found = ShellComplete(app.bam, {}, "bam", completing.VARIABLE).get_completions(args, incomplete)
    return [(item.type, item.value) for item in found]


def plain(*words: str) -> list[str]:
    return [value for kind, value in completed(*words) if kind == "plain"]


def test_the_shell_is_answered(
    bam: Bam, commands: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_BAM_COMPLETE": "bash_complete", "COMP_WORDS": "bam pla", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert (ended.value.code, capsys.readouterr().out) == (0, "plain,plan\n")


def test_recipes_are_completed(commands: object) -> None:
    assert completing.shipped() == sorted(shipped_recipes())
    for words in (["run"], ["plan"], ["submit"], ["stage", "seed"], ["pace"], ["results"]):
        assert "quickstart" in plain(*words, "quick")
    assert plain("run", "paper/") == ["paper/paper_large", "paper/paper_small"]
    assert completed("run", "./mine") == [("file", "./mine")]
    assert completed("run", "quick")[0] == ("file", "quick"), "bash forgets the names that stand before it"


def test_artifacts_are_completed_from_the_store_that_is_meant(
    commands: object, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed("show", "") == []
    build(here)
    assert plain("show", "ex") == ["expert.law"]
    keys = [folder.name for folder in (here / "bam_store" / "artifacts" / "seed").iterdir()]
    assert plain("get", "seed@") == ["seed@latest", *(f"seed@{key}" for key in keys)]
    assert plain("expert", "remove", "mix") == ["mix.bam"]
    assert completed("check", "se") == [("dir", "se"), ("plain", "seed")]
    for before in (["--store", "nowhere", "show"], ["show", "--store", "nowhere"], ["show", "--store", "s3://b/x"]):
        assert completed(*before, "") == []
    monkeypatch.setenv("BAM_STORE", "nowhere")
    assert completed("show", "") == []
