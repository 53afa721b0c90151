"""Opens the text that a recipe's `source:` describes, and says what identifies it.

A digest covers what is read - bytes of files, a commit, a generator and its seed - and how (kind, column,
version of our reading). It covers no path, name or time: moving a file changes nothing, changing one byte
changes the digest. Files are read in the order of their content for the same reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bam_core.data.picking import PICKING, Picker, Placed, picking_problems
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.graph.key import canonical_json
from bam_core.plugins import is_plugin_name
from bam_core.protocols import Document, Tally
from infra import hub_text, model_sources, plugged_text, text_files, text_rows
from infra.quickstart import exercises, licences, python_text

Spec = Mapping[str, Any]
SEVERAL = "several"
"""The kind of several sources as one, `{kind: several, sources: [...]}`."""


@dataclass(frozen=True)
class Kind:
    """One row of the table. digest, read: given a whole spec. needs, takes: its keys beside `kind`."""

    digest: Callable[[Spec], str]
    read: Callable[[Spec, Tally], Iterator[Document]]
    needs: frozenset[str] = frozenset()
    takes: Mapping[str, Any] = field(default_factory=dict)


class TextSources:
    """Implements `bam_core.protocols.Sources`."""

    def digest(self, spec: Spec) -> str:
        """Hex sha256. Raises InvalidInput with paths relative to `source`."""
        if spec.get("kind") in model_sources.KINDS:
            return model_sources.digest(spec)
        kind, spec = _checked(spec)
        return kind.digest(spec)

    def read(self, spec: Spec, tally: Tally | None = None) -> Iterator[Document]:
        """Documents, in an order that depends on content only. Raises InvalidInput, also midway."""
        kind, spec = _checked(spec)
        return kind.read(spec, tally if tally is not None else Tally())

    def folder(self, spec: Spec) -> Path:
        """A local folder with the files of a checkpoint. Raises InvalidInput."""
        return model_sources.folder(spec)

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
    if name not in KINDS and not is_plugin_name(name):
        raise InvalidInput("source", [Problem("kind", name, "is not a kind of source", nearest(str(name), KINDS))])
    kind = KINDS.get(str(name), PLUGGED)
    known = {"kind", *kind.needs, *kind.takes}
    problems = [
        Problem(key, spec[key], f"unknown key of {name}", nearest(key, known)) for key in sorted(spec.keys() - known)
    ]
    problems += [Problem(key, None, f"is missing: {name} needs it") for key in sorted(kind.needs - spec.keys())]
    documents = spec.get("documents", 1)
    if isinstance(documents, bool) or not isinstance(documents, int) or documents < 1:
        problems.append(Problem("documents", documents, "must be a whole number of at least 1"))
    if spec.get("column") is not None and spec.get("template") is not None:
        problems.append(Problem("column", spec["column"], "and template both say what the text is", "keep one"))
    problems += picking_problems(spec)
    if problems:
        raise InvalidInput("source", problems)
    return kind, {**kind.takes, **spec}


def absolute_path(spec: Spec) -> Any:
    """A source's `path` with those of local files absolute; a URI, and a name on the hub, are as they are."""
    path = spec.get("path")
    if isinstance(path, list | tuple):
        return [absolute_path({**spec, "path": one}) for one in path]
    if not isinstance(path, str) or "://" in path or (spec.get("kind") == "hf" and not hub_text.is_folder(path)):
        return path
    return str(Path(path).expanduser().absolute())


def combined(label: str, parts: Iterable[str]) -> str:
    """sha256 over what the parts are, whatever their order; label: how they are read."""
    return hashlib.sha256("\n".join([label, *sorted(parts)]).encode()).hexdigest()


def _counted(read: Callable[[Spec], Iterator[Document]]) -> Callable[[Spec, Tally], Iterator[Document]]:
    """Of a kind that leaves nothing out."""

    def counted(spec: Spec, tally: Tally) -> Iterator[Document]:
        for document in read(spec):
            tally.read += 1
            yield document

    return counted


def _installed(version: int, files: Callable[[], list[Path]], read: Callable[[], Iterator[Document]]) -> Kind:
    """Text made from files of this installation."""

    def digest(spec: Spec) -> str:
        hashes = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files())
        return combined(f"{spec['kind']} {version}", hashes)

    return Kind(digest, _counted(lambda spec: read()))


def _generated() -> Kind:
    """Text that is a function of numbers: they are its identity."""

    def digest(spec: Spec) -> str:
        return combined(f"{spec['kind']} {exercises.VERSION}", [f"{spec['documents']} of seed {spec['seed']}"])

    def read(spec: Spec) -> Iterator[Document]:
        return exercises.read_exercises(spec["documents"], spec["seed"])

    return Kind(digest, _counted(read), takes={"documents": 4000, "seed": 0})


Reader = Callable[[text_files.TextFile, Picker], Iterator[Placed]]


