"""What was found where a person says that text is: its kind, how much there is, and in which columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bam_core.errors import UsageError, nearest

USUAL = "text"
"""The column that a recipe takes where it names none."""


@dataclass(frozen=True)
class Found:
    """source: keys of the recipe's `source`. files: every file that it reads; none of the hub.

    columns: of rows, those that hold text -> about so many bytes of it; None: nobody knows without reading all.
    n_bytes: about so many bytes of text, of a source without columns.
    """

    source: Mapping[str, Any]
    files: tuple[str, ...] = ()
    columns: Mapping[str, int | None] = field(default_factory=dict)
    n_bytes: int | None = None

    @property
    def has_columns(self) -> bool:
        return bool(self.columns)

    @property
    def usual_column(self) -> str | None:
        """The one that nobody needs to be asked for."""
        if USUAL in self.columns:
            return USUAL
        return next(iter(self.columns)) if len(self.columns) == 1 else None

    def with_column(self, name: str | None) -> Found:
        """The same with its column chosen. Raises UsageError if there is none of this name, or none is named."""
        if not self.has_columns:
            if name is not None:
                raise UsageError(f"column {name!r}: a file of text is one document and has no columns")
            return self
        name = name if name is not None else self.usual_column
        if name is None:
            raise UsageError(f"say which column is the text, PATH:COLUMN: {', '.join(self.columns)}")
        if name not in self.columns:
            there = f"those with text: {', '.join(self.columns)}"
            close = nearest(name, self.columns)
            raise UsageError(f"no text in a column {name!r}; {close if close.startswith('did') else there}")
        source = dict(self.source) | ({"column": name} if name != USUAL else {})
        return Found(source, self.files, {}, self.columns[name])
