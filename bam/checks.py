"""`bam doctor` from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bam.words import html_table, in_words, session

if TYPE_CHECKING:
    from pipelines.wiring import Check


class Checks(Sequence["Check"]):
    """ok: whether a run would find what it needs."""

    def __init__(self, found: list[Check]) -> None:
        self._found = found

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    def _rows(self) -> list[list[str]]:
        words = {True: "done", False: "failed"}
        return [[words[c.ok], c.name, c.detail, "" if c.ok else c.remedy] for c in self._found]

    def __repr__(self) -> str:
        from pipelines.cli.text import table

        return click.unstyle(table(["state", "check", "found", "remedy"], self._rows()))

    def _repr_html_(self) -> str:
        return html_table(["state", "check", "found", "remedy"], self._rows())


def doctor(
    *,
    store: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    executor: str | None = None,
) -> Checks:
    """Is everything there that a run needs? Starts nothing and leaves nothing behind."""
    with in_words():
        from pipelines import wiring

        return Checks(wiring.doctor(session(store, tracking_uri, address, executor, False).settings()))
