"""What the parts of this package share: errors as the command line words them, tables as HTML, names given singly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup, escape

from bam_core.errors import BamError, UsageError

if TYPE_CHECKING:
    from pipelines.cli.app import Session

T = TypeVar("T", covariant=True)
Names = str | Iterable[str]
"""One name, or several."""


@contextmanager
def in_words() -> Iterator[None]:
    """Raise errors for people with secrets hidden, as the command line prints them: a notebook keeps what it shows."""
    try:
        yield
    except BamError as error:
        from pipelines.wiring import mask_text

        error.args = (mask_text(str(error)),)
        raise error from None


class Named(Mapping[str, T]):
    """A mapping that says of a name that it has not which one may be meant: `[]` raises UsageError, no KeyError."""

    def __contains__(self, name: object) -> bool:
        return any(name == own for own in self)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except UsageError:
            return default


def session(
    store: str | None, tracking_uri: str | None, address: str | None, executor: str | None, verbose: bool
) -> Session:
    """The common options of a command; those that are not given come from the environment."""
    from pipelines.cli.app import session_from

    given = {"store": store, "tracking_uri": tracking_uri, "address": address, "executor": executor}
    return session_from({**given, "as_json": False, "verbose": verbose})


def names(given: Names) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def html_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()) -> str:
    """A plain table, every cell escaped; `right`: columns of numbers."""
    numbers = set(right)

    def cells(tag: str, values: Sequence[Any]) -> Markup:
        made = []
        for column, value in enumerate(values):
            side = "right" if column in numbers else "left"
            made.append(Markup('<{0} style="text-align: {1}">{2}</{0}>').format(Markup(tag), side, value))
        return Markup("<tr>{}</tr>").format(Markup("").join(made))

    body = Markup("").join(cells("td", row) for row in rows)
    return str(Markup("<table><thead>{}</thead><tbody>{}</tbody></table>").format(cells("th", headers), body))


def html_lines(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
