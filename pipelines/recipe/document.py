"""From a YAML text to plain mappings, safely: nothing is executed, and nothing can grow.

YAML as people mean it (the core schema of YAML 1.2): `no` is text, `2e-3` a number, `1:30` text. Aliases and
merge keys work, up to `MAX_NODES` values when written out: a few lines cannot stand for millions of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from bam_core.errors import InvalidInput, Problem

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 50
_PLAIN_KEY = re.compile(r"[\w-]+")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to declare it


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,17})", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def join(path: str, key: object) -> str:
    """`a.b`; a key that would be misread in a dotted path is quoted."""
    text = key if isinstance(key, str) and _PLAIN_KEY.fullmatch(key) else repr(key)
    return f"{path}.{text}" if path else str(text)


def parse(text: str, where: str) -> tuple[Any, list[Problem]]:
    """The value of a YAML text, and the problems that do not stop reading (keys given twice).

    Raises InvalidInput for what cannot be read: no YAML, tags, too deep or too many values.
    """
    try:
        _refuse_deep_text(text, where)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        _refuse_too_much(node, where)
        tags, problems = list(_tag_problems(node, "")), list(_duplicates(node, ""))
        if tags:
            raise InvalidInput(where, tags)
        return loader.construct_document(node), problems
    except yaml.MarkedYAMLError as error:
        raise InvalidInput(where, [_marked(error)]) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(where, [Problem("", text[:40], f"must be YAML text: {reason}")]) from error


def _marked(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = (mark.get_snippet(indent=0) or "").splitlines() if mark else []
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    reason = " ".join(part for part in (error.context, error.problem) if part)
    return Problem(place, line[0].strip() if line else "", f"is not YAML: {reason}")


def _refuse_too_deep(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        words = f"is nested too deeply; a recipe has at most {MAX_DEPTH} levels"
        raise InvalidInput(where, [Problem("", "...", words)])


def _refuse_deep_text(text: str, where: str) -> None:
    """Before the recursive part of YAML: its events come one by one."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        _refuse_too_deep(depth, where)


def _refuse_too_much(root: yaml.Node, where: str) -> None:
    """Measure the document as if every alias were written out, without writing it out."""
    measured: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """(values, levels) below and with the node."""
        if id(node) in open_nodes:
            raise InvalidInput(where, [Problem("", "*", "contains itself through an alias")])
        if id(node) not in measured:
            open_nodes.add(id(node))
            inner = [measure(child) for child in _children(node)]
            open_nodes.discard(id(node))
            levels = 1 + max((levels for _, levels in inner), default=-1)
            measured[id(node)] = 1 + sum(values for values, _ in inner), levels
        return measured[id(node)]

    values, levels = measure(root)
    _refuse_too_deep(levels, where)
    if values > MAX_NODES:
        raise InvalidInput(where, [Problem("", "...", f"stands for more than {MAX_NODES} values; write them out")])


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _inner(node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node]]:
    """The values below a node, each with its key path."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield join(path, _key(key)), value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield join(path, str(index)), value


def _key(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "?"


def lines_of(text: str) -> dict[str, int]:
    """The line of every key and list item of a YAML text that `parse` reads, by its dotted path."""
    root = _Loader(text).get_single_node()
    return dict(_lines(root, "")) if root is not None else {}


def _lines(node: yaml.Node, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            yield join(path, _key(key)), key.start_mark.line + 1
    for here, value in _inner(node, path):
        if isinstance(node, yaml.SequenceNode):
            yield here, value.start_mark.line + 1
        yield from _lines(value, here)


def _tag_problems(node: yaml.Node, path: str) -> Iterator[Problem]:
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    for tagged in [node, *keys]:
        if tagged.tag not in _TAGS:
            yield Problem(path, tagged.tag, "tags are not allowed: a recipe is data", "write the value without it")
    for here, value in _inner(node, path):
        yield from _tag_problems(value, here)


def _duplicates(node: yaml.Node, path: str) -> Iterator[Problem]:
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            here, line = join(path, _key(key)), key.start_mark.line + 1
            if here in lines:
                twice = f"is given twice, in lines {lines[here]} and {line}"
                yield Problem(here, getattr(value, "value", ""), twice, "keep one")
            lines.setdefault(here, line)
    for here, value in _inner(node, path):
        yield from _duplicates(value, here)


def read_text(path: Path, where: str) -> str:
    """The text of a regular file. Raises InvalidInput for a folder, a device, binary or oversized content."""
    if path.is_dir():
        raise InvalidInput(where, [Problem("", str(path), "is a folder; a recipe is one YAML file")])
    if not path.is_file():
        raise InvalidInput(where, [Problem("", str(path), "is not a regular file")])
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(where, [Problem("", str(path), f"is larger than {MAX_BYTES} bytes; a recipe is short")])
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(where, [Problem("", str(path), f"is not UTF-8 text (byte {error.start})")]) from error
    except OSError as error:
        raise InvalidInput(where, [Problem("", str(path), f"cannot be read: {error.strerror}")]) from error


def apply_sets(document: dict[str, Any], sets: Sequence[str]) -> list[Problem]:
    """Write each `a.b=value` into the document; the value is read as YAML. Returns what could not be written.

    Whether the key exists is for the schema to say, as for a key of the file.
    """
    return [problem for item in sets for problem in _apply_set(document, item)]


def _apply_set(document: dict[str, Any], item: str) -> Iterator[Problem]:
    dotted, equals, text = item.partition("=")
    keys = dotted.split(".")
    if not equals or not all(key and key == key.strip() for key in keys):
        yield Problem("--set", item, "must read key.path=value", "for example --set phases.seed.lr=1e-3")
        return
    try:
        value, problems = parse(text, "--set")
    except InvalidInput as error:
        yield from (Problem(f"--set {dotted}", text, problem.expected, problem.remedy) for problem in error.problems)
        return
    yield from (problem.under(f"--set {dotted}") for problem in problems)
    target = document
    for depth, key in enumerate(keys[:-1]):
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            yield Problem(f"--set {dotted}", inner, f"{'.'.join(keys[: depth + 1])} is a value and has no keys")
            return
        target = inner
    target[keys[-1]] = value
