"""`extends`: a recipe that starts from another one, read with all that it starts from.

extends: study/base                                   a shipped recipe's name, or a file beside this one
extends: {recipe: ../base.yaml, replace: [domains]}   its domains instead of the base's, not merged with them
extends: [study/table1, study/table5]                 both, the later one laid over the earlier
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput, Problem, UsageError, nearest
from pipelines.recipe.document import join, parse, read_text
from pipelines.recipe.layers import Layered

EXTENDS = "extends"
MAX_BASES = 8
"""In a row, and in one list."""
Find = Callable[[str], Path]
"""From a shipped recipe's name, or a path, to the file. Raises UsageError."""
_Link = tuple[Path, str]
"""A file that is being read, and what messages call it."""


@dataclass(frozen=True)
class _File:
    """A file's own document. whole: key paths that it replaces."""

    path: Path
    name: str
    document: dict[str, Any]
    whole: list[str]


def read_whole(path: Path, name: str, find: Find) -> tuple[Layered, list[Problem]]:
    """The file's document over that of what it extends, and the problems that did not stop reading.

    Each file is laid once, so that of two that extend the same one, the second does not undo what the first says.
    Raises InvalidInput, naming the file, for what cannot be read, a chain that does not end or is too long.
    """
    files: list[_File] = []
    problems = _collect(path, name, find, (), files)
    lowest, *others = files
    layered = Layered.of(lowest.document, lowest.name)
    for file in others:
        layered.lay(file.document, file.name, file.whole)
    return layered, problems


def _collect(path: Path, name: str, find: Find, chain: tuple[_Link, ...], files: list[_File]) -> list[Problem]:
    """Append the file after all that it extends, each of which is there once. Returns what did not stop reading."""
    where = f"recipe {name}"
    chain = (*chain, (path.resolve(), name))
    document, problems = parse(read_text(path, where), where)
    if len(chain) > 1:
        problems = [_told(problem, name) for problem in problems]
    if document is None:
        remedy = "start from a shipped recipe, such as quickstart"
        raise InvalidInput(where, [Problem("", str(path), "is empty", remedy)])
    if not isinstance(document, dict):
        raise InvalidInput(where, [Problem("", document, "must be a mapping of keys such as name, domains and model")])
    asked = document.pop(EXTENDS, None)
    wrong = [] if asked is None else list(_problems(asked, document))
    if wrong:
        raise InvalidInput(where, wrong)
    below, bases = [], [] if asked is None else _bases(asked)
    if len(bases) > MAX_BASES:
        raise InvalidInput(where, [Problem(EXTENDS, bases, f"names {len(bases)} recipes; at most {MAX_BASES}")])
    for base in bases:
        there = _base(base, path, find, where, chain)
        if there.resolve() not in (file.path for file in files):
            below += _collect(there, _shown(base, path), find, chain, files)
    whole = (asked.get("replace") or []) if isinstance(asked, Mapping) else []
    files.append(_File(path.resolve(), name, document, whole))
    return [*below, *problems]


def _bases(asked: Any) -> list[Any]:
    """What is extended, the lowest first."""
    named = asked.get("recipe") if isinstance(asked, Mapping) else asked
    return list(named) if isinstance(named, list) else [named]


def _base(base: str, path: Path, find: Find, where: str, chain: tuple[_Link, ...]) -> Path:
    """The file that is extended. A path is relative to the file that names it."""
    try:
        found = find(str(path.parent / base) if _is_relative(base) else base)
        resolved = found.resolve()
    except UsageError as error:
        raise InvalidInput(where, [Problem(EXTENDS, base, f"cannot be read: {error}")]) from error
    names = [*(name for _, name in chain), _shown(base, path)]
    if resolved in (file for file, _ in chain):
        expected = f"leads back to itself: {' -> '.join(names)}"
        raise InvalidInput(where, [Problem(EXTENDS, base, expected, "let one of them stand alone")])
    if len(chain) > MAX_BASES:
        expected = f"is one too many: at most {MAX_BASES} recipes may extend one another ({' -> '.join(names)})"
        raise InvalidInput(where, [Problem(EXTENDS, base, expected)])
    return found


def _is_relative(base: str) -> bool:
    is_path = Path(base).suffix in {".yaml", ".yml"} or base.startswith(".")
    return is_path and not base.startswith(("/", "~"))


def _shown(base: str, path: Path) -> str:
    """The base as messages name it: a shipped recipe's name, or the path from here."""
    return str(path.parent / base) if _is_relative(base) else base


def _problems(asked: Any, document: Mapping[str, Any]) -> Iterator[Problem]:
    example = "for example study/base, or {recipe: base.yaml, replace: [domains]}"
    if not isinstance(asked, str | list | Mapping):
        yield Problem(EXTENDS, asked, "must be a recipe's name, a path, a list of them, or a mapping", example)
        return
    here = f"{EXTENDS}.recipe" if isinstance(asked, Mapping) else EXTENDS
    for base in _bases(asked) or [[]]:
        if not isinstance(base, str) or not base.strip():
            yield Problem(here, base, "must be a recipe's name or a path", example)
    if not isinstance(asked, Mapping):
        return
    for key in asked.keys() - {"recipe", "replace"}:
        yield Problem(join(EXTENDS, key), asked[key], "is not a known key", nearest(str(key), ("recipe", "replace")))
    replaced = asked.get("replace")
    if replaced is not None and not isinstance(replaced, list):
        yield Problem(f"{EXTENDS}.replace", replaced, "must be a list of key paths", "such as [domains, variants]")
    for item in replaced if isinstance(replaced, list) else ():
        if not isinstance(item, str) or not _is_given(document, item):
            expected = "is not given in this file, so nothing would be in its place"
            yield Problem(f"{EXTENDS}.replace", item, expected, "key: null takes a key away")


def _is_given(document: Mapping[str, Any], dotted: str) -> bool:
    value: Any = document
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or value.get(key) is None:
            return False
        value = value[key]
    return True


def told(problem: Problem, layered: Layered, own: str) -> Problem:
    """The problem with the file that said the value, where that is not the recipe itself."""
    if problem.value is None:  # nothing was said
        return problem
    place = layered.said_in(problem.path)
    return problem if place in (None, own) else _told(problem, str(place))


def _told(problem: Problem, place: str) -> Problem:
    return Problem(problem.path, problem.value, f"{problem.expected} [said in {place}]", problem.remedy)
