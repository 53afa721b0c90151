"""Every `bam` command of the documents is one that the command line reads; the README's name what is there."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest

from pipelines.bam import build
from pipelines.cli import app
from pipelines.recipe import load_recipe

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
BLOCK = re.compile(r"^ *```(.*?)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SHELL = {"", "sh", "bash", "console"}
COMMAND = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?bam (?=[a-z])(.*)$", re.MULTILINE)
USAGE = re.compile(r"\[OPTIONS\]|\[\w+\.\.\.\]")
"""How help texts write what may follow; no command as it is typed has that."""
OWN_FILES = ("mine.yaml",)
"""Recipes that a reader writes."""
PATTERNS = ("only", "from_", "until", "force")
"""Parameters that name stages of a recipe."""
REFS = {
    **dict.fromkeys(("show", "tree", "get", "card", "verify", "lineage", "blame", "promote", "export"), ("ref",)),
    **dict.fromkeys(("generate", "chat", "serve", "tasks"), ("ref",)),
    **dict.fromkeys(("expert add", "expert remove", "expert extract"), ("ref",)),
    "diff": ("left", "right"),
    "pareto": ("names",),
}
"""Command -> its parameters that name an artifact."""


def commands(document: Path) -> list[str]:
    """Those in code blocks, their lines joined; comments, and what a shell does with the output, are cut off."""
    found = BLOCK.findall(document.read_text().replace("\\\n", " "))
    blocks = "\n".join(block for language, block in found if language in SHELL)
    lines = [line for line in COMMAND.findall(blocks) if not USAGE.search(line)]
    return [shlex.join(takewhile(lambda word: not word.startswith(tuple("<>|&;")), _words(line))) for line in lines]


def _words(line: str) -> shlex.shlex:
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return words


@functools.cache
def tree() -> click.Group:
    app.main(["--version"])  # which is when the commands are gathered
    return app.bam


def read(line: str) -> tuple[str, dict[str, Any]]:
    """A command's name and its parameters as it reads them. Raises click's error for what it does not know."""
    command: click.Command = tree()
    words, names = shlex.split(line), list[str]()
    while isinstance(command, click.Group):
        names.append(words.pop(0))
        assert names[-1] in command.commands, f"no command {names[-1]!r}"
        command = command.commands[names[-1]]
    return " ".join(names), command.make_context(names[-1], words).params


WITH_COMMANDS = [path for path in DOCUMENTS if commands(path)]
README = commands(ROOT / "README.md")


@pytest.fixture(autouse=True)
def _files_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option may want a file that is there."""
    monkeypatch.chdir(tmp_path)
    lines = " ".join(line for document in WITH_COMMANDS for line in commands(document))
    for name in re.findall(r"(?<![\w/.-])[\w.-]+\.(?:yaml|jsonl?|md|txt)\b", lines):
        (tmp_path / name).touch()


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_can_be_read(document: Path) -> None:
    wrong = {}
    for line in commands(document):
        try:
            read(line)
        except (click.ClickException, AssertionError) as error:
            wrong[line] = str(getattr(error, "message", error))
    assert wrong == {}


def test_a_command_that_is_none_would_be_seen() -> None:
    assert len(README) > 30
    for line in ("rnu quickstart", "run quickstart --olny seed", "show", "show seed train.bam", "expert ad mix.bam"):
        with pytest.raises((click.ClickException, AssertionError)):
            read(line)


def asked() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(command line, recipe, parameters) of those commands of the README that name a recipe that comes with bam."""
    for line in README:
        _, given = read(line)
        for recipe in [*_list(given.get("recipe")), *_list(given.get("recipes"))]:
            if recipe not in OWN_FILES:
                yield line, recipe, given


def test_recipes_of_the_readme_are_there() -> None:
    found = list(asked())
    assert len(found) > 10
    for _, recipe, given in found:
        load_recipe(recipe, given.get("sets") or (), unmeasured=True)


def test_stages_of_the_readme_are_there() -> None:
    for line, recipe, given in asked():
        stages = stages_of(recipe)
        for pattern in [pattern for option in PATTERNS for pattern in _list(given.get(option))]:
            assert any(fnmatch(stage, pattern) for stage in stages), line
        if line.startswith("stage "):
            assert {word.partition("=")[0] for word in given["inputs"]} <= set(stages[given["name"]]), line


def test_artifacts_of_the_readme_are_of_its_recipes() -> None:
    made = {*stages_of("quickstart"), *stages_of("quickstart_sparse")}
    for line in README:
        name, given = read(line)
        refs = [ref for option in REFS[name] for ref in _list(given[option])] if name in REFS else []
        for ref in refs:
            assert re.split("[@:]", ref)[0] in made or line == "lineage sync", line


@functools.cache
def stages_of(recipe: str) -> dict[str, list[str]]:
    """Stage -> roles of its inputs."""
    read_recipe = load_recipe(recipe, unmeasured=True)
    digests = {text: text * 8 for text in (*read_recipe.texts, *read_recipe.domains, "tokenizer")}
    return {stage.name: list(stage.inputs) for stage in build(read_recipe, digests)}


def _list(value: Any) -> list[str]:
    return [] if value is None or isinstance(value, bool) else [value] if isinstance(value, str) else list(value)
