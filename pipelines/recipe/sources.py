"""Where text comes from: the keys of a `source`, of one kind or another, and of several as one.

What a source's keys mean to the text is in `bam_core.data.picking`; what must hold of them beyond their types, in
`source_problems`, the same wherever there is a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from bam_core.config import shares_problems
from bam_core.data.fields import normal_filter
from bam_core.data.picking import picking_problems
from bam_core.errors import Problem
from bam_core.plugins import is_plugin_name
from pipelines.recipe.base import TAG, Listed, Part
from pipelines.recipe.plugged import SourceName
from pipelines.recipe.values import Count, Number, Text

MAX_LICENCE_CHARS = 300
COLUMN = "text"
SEVERAL = "several"
"""The kind of what several sources are together, as `protocols.Sources` takes it."""
FIELDS = ("template", "filter")
"""Keys that speak of a row's fields, which a file of text has none of."""


def parse_paths(value: Any) -> str | list[str]:
    """A path, or a list of them. Raises ValueError."""
    paths = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError("must be text: a path, a URI or a glob, or a list of them")
    if not paths or not all(paths):
        raise ValueError("must not be empty")
    return list(value) if isinstance(value, list | tuple) else paths[0]


_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
Paths = Annotated[
    str | list[str],
    BeforeValidator(parse_paths),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
]
_VALUE: dict[str, Any] = {"type": ["string", "number", "boolean"]}
_BOUND: dict[str, Any] = {"type": ["string", "number"]}
_VALUES: dict[str, Any] = {"type": "array", "items": _VALUE, "minItems": 1}
_OPERATORS = {"equals": _VALUE, "in": _VALUES, "min": _BOUND, "max": _BOUND, "exists": {"type": "boolean"}}
_CONDITION: dict[str, Any] = {
    "anyOf": [_VALUE, _VALUES, {"type": "object", "properties": _OPERATORS, "additionalProperties": False}]
}
Filter = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": _CONDITION})]
"""Field -> a value, a list of values, or `equals`, `in`, `min`, `max`, `exists`."""


class Licensed(Part):
    """licence: under which one may use the text, in words or as SPDX names it; it is passed on to model cards.

    share: of the domain's bytes, where this is one of several sources.
    """

    licence: Text | None = None
    share: Number | None = None


class InstalledText(Licensed):
    """Text that every Python installation has: documentation strings, sources, licences of packages."""

    kind: Literal["python-docs", "python-code", "python-licences"]


class GeneratedMath(Licensed):
    """Arithmetic and algebra with worked steps, made from a seed."""

    kind: Literal["generated-math"]
    documents: Count = 4000
    seed: Count = 0


class RowsOfText(Licensed):
    """Which rows are documents, and which text each of them is: that of a column, or of a template in its place.

    filter: what fields must be. min_chars, max_chars: of a document. max_documents: the first so many; with `sample`,
    so many of all, another number being another choice.
    """

    column: Text = COLUMN
    template: Text | None = None
    filter: Filter | None = None
    min_chars: Count | None = None
    max_chars: Count | None = None
    max_documents: Count | None = None
    sample: Count | None = None


class FileText(RowsOfText):
    """Local or remote files. path: a URI, a glob, or several; relative ones are relative to the current folder."""

    kind: Literal["text", "jsonl", "parquet"]
    path: Paths


class HubText(RowsOfText):
    """A data set of the Hugging Face hub; `revision` is resolved to a commit, which enters the key.

    path: its name, or a folder that begins with `.`, `/` or `~`. name: of the subset. streaming: read it as it comes,
    without a copy on the disk; the text is the same.
    """

    kind: Literal["hf"]
    path: Text
    name: Text | None = None
    revision: Text | None = None
    split: Text = "train"
    streaming: bool = False


class PluggedText(Licensed):
    """Text of a plug-in's kind of source. options: for the plug-in; they are a part of the text's identity."""

    kind: SourceName
    options: dict[str, Any] = Field(default={})


class ClusterText(Part):
    """The documents of one cluster of the text that `discover.OF` has divided; its licence is that of the text."""

    kind: Literal["cluster"]
    of: Text
    index: Count


TEXTS: dict[str, type[Part]] = {
    "python-docs": InstalledText,
    "python-code": InstalledText,
    "python-licences": InstalledText,
    "generated-math": GeneratedMath,
    "text": FileText,
    "jsonl": FileText,
    "parquet": FileText,
    "hf": HubText,
}
SOURCES = TEXTS | {"cluster": ClusterText}
LICENCES = {
    "python-docs": "PSF-2.0",
    "python-code": "PSF-2.0",
    "python-licences": "various: the licences of Python and of installed packages are the text",
    "generated-math": "no rights claimed: generated by bam from a seed",
}
"""Kind of source -> licence of its text where a recipe states none: of those whose text is known to us."""


def by_kind(table: Mapping[str, type[Part]], *, plugged: bool = False, several: bool = False) -> Discriminator:
    """Chooses the member of a union by its `kind`; None (an error of pydantic's) for an unknown one."""

    def tag(value: Any) -> str | None:
        if several and isinstance(value, list | tuple):
            return f"{TAG}{SEVERAL}"
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if plugged and is_plugin_name(kind):
            return f"{TAG}{PluggedText.__name__}"
        return f"{TAG}{table[kind].__name__}" if isinstance(kind, str) and kind in table else None

    return Discriminator(tag)


