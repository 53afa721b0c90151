"""Documentation and code from the standard library: docstrings are in the one and cut out of the other.

Both are read with `ast`; no module is imported. Left out are tests, tables of character codes, and whatever
is written when an interpreter is built or configured, since it differs between machines with the same Python.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from bam_core.protocols import Document

VERSION = 1
"""Raised when the same files would give other text."""

LEFT_OUT = {
    *("test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data", "ensurepip"),
    *("__pycache__", "site-packages", "dist-packages"),
}
CONFIGURED = ("_sysconfigdata", "sitecustomize", "usercustomize")
CONFIGURED_FOLDERS = ("config-",)
TOPICS = Path("pydoc_data", "topics.py")
SHORTEST_MODULE = 200
"""Characters of documentation below which a module has nothing to say."""

Named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Documented = (ast.Module, *Named)
Statement = (ast.stmt, ast.ExceptHandler, ast.match_case)


def library_files(library: Path | None = None) -> list[Path]:
    """The standard library's sources that have text for us, sorted by name."""
    library = library or standard_library()
    found: list[Path] = []
    for folder, below, names in os.walk(library):
        below[:] = set(below) - LEFT_OUT  # site-packages alone may hold ten times the rest
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return [path for path in sorted(found) if _is_wanted(path.relative_to(library))]


def documentation_files(library: Path | None = None) -> list[Path]:
    """The same, and the language reference behind `help()` where it is installed."""
    library = library or standard_library()
    topics = library / TOPICS
    return library_files(library) + ([topics] if topics.is_file() else [])


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _is_wanted(path: Path) -> bool:
    return not (
        LEFT_OUT.intersection(path.parts)
        or path.name.startswith(CONFIGURED)
        or path.parts[0].startswith(CONFIGURED_FOLDERS)
    )


def read_documentation(library: Path | None = None) -> Iterator[Document]:
    """One document per module, its docstrings under their names; one per topic of the language reference."""
    library = library or standard_library()
    for path in documentation_files(library):
        name = path.relative_to(library)
        tree = ast.parse(path.read_bytes())
        if name == TOPICS:
            yield from _topics(tree)
            continue
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        text = "\n\n".join(_documentation(tree, module))
        if len(text) >= SHORTEST_MODULE:
            yield Document(text, f"documentation of {module}")


def _documentation(node: ast.AST, name: str, prefix: str = "") -> Iterator[str]:
    """Docstring of this node under its name and, in their order, those of classes and functions inside."""
    if isinstance(node, Documented) and (documentation := ast.get_docstring(node)):
        yield f"{name}\n{documentation}"
    for child in _statements(node):
        if isinstance(child, Named):
            yield from _documentation(child, prefix + child.name, f"{prefix}{child.name}.")
        else:
            yield from _documentation(child, name, prefix)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """What stands directly inside a node and may itself hold classes and functions."""
    return (child for child in ast.iter_child_nodes(node) if isinstance(child, Statement))


def _topics(tree: ast.Module) -> Iterator[Document]:
    """The values of the one dictionary that `pydoc_data/topics.py` assigns."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            for topic, text in sorted(ast.literal_eval(statement.value).items()):
                yield Document(inspect.cleandoc(text), f"topic {topic}")


def read_code(library: Path | None = None) -> Iterator[Document]:
    """One document per module of the standard library: its source without documentation strings."""
    library = library or standard_library()
    for path in library_files(library):
        text = without_docstrings(path.read_bytes()).strip() + "\n"
        if len(text) >= SHORTEST_MODULE:
            yield Document(text, f"source of {path.relative_to(library).as_posix()}")


def without_docstrings(source: bytes) -> str:
    """The source with every docstring cut out; `pass` stands where nothing else is left of a body."""
    text = source.decode("utf-8-sig").replace("\r\n", "\n")
    # Lines as `ast` counts them: `splitlines` would also split at form feeds.
    lines = [line + b"\n" for line in text.encode().split(b"\n")]
    for docstring, is_alone in reversed(list(_docstrings(ast.parse(text)))):
        _cut(lines, docstring, is_alone)
    return b"".join(lines).decode().removesuffix("\n")


def _docstrings(node: ast.AST) -> Iterator[tuple[ast.stmt, bool]]:
    """In their order: docstrings and strings right behind them; whether to put `pass` in their place."""
    if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
        strings = list(takewhile(_is_string, node.body))
        is_alone = len(strings) == len(node.body) and not isinstance(node, ast.Module)
        yield from ((string, is_alone and string is strings[0]) for string in strings)
    for child in _statements(node):
        yield from _docstrings(child)


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _cut(lines: list[bytes], cut: ast.stmt, is_alone: bool) -> None:
    """Take one statement out of the lines, in place; the columns of `ast` count bytes."""
    first, last = cut.lineno - 1, (cut.end_lineno or cut.lineno) - 1
    before, after = lines[first][: cut.col_offset], lines[last][cut.end_col_offset :]
    after_is_code = bool(after.strip()) and not after.lstrip().startswith(b"#")
    if is_alone or before.strip() or after_is_code:
        lines[first : last + 1] = [before + b"pass" + after] + [b""] * (last - first)
    else:
        lines[first : last + 1] = [b""] * (last - first + 1)
