"""From rows to documents: which rows are wanted, what text each of them is, and how many there may be. Pure.

The order is: `filter`, the text of the row, `min_chars` and `max_chars`, `max_documents`. What is dropped is counted
under the name of the key that dropped it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bam_core.data.fields import (
    MISSING,
    Condition,
    Row,
    Template,
    Wanted,
    conditions_of,
    field_of,
    filter_problems,
    no_field,
)
from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document, Tally

PICKING = ("filter", "min_chars", "max_chars", "max_documents", "sample")
"""Keys of a source that say which of its rows are documents."""


class Placed(NamedTuple):
    """A row, where it is (for an error), and the name of the document that it may become (for people)."""

    row: Row
    where: str
    name: str


@dataclass(frozen=True)
class Picker:
    """What a source's keys say. sample: of the choice of `max_documents` among all; None takes the first."""

    wanted: Wanted
    conditions: tuple[Condition, ...] = ()
    min_chars: int = 0
    max_chars: int | None = None
    max_documents: int | None = None
    sample: int | None = None

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Picker:
        """Of a source's keys, which `picking_problems` has found nothing wrong with."""
        template = Template.of(spec["template"]) if spec.get("template") is not None else None
        return cls(
            Wanted(spec.get("column", "text"), template),
            conditions_of(spec.get("filter") or {}),
            spec.get("min_chars") or 0,
            spec.get("max_chars"),
            spec.get("max_documents"),
            spec.get("sample"),
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that is looked at."""
        return tuple(dict.fromkeys([*self.wanted.fields, *(condition.field for condition in self.conditions)]))

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Those of a table's columns that are looked at. Raises InvalidInput with every field that is in none."""
        made, problems = list[str](), list[Problem]()
        for name in self.fields:
            column = name if name in names else name.partition(".")[0]
            if column in names:
                made.append(column)
            elif name in self.wanted.fields:
                problems += no_field(*self.wanted.said, name, dict.fromkeys(names), where).problems
            else:
                problems += no_field("filter", name, name, dict.fromkeys(names), where).problems
        if problems:
            raise InvalidInput("source", problems)
        return list(dict.fromkeys(made))

    def documents(self, rows: Iterable[Placed], tally: Tally | None = None) -> Iterator[Document]:
        """The documents among the rows, in their order; with `sample`, in that of the choice.

        Raises InvalidInput for a row that is wanted and whose text is none, and for a filter on a field that no row
        has.
        """
        tally = tally if tally is not None else Tally()
        found = self._passing(rows, tally)
        if self.max_documents is None:
            return found
        if self.sample is None:
            return _first(found, self.max_documents, tally)
        return _chosen(found, self.max_documents, self.sample, tally)

    def _passing(self, rows: Iterable[Placed], tally: Tally) -> Iterator[Document]:
        known: Row = {}
        last = ""
        met: set[str] = set()
        for row, where, name in rows:
            known, last = row, where
            tally.read += 1
            failed = self._failed(row, where, met)
            if failed is not None:
                tally.drop(f"filter.{failed}")
                continue
            text = self.wanted.text_of(row, where)
            if len(text) < self.min_chars:
                tally.drop("min_chars")
            elif self.max_chars is not None and len(text) > self.max_chars:
                tally.drop("max_chars")
            else:
                yield Document(text, name)
        unmet = [c.field for c in self.conditions if c.exists is not False and c.field not in met]
        if tally.read and unmet:
            raise InvalidInput(
                "source", [p for name in unmet for p in no_field("filter", name, name, known, last).problems]
            )

    def _failed(self, row: Row, where: str, met: set[str]) -> str | None:
        """The field of the first condition that does not hold. met: fields of conditions that some row had."""
        failed = None
        for condition in self.conditions:
            if condition.field not in met and field_of(row, condition.field) is not MISSING:
                met.add(condition.field)
            if failed is None and not condition.holds(row, where):
                failed = condition.field
        return failed


def _first(documents: Iterable[Document], most: int, tally: Tally) -> Iterator[Document]:
    """What comes after them is not even read, so that a data set of any size can be begun."""
    for count, document in enumerate(documents, start=1):
        yield document
        if count == most:
            tally.stopped = "max_documents"
            return


def _chosen(documents: Iterable[Document], most: int, sample: int, tally: Tally) -> Iterator[Document]:
    """Those whose hash, of the sample's number and the text, is smallest; at most so many are in memory."""
    heap: list[tuple[int, int, Document]] = []
    for number, document in enumerate(documents):
        digest = hashlib.sha256(f"{sample}\n{document.text}".encode()).digest()
        entry = (-int.from_bytes(digest), -number, document)
        if len(heap) < most:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
            tally.drop("max_documents")
    yield from (document for _, _, document in sorted(heap, key=lambda entry: entry[:2], reverse=True))


def picking_problems(spec: Mapping[str, Any], path: str = "") -> Iterator[Problem]:
    """What is wrong with a source's keys that say which rows are documents and what their text is."""
    here = f"{path}." if path else ""
    template, filters = spec.get("template"), spec.get("filter")
    if isinstance(template, str):
        try:
            Template.of(template)
        except ValueError as error:
            yield Problem(f"{here}template", template, str(error))
    elif template is not None:
        yield Problem(f"{here}template", template, "must be text with fields in braces")
    if isinstance(filters, Mapping):
        yield from filter_problems(filters, f"{here}filter")
    elif filters is not None:
        yield Problem(f"{here}filter", filters, "must be a mapping of fields", "for example {lang: en}")
    for key, least in (("min_chars", 1), ("max_chars", 1), ("max_documents", 1), ("sample", 0)):
        value = spec.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            yield Problem(f"{here}{key}", value, f"must be a whole number of at least {least}")
    shortest, longest = spec.get("min_chars"), spec.get("max_chars")
    if isinstance(shortest, int) and isinstance(longest, int) and shortest > longest:
        yield Problem(f"{here}min_chars", shortest, f"must be at most max_chars, {longest}")
    if spec.get("sample") is not None and spec.get("max_documents") is None:
        expected = "says which documents max_documents takes, and that is not given"
        yield Problem(f"{here}sample", spec["sample"], expected)