def member(part: type[Part]) -> Tag:
    """Marks a member of a union that `by_kind` chooses from."""
    return Tag(f"{TAG}{part.__name__}")


AnyText = (
    Annotated[InstalledText, member(InstalledText)]
    | Annotated[GeneratedMath, member(GeneratedMath)]
    | Annotated[FileText, member(FileText)]
    | Annotated[HubText, member(HubText)]
    | Annotated[PluggedText, member(PluggedText)]
)
OneText = Annotated[AnyText, by_kind(TEXTS, plugged=True)]
SeveralTexts = Annotated[Listed[OneText], Tag(f"{TAG}{SEVERAL}")]
TextSource = Annotated[AnyText | SeveralTexts, by_kind(TEXTS, plugged=True, several=True)]
"""A source, or a list of several."""
Source = Annotated[
    AnyText | SeveralTexts | Annotated[ClusterText, member(ClusterText)],
    by_kind(SOURCES, plugged=True, several=True),
]


def plain(source: Part | list[Any]) -> dict[str, Any]:
    """What says which text it is, as `protocols.Sources` takes it. Equal meaning, equal mapping."""
    if isinstance(source, list):
        return {"kind": SEVERAL, "sources": [plain(one) for one in source]}
    spec = source.to_dict()
    for key in Licensed.model_fields:
        spec.pop(key, None)
    if spec["kind"] == "text" or spec.get("template") is not None:
        del spec["column"]
    if spec.get("filter") is not None:
        spec["filter"] = normal_filter(spec["filter"])
    if not spec.get("streaming", True):
        del spec["streaming"]
    return {key: value for key, value in spec.items() if value is not None}


def without_place(source: Mapping[str, Any]) -> dict[str, Any]:
    """What enters a key: not where the text lies, nor how it is fetched."""
    kept = {name: value for name, value in source.items() if name not in ("path", "streaming")}
    return kept | ({"sources": [without_place(one) for one in source["sources"]]} if "sources" in source else {})


def each_source(source: AnyText | ClusterText | list[AnyText] | None) -> list[AnyText | ClusterText]:
    """The sources that a source is; none where there is a hole."""
    found = source if isinstance(source, list) else [source]
    return [one for one in found if one is not None]


def source_problems(path: str, source: Part | list[Any] | None, *, shared: bool = True) -> Iterator[Problem]:
    """What must hold of a source, or of a list of several. shared: whether the several may have shares."""
    if not isinstance(source, list):
        yield from _one(path, source)
        if isinstance(source, Licensed) and source.share is not None:
            yield Problem(f"{path}.share", source.share, "is of one of several sources, and this is the only one")
        return
    if not source:
        yield Problem(path, [], "must name at least one source")
    for number, one in enumerate(source):
        yield from _one(f"{path}.{number}", one)
    shares = {str(number): one.share for number, one in enumerate(source) if isinstance(one, Licensed)}
    said = {number: share for number, share in shares.items() if share is not None}
    if not said or None in source:
        return
    if not shared:
        yield Problem(path, list(said.values()), "shares are of a domain's own text")
    elif len(said) < len(source):
        missing = ", ".join(str(number) for number in range(len(source)) if str(number) not in said)
        expected = f"some have a share and others ({missing}, from 0) have none"
        yield Problem(path, list(said.values()), expected, "give all of them one, or none")
    elif any(share <= 0 for share in said.values()):
        yield Problem(path, list(said.values()), "each share must be above 0", "leave the others out")
    else:
        yield from (Problem(path, list(said.values()), p.expected, p.remedy) for p in shares_problems(said, path))


def _one(path: str, source: Part | None) -> Iterator[Problem]:
    yield from _licence(f"{path}.licence", source)
    if isinstance(source, GeneratedMath):
        for key, least in (("documents", 1), ("seed", 0)):
            value = getattr(source, key)
            if value is not None and value < least:
                yield Problem(f"{path}.{key}", value, f"must be at least {least}")
    if isinstance(source, FileText | HubText):
        said = {key: getattr(source, key) for key in type(source).model_fields}
        if source.kind == "text":
            for key in FIELDS:
                if said[key] is not None:
                    yield Problem(f"{path}.{key}", said[key], "is of rows with fields: a file of text is one document")
                    said[key] = None
        elif source.template is not None and source.column not in (None, COLUMN):
            yield Problem(f"{path}.column", source.column, "and template both say what the text is", "keep one")
        yield from picking_problems(said, path)


def _licence(path: str, source: Part | None) -> Iterator[Problem]:
    licence = source.licence if isinstance(source, Licensed) else None
    if licence is not None and (len(licence) > MAX_LICENCE_CHARS or not licence.isprintable() or not licence.strip()):
        expected = f"must be one line of at most {MAX_LICENCE_CHARS} characters"
        yield Problem(path, licence, expected, "an SPDX identifier such as CC-BY-4.0, or a link to the text")
