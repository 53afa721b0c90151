"""Text of a plug-in's kind of source: `digest(options) -> str` and `read(options)`, an iterable of texts or documents.

Whatever a plug-in raises becomes words that name its distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from bam_core import plugins
from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document


class PluggedSource(Protocol):
    """What an entry of the group `bam.sources` is.

    digest: says which text it is; equal digests, equal documents. read: in an order that depends on content only.
    """

    def digest(self, options: Mapping[str, Any]) -> str: ...

    def read(self, options: Mapping[str, Any]) -> Iterator[str | Document]: ...


def plugged_source(name: str) -> PluggedSource:
    """Raises UsageError."""
    found: PluggedSource = plugins.load(plugins.SOURCES, name, _require_source)
    return found


def digest(spec: Mapping[str, Any]) -> str:
    """Hex sha256 over the name and what the plug-in answers. Raises InvalidInput."""
    name, options = spec["kind"], spec["options"]
    try:
        answer = plugged_source(name).digest(options)
    except Exception as error:
        raise _failed(name, options, error) from error
    if not isinstance(answer, str) or not answer:
        raise _failed(name, options, ValueError(f"its digest must be text, not {answer!r:.60}"))
    return hashlib.sha256(f"{name}\n{answer}".encode()).hexdigest()


def read(spec: Mapping[str, Any]) -> Iterator[Document]:
    """Raises InvalidInput, also midway."""
    name, options = spec["kind"], spec["options"]
    try:
        for number, found in enumerate(plugged_source(name).read(options)):
            document = Document(found, f"{name} {number}") if isinstance(found, str) else found
            if not isinstance(document, Document) or not isinstance(document.text, str):
                raise ValueError(f"a document must be text, not {found!r:.60}")
            yield document
    except Exception as error:
        raise _failed(name, options, error) from error


def _failed(name: str, options: Mapping[str, Any], error: Exception) -> InvalidInput:
    if isinstance(error, InvalidInput):
        return InvalidInput("source", [problem.under("options") for problem in error.problems])
    plugin = plugins.find(plugins.SOURCES, name)
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return InvalidInput("source", [Problem("options", dict(options), f"{plugin} failed: {kind}{error}")])


def _require_source(found: Any) -> None:
    lacking = [method for method in ("digest", "read") if not callable(getattr(found, method, None))]
    if lacking:
        raise ValueError(f"must have the methods digest(options) and read(options); lacks {' and '.join(lacking)}")
