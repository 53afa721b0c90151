"""What text a row stands for, and whether it is wanted: columns, templates, conversations, filters. Pure.

A row is a mapping: an object of JSON, or one row of a table. A field is named as it is, or by a path with points
(`meta.lang`) where it lies in others. A value that is a list of chat messages becomes text by one rule, whatever a
tokenizer's chat template would make of it, so that text does not depend on the tokenizer:

    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]  ->  "user: Hi\\n\\nassistant: Hello"

Messages may also say `from` and `value`; content may be a list of parts that are text. Nothing else is converted: a
number is no text, but in a template, where a whole number has one way to be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from bam_core.errors import InvalidInput, Problem, nearest

Row = Mapping[str, Any]
MISSING = object()
ROLES, CONTENTS = ("role", "from"), ("content", "value")
BETWEEN_MESSAGES = "\n\n"
OPERATORS = ("equals", "in", "min", "max", "exists")
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SCALARS = (str, int, float, bool)


def field_of(row: Row, name: str) -> Any:
    """The value under a name, or along a path of names; `MISSING` where there is none."""
    if name in row:
        return row[name]
    first, point, rest = name.partition(".")
    inner = row.get(first)
    return field_of(inner, rest) if point and isinstance(inner, Mapping) else MISSING


@dataclass(frozen=True)
class Template:
    """`"{question}\\n{answer}"`: fields in braces; `{{` and `}}` are braces. parts: text and fields by turns."""

    source: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, source: str) -> Template:
        """Raises ValueError, with what is expected, for braces that mean nothing and where there is no field."""
        parts, text, end = list[str](), "", 0
        for match in _PLACE.finditer(source):
            text, end = text + source[end : match.start()], match.end()
            if match[0] in ("{{", "}}"):
                text += match[0][0]
            elif match[1] and match[1].strip() == match[1]:
                parts, text = [*parts, text, match[1]], ""
            else:
                shown = source[max(0, match.start() - 10) : match.end() + 10]
                raise ValueError(f"has {match[0]!r} that names no field, at {shown!r}; a brace itself is {{{{ or }}}}")
        if not parts:
            raise ValueError("names no field: write one in braces, such as {question}")
        return cls(source, (*parts, text + source[end:]))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.parts[1::2]))

    def fill(self, row: Row, where: str) -> str:
        """The text of a row. Raises InvalidInput, naming where, for a field that is missing or no text."""
        made = list(self.parts)
        for place in range(1, len(made), 2):
            value = field_of(row, made[place])
            if value is MISSING:
                raise no_field("template", self.source, made[place], row, where)
            is_number = isinstance(value, int) and not isinstance(value, bool)
            made[place] = str(value) if is_number else as_text(value, made[place], where)
        return "".join(made)


@dataclass(frozen=True)
class Wanted:
    """Which text of a row: that of a column, or of a template in its place."""

    column: str = "text"
    template: Template | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        return self.template.fields if self.template else (self.column,)

    @property
    def said(self) -> tuple[str, str]:
        """The key of the source that names the fields, and its value."""
        return ("template", self.template.source) if self.template else ("column", self.column)

    def text_of(self, row: Row, where: str) -> str:
        """Raises InvalidInput, naming where."""
        if self.template:
            return self.template.fill(row, where)
        value = field_of(row, self.column)
        if value is MISSING:
            raise no_field(*self.said, self.column, row, where)
        return as_text(value, self.column, where)


def as_text(value: Any, name: str, where: str) -> str:
    """Text as it is, a conversation by the rule above. Raises InvalidInput for anything else.

    JSON can spell half a surrogate pair, which no encoding of Unicode allows.
    """
    text = conversation(value, name, where) if isinstance(value, list | tuple) else value
    if not isinstance(text, str):
        raise _invalid(where, f"{name!r} must be a string, not {type(value).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid(where, f"{name!r} must be valid Unicode: {error.reason}") from error
    return text


def conversation(messages: Sequence[Any], name: str, where: str) -> str:
    """Chat messages as one text, see above. Raises InvalidInput, naming the message."""
    if not messages:
        raise _invalid(where, f"{name!r} is a list without messages")
    told = []
    for number, message in enumerate(messages, start=1):
        role, content = (_first(message, names) for names in (ROLES, CONTENTS))
        if isinstance(content, list | tuple):
            parts = [_first(part, ("text",)) for part in content]
            content = "\n".join(parts) if parts and all(isinstance(part, str) for part in parts) else None
        if not (isinstance(role, str) and isinstance(content, str)):
            expected = "a list must hold chat messages, each with `role` and `content` (or `from` and `value`) as text"
            raise _invalid(where, f"{name!r}: {expected}; item {number} is none")
        told.append(f"{role}: {content}")
    return BETWEEN_MESSAGES.join(told)


def _first(value: Any, names: Sequence[str]) -> Any:
    return next((value[name] for name in names if name in value), None) if isinstance(value, Mapping) else None


@dataclass(frozen=True)
class Condition:
    """What a field must be. values: one of these. least, most: bounds, included. exists: whether it has a value."""

    field: str
    values: tuple[Any, ...] | None = None
    least: Any = None
    most: Any = None
    exists: bool | None = None

    def holds(self, row: Row, where: str) -> bool:
        """A field without a value has none of `values` and is within no bounds.

        Raises InvalidInput, naming where, for a value that cannot be compared with a bound.
        """
        value = field_of(row, self.field)
        there = value is not MISSING and value is not None
        if self.exists is not None and there != self.exists:
            return False
        if (self.values, self.least, self.most) == (None, None, None):
            return True
        if not there:
            return False
        value = value.isoformat() if isinstance(value, date) else value
        is_one = self.values is None or any(_same(value, wanted) for wanted in self.values)
        return bool(
            is_one
            and (self.least is None or self._comparable(value, self.least, where) >= self.least)
            and (self.most is None or self._comparable(value, self.most, where) <= self.most)
        )

    def _comparable(self, value: Any, bound: Any, where: str) -> Any:
        of_text = isinstance(bound, str)
        fits = isinstance(value, str) if of_text else isinstance(value, int | float) and not isinstance(value, bool)
        if not fits:
            kind = "text" if of_text else "a number"
            expected = f"{self.field!r} must be {kind} to be compared with {bound!r}, not {type(value).__name__}"
            raise _invalid(where, expected)
        return value


def _same(value: Any, wanted: Any) -> bool:
    """1 and 1.0 are the same, 1 and true are not."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def conditions_of(filters: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Of a `filter:` without problems."""
    made = []
    for name, given in normal_filter(filters).items():
        values = tuple(given["in"]) if "in" in given else None
        made.append(Condition(name, values, given.get("min"), given.get("max"), given.get("exists")))
    return tuple(made)