def _files(read_file: Reader, takes: Spec) -> Kind:
    """Text in files that somebody brings."""

    def by_content(spec: Spec, *, looking: bool = False) -> list[text_files.TextFile]:
        hashed = [(file.sha256(), file) for file in text_files.find_files(spec["path"], looking=looking)]
        return [file for _, file in sorted(hashed, key=lambda item: item[0])]

    def digest(spec: Spec) -> str:
        files, picker = text_files.find_files(spec["path"], looking=True), _first_one(spec)
        hashes = [file.sha256() for file in files]
        # A wrong column shows before anything starts, and that there is no text.
        tallies = [Tally() for _ in files]
        with_text = [
            _has_text(picker.documents(read_file(file, picker), tally))
            for (_, file), tally in zip(sorted(zip(hashes, files, strict=True), key=_hash), tallies, strict=True)
        ]
        if not any(with_text):
            raise InvalidInput("source", [Problem("path", spec["path"], _why_no_text(tallies))])
        column = spec.get("column", "") if spec.get("template") is None else ""
        return combined(f"{spec['kind']} {column}{_how(spec)}", hashes)

    def read(spec: Spec, tally: Tally) -> Iterator[Document]:
        picker = Picker.of(spec)
        return picker.documents((row for file in by_content(spec) for row in read_file(file, picker)), tally)

    return Kind(digest, read, needs=frozenset({"path"}), takes={**takes, **dict.fromkeys(PICKING)})


def _first_one(spec: Spec) -> Picker:
    """Of one document: however many there may be, to look for one is enough."""
    return replace(Picker.of(spec), max_documents=None, sample=None)


def _hash(hashed: tuple[str, text_files.TextFile]) -> str:
    return hashed[0]


def _has_text(documents: Iterable[Document]) -> bool:
    return any(document.text.strip() for document in documents)


def _why_no_text(tallies: Iterable[Tally]) -> str:
    dropped: dict[str, int] = {}
    for tally in tallies:
        for reason, count in tally.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    said = ", ".join(f"{reason} leaves out {dropped[reason]}" for reason in sorted(dropped))
    return f"holds no text{f': {said}' if said else ''}"


def _how(spec: Spec) -> str:
    """What else than the column says which text is read; nothing where nothing does."""
    said = {key: spec[key] for key in ("name", "template", *PICKING) if spec.get(key) is not None}
    return f" {canonical_json(said)}" if said else ""


def _hub() -> Kind:
    def digest(spec: Spec) -> str:
        column = spec["column"] if spec.get("template") is None else ""
        return combined(f"hf {spec['split']} {column}{_how(spec)}", hub_text.identity(spec))

    def read(spec: Spec, tally: Tally) -> Iterator[Document]:
        picker = Picker.of(spec)
        return picker.documents(hub_text.read_rows(spec, picker), tally)

    takes = {"revision": "main", "split": "train", "column": "text", "template": None, "name": None, "streaming": False}
    return Kind(digest, read, needs=frozenset({"path"}), takes={**takes, **dict.fromkeys(PICKING)})


def _several() -> Kind:
    """One text after the other, each as a part with a number."""

    def each(spec: Spec, do: Callable[[Kind, Spec], Any]) -> list[Any]:
        """Raises InvalidInput with what is wrong with any of them."""
        made, problems = [], list[Problem]()
        for number, part in enumerate(spec["sources"]):
            try:
                made.append(do(*_checked(part)))
            except InvalidInput as error:
                problems += [problem.under(str(number)) for problem in error.problems]
        if problems:
            raise InvalidInput("source", problems)
        return made

    def digest(spec: Spec) -> str:
        digests = each(spec, lambda kind, part: kind.digest(part))
        return combined(SEVERAL, (f"{number} {digest}" for number, digest in enumerate(digests)))

    def read(spec: Spec, tally: Tally) -> Iterator[Document]:
        for number, (kind, part) in enumerate(each(spec, lambda kind, part: (kind, part))):
            tally.parts.append(Tally())
            try:
                for document in kind.read(part, tally.parts[-1]):
                    yield replace(document, part=number)
            except InvalidInput as error:
                raise InvalidInput("source", [problem.under(str(number)) for problem in error.problems]) from error

    return Kind(digest, read, needs=frozenset({"sources"}))


COLUMN = {"column": "text", "template": None}
KINDS: dict[str, Kind] = {
    "python-docs": _installed(python_text.VERSION, python_text.documentation_files, python_text.read_documentation),
    "python-code": _installed(python_text.VERSION, python_text.library_files, python_text.read_code),
    "python-licences": _installed(licences.VERSION, licences.licence_files, licences.read_licences),
    "generated-math": _generated(),
    "text": _files(text_rows.read_text, takes={}),
    "jsonl": _files(text_rows.read_json_lines, takes=COLUMN),
    "parquet": _files(text_rows.read_parquet, takes=COLUMN),
    "hf": _hub(),
    SEVERAL: _several(),
}
"""A new kind is a function that makes its row, and the row."""

PLUGGED = Kind(plugged_text.digest, _counted(plugged_text.read), takes={"options": {}})
"""All kinds of plug-ins."""
