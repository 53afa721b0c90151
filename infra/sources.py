"""Opens the text that a recipe's `source:` describes, and says what identifies it.

A digest covers what is read - bytes of files, a commit, a generator and its seed - and how (kind, column,
version of our reading). It covers no path, name or time: moving a file changes nothing, changing one byte
changes the digest. Files are read in the order of their content for the same reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.protocols import Document
from infra import hub_text, text_files
from infra.quickstart import exercises, licences, python_text

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """One row of the table. digest, read: given a whole spec. needs, takes: its keys beside `kind`."""

    digest: Callable[[Spec], str]
    read: Callable[[Spec], Iterator[Document]]
    needs: frozenset[str] = frozenset()
    takes: Mapping[str, Any] = field(default_factory=dict)


class TextSources:
    """Implements `bam_core.protocols.Sources`."""

    def digest(self, spec: Spec) -> str:
        """Hex sha256. Raises InvalidInput with paths relative to `source`."""
        kind, spec = _checked(spec)
        return kind.digest(spec)

    def read(self, spec: Spec) -> Iterator[Document]:
        """Documents, in an order that depends on content only. Raises InvalidInput, also midway."""
        kind, spec = _checked(spec)
        return kind.read(spec)

    def read_file(self, path: str) -> bytes:
        """One file as it is. path: a path or URI. Raises InvalidInput unless it is one readable file."""
        found = text_files.find_files(path)
        if len(found) > 1:
            raise InvalidInput("source", [Problem("path", path, f"must be one file; {len(found)} match")])
        with found[0].open() as file:
            return file.read()


def _checked(spec: Spec) -> tuple[Kind, Spec]:
    """The row and the spec with its defaults. Raises InvalidInput with everything wrong."""
    name = spec.get("kind")
    if name not in KINDS:
        raise InvalidInput("source", [Problem("kind", name, "is not a kind of source", nearest(str(name), KINDS))])
    kind = KINDS[name]
    known = {"kind", *kind.needs, *kind.takes}
    problems = [
        Problem(key, spec[key], f"unknown key of {name}", nearest(key, known)) for key in sorted(spec.keys() - known)
    ]
    problems += [Problem(key, None, f"is missing: {name} needs it") for key in sorted(kind.needs - spec.keys())]
    documents = spec.get("documents", 1)
    if isinstance(documents, bool) or not isinstance(documents, int) or documents < 1:
        problems.append(Problem("documents", documents, "must be a whole number of at least 1"))
    if problems:
        raise InvalidInput("source", problems)
    return kind, {**kind.takes, **spec}


def combined(label: str, parts: Iterable[str]) -> str:
    """sha256 over what the parts are, whatever their order; label: how they are read."""
    return hashlib.sha256("\n".join([label, *sorted(parts)]).encode()).hexdigest()


def _installed(version: int, files: Callable[[], list[Path]], read: Callable[[], Iterator[Document]]) -> Kind:
    """Text made from files of this installation."""

    def digest(spec: Spec) -> str:
        hashes = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files())
        return combined(f"{spec['kind']} {version}", hashes)

    return Kind(digest, lambda spec: read())


def _generated() -> Kind:
    """Text that is a function of numbers: they are its identity."""

    def digest(spec: Spec) -> str:
        return combined(f"{spec['kind']} {exercises.VERSION}", [f"{spec['documents']} of seed {spec['seed']}"])

    def read(spec: Spec) -> Iterator[Document]:
        return exercises.read_exercises(spec["documents"], spec["seed"])

    return Kind(digest, read, takes={"documents": 4000, "seed": 0})


def _files(read_file: Callable[[text_files.TextFile, str], Iterator[Document]], takes: Spec) -> Kind:
    """Text in files that somebody brings."""

    def by_content(spec: Spec, *, looking: bool = False) -> list[tuple[str, text_files.TextFile]]:
        hashed = [(file.sha256(), file) for file in text_files.find_files(spec["path"], looking=looking)]
        return sorted(hashed, key=lambda item: item[0])

    def digest(spec: Spec) -> str:
        files = by_content(spec, looking=True)
        # A wrong column shows before anything starts, and that there is no text.
        with_text = [_has_text(read_file(file, spec.get("column", ""))) for _, file in files]
        if not any(with_text):
            raise InvalidInput("source", [Problem("path", spec["path"], "holds no text")])
        return combined(f"{spec['kind']} {spec.get('column', '')}", (sha256 for sha256, _ in files))

    def read(spec: Spec) -> Iterator[Document]:
        for _, file in by_content(spec):
            yield from read_file(file, spec.get("column", ""))

    return Kind(digest, read, needs=frozenset({"path"}), takes=takes)


def _has_text(documents: Iterable[Document]) -> bool:
    return any(document.text.strip() for document in documents)


def _hub() -> Kind:
    def digest(spec: Spec) -> str:
        commit = hub_text.resolve_commit(spec["path"], spec["revision"])
        return combined(f"hf {spec['split']} {spec['column']}", [commit])

    takes = {"revision": "main", "split": "train", "column": "text"}
    return Kind(digest, hub_text.read_hub, needs=frozenset({"path"}), takes=takes)


KINDS: dict[str, Kind] = {
    "python-docs": _installed(python_text.VERSION, python_text.documentation_files, python_text.read_documentation),
    "python-code": _installed(python_text.VERSION, python_text.library_files, python_text.read_code),
    "python-licences": _installed(licences.VERSION, licences.licence_files, licences.read_licences),
    "generated-math": _generated(),
    "text": _files(text_files.read_text, takes={}),
    "jsonl": _files(text_files.read_json_lines, takes={"column": "text"}),
    "parquet": _files(text_files.read_parquet, takes={"column": "text"}),
    "hf": _hub(),
}
"""A new kind is a function that makes its row, and the row."""