def normal_filter(filters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The one form of what can be said in several: a value alone, and `equals`, are `in` of one; a list is `in`."""
    made = {}
    for name, given in filters.items():
        found = dict(given) if isinstance(given, Mapping) else {"in": given}
        if "equals" in found:
            found["in"] = [found.pop("equals")]
        if "in" in found and not isinstance(found["in"], list | tuple):
            found["in"] = [found["in"]]
        made[name] = {key: found[key] for key in sorted(found)}
    return made


def filter_problems(filters: Mapping[str, Any], path: str = "filter") -> Iterator[Problem]:
    """Everything wrong with a `filter:`: field -> a value, a list of values, or a mapping of `OPERATORS`."""
    if not filters:
        yield Problem(path, {}, "must name a field", "for example {lang: en}")
    for name, given in filters.items():
        here = f"{path}.{name}"
        if isinstance(given, Mapping):
            yield from _operators(here, given)
        elif isinstance(given, list | tuple):
            yield from _values(here, given)
        elif not isinstance(given, _SCALARS):
            expected = f"must be a value, a list of values, or a mapping of {', '.join(OPERATORS)}"
            yield Problem(here, given, expected)


def _operators(here: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    if not given:
        yield Problem(here, {}, f"must have one of {', '.join(OPERATORS)}")
    for key, value in given.items():
        if key not in OPERATORS:
            yield Problem(f"{here}.{key}", value, "is not a known key", nearest(str(key), OPERATORS))
        elif key == "in":
            if isinstance(value, list | tuple):
                yield from _values(f"{here}.in", value)
            else:
                yield Problem(f"{here}.in", value, "must be a list of values")
        elif key == "exists":
            if not isinstance(value, bool):
                yield Problem(f"{here}.exists", value, "must be true or false")
        elif not isinstance(value, _SCALARS) or (key in ("min", "max") and isinstance(value, bool)):
            yield Problem(f"{here}.{key}", value, "must be text, a number, or true or false for equals")
    if "equals" in given and "in" in given:
        yield Problem(here, given, "has equals and in, which say the same thing", "keep one")
    least, most = given.get("min"), given.get("max")
    if isinstance(least, str) != isinstance(most, str) and None not in (least, most):
        yield Problem(here, given, "has a min and a max of different kinds")


def _values(here: str, values: Sequence[Any]) -> Iterator[Problem]:
    if not values or not all(isinstance(value, _SCALARS) for value in values):
        yield Problem(here, list(values), "must be a list of values, each text, a number, or true or false")


def no_field(key: str, value: str, name: str, row: Row, where: str) -> InvalidInput:
    """key, value: of the source, where the field is named. row: what is there instead."""
    known = [str(other) for other in row]
    close = nearest(name, known)
    what = f"field {name!r}" if key == "template" else "such column"
    expected = f"{where} has no {what}; it has {', '.join(known) or 'none'}"
    return InvalidInput("source", [Problem(key, value, expected, close if close.startswith("did you mean") else "")])


def _invalid(where: str, expected: str) -> InvalidInput:
    return InvalidInput("source", [Problem("path", where, expected)])
