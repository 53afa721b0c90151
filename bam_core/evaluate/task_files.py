"""Task files: JSON lines with one item each, judged whole before anything is scored.

    {"id", "task", "domain", "kind", "prompt", "answer", ...}     a file is one task, of one domain and kind

    mc     choices: texts that follow the prompt; answer: the index of the right one
    gen    answer: a text or a number as text; solution (optional): the worked text
    code   answer: a reference that continues the prompt; test: Python that runs after prompt and answer

Other columns are left alone. Every fault is named with file and line, all of a file at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bam_core.errors import InvalidInput, Problem, nearest

KINDS = ("mc", "gen", "code")
COLUMNS = {"mc": ("choices",), "gen": (), "code": ("test",)}
"""Kind -> the columns that it needs beside those that all have."""
SHARED = ("id", "task", "domain", "kind", "prompt", "answer")
SAME = ("task", "domain", "kind")
MAX_PROBLEMS = 20
MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class Item:
    """One question. answer: the reference text; of `mc`, the right choice, which is `choices[right]`."""

    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    right: int = -1
    solution: str = ""
    test: str = ""


@dataclass(frozen=True)
class Task:
    name: str
    domain: str
    kind: str
    items: tuple[Item, ...]

    def first(self, limit: int | None) -> Task:
        """Its first `limit` items, or all."""
        return replace(self, items=self.items[:limit])


def read_task(data: bytes, where: str) -> Task:
    """The task of a file's bytes. where: the file's name, for errors.

    Raises InvalidInput with up to MAX_PROBLEMS of the file's faults, each with its line, and how many more there are.
    """
    rows, problems = [], list[Problem]()
    for number, line in enumerate(data.split(b"\n"), start=1):
        here = f"{where}:{number}"
        row = _parsed(line, here, problems)
        if row is None:
            continue
        found = list(_faults(row, here))
        problems += found
        if not found:
            rows.append((here, row))
    problems += _between(rows)
    if not rows and not problems:
        problems.append(Problem(where, "", "has no items", "one JSON object per line"))
    if problems:
        raise InvalidInput(f"task file {where}", _at_most(sorted(problems, key=_line_of), where))
    first = rows[0][1]
    return Task(first["task"], first["domain"], first["kind"], tuple(_item(row) for _, row in rows))


def _parsed(line: bytes, here: str, problems: list[Problem]) -> dict[str, Any] | None:
    """The object on a line; None for an empty line, or one whose fault was added to `problems`."""
    try:
        text = line.decode("utf-8-sig").strip()
        row = json.loads(text) if text else None
    except UnicodeDecodeError as error:
        problems.append(Problem(here, line[:60], f"must be UTF-8: {error.reason} at byte {error.start} of the line"))
        return None
    except (ValueError, RecursionError) as error:
        problems.append(Problem(here, line.decode(errors="replace")[:60], f"must be one JSON object: {error}"))
        return None
    if row is not None and not isinstance(row, dict):
        problems.append(Problem(here, row, f"must be a JSON object, not {type(row).__name__}"))
        return None
    return row


def _faults(row: Mapping[str, Any], here: str) -> Iterator[Problem]:
    """What is wrong with one item by itself."""
    kind = str(row.get("kind"))
    known = kind in KINDS
    for column in (*SHARED, *COLUMNS.get(kind, ())):
        if column not in row:
            yield Problem(here, sorted(row), f"has no {column!r}", f"an item of kind {kind} needs it" if known else "")
    if "kind" in row and not known:
        yield Problem(here, row["kind"], f"'kind' must be one of {', '.join(KINDS)}", nearest(kind, KINDS))
    for column, judge in {**_JUDGES, **_OF_KIND.get(kind, {})}.items():
        if column in row and (expected := judge(row[column])):
            yield Problem(here, row[column], f"{column!r} {expected}")
    if kind == "mc" and "answer" in row and not (expected := _choices(row.get("choices"))):
        last, answer = len(row["choices"]) - 1, row["answer"]
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer <= last:
            expected = f"'answer' must be the index of the right one of {last + 1} choices, 0 to {last}"
            yield Problem(here, answer, expected, "counted from 0" if answer == last + 1 else "")


def _between(rows: list[tuple[str, dict[str, Any]]]) -> Iterator[Problem]:
    """What is wrong between items: ids given twice, items of another task."""
    seen: dict[str, str] = {}
    for here, row in rows:
        if row["id"] in seen:
            yield Problem(here, row["id"], f"'id' is that of line {seen[row['id']].rpartition(':')[2]} already")
        seen.setdefault(row["id"], here)
        for column in SAME:
            if row[column] != rows[0][1][column]:
                wanted = f"{rows[0][1][column]!r}, as in line {rows[0][0].rpartition(':')[2]}"
                yield Problem(here, row[column], f"{column!r} must be {wanted}: a file is one task")


def _text(value: Any) -> str:
    """What a text should be, or "" if it is one. JSON can spell half a surrogate pair, which is no Unicode."""
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"must be valid Unicode: {error.reason}"
    return ""


def _filled(value: Any) -> str:
    return _text(value) or ("" if value.strip() else "must not be empty")


def _name(value: Any) -> str:
    """Names become keys and headings."""
    plain = isinstance(value, str) and value.isprintable() and len(value) <= MAX_NAME_CHARS
    return _filled(value) or ("" if plain else f"must be one line of at most {MAX_NAME_CHARS} characters")


def _choices(value: Any) -> str:
    if not isinstance(value, list) or len(value) < 2:
        return "must be a list of at least two texts"
    found = next((expected for choice in value if (expected := _text(choice) or ("" if choice else "is empty"))), "")
    return f"must be a list of texts: one {found}" if found else ""


_JUDGES: dict[str, Callable[[Any], str]] = {"id": _name, "task": _name, "domain": _name, "prompt": _text}
_OF_KIND: dict[str, dict[str, Callable[[Any], str]]] = {
    "mc": {"choices": _choices},
    "gen": {"answer": _filled, "solution": _text},
    "code": {"answer": _filled, "test": _filled},
}


def _item(row: Mapping[str, Any]) -> Item:
    if row["kind"] == "mc":
        choices = tuple(row["choices"])
        return Item(row["id"], row["prompt"], choices[row["answer"]], choices, row["answer"])
    more = {"solution": row.get("solution", "")} if row["kind"] == "gen" else {"test": row["test"]}
    return Item(row["id"], row["prompt"], row["answer"], **more)


def _line_of(problem: Problem) -> int:
    number = problem.path.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def _at_most(problems: list[Problem], where: str) -> list[Problem]:
    left = len(problems) - MAX_PROBLEMS
    more = [Problem(where, left, "more problems are not shown")] if left > 0 else []
    return problems[:MAX_PROBLEMS] + more
