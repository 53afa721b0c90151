"""Everything that can go wrong in words for the person who reads them.

    BamError                      exit 1
    ├── UsageError                exit 2   a command line, a name or a reference that cannot be meant
    │   └── InvalidInput          exit 2   carries every `Problem` of a recipe or configuration at once
    ├── StoreError                exit 2   the store cannot be read or written
    ├── LeaseHeld                 exit 3   another run works on this artifact now
    ├── ArtifactDamaged           exit 1   a file is missing, truncated or has another digest than its record
    ├── TrainingDiverged          exit 1   the loss is not finite or has spiked, or a router collapsed
    ├── ExecutorLost              exit 1   what runs the stages is gone: a cluster's head
    └── StageFailed               exit 1   a stage raised; names the command that continues

Each message says what was wrong, where, and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

INTERRUPTED = 130
"""The exit status after ctrl-C or SIGTERM: no error, since the same command continues."""

_USERINFO = re.compile(r"//[^/\s@'\"]+@")


class BamError(Exception):
    """The root of every error meant for a person; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(BamError):
    exit_code = 2


class StoreError(BamError):
    exit_code = 2


class LeaseHeld(BamError):
    exit_code = 3


class ArtifactDamaged(BamError):
    pass


class TrainingDiverged(BamError):
    pass


class ExecutorLost(BamError):
    pass


class StageFailed(BamError):
    pass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where (dotted key path), the value found, and what would be right."""

    path: str
    value: Any
    expected: str
    remedy: str = ""

    def under(self, prefix: str) -> Problem:
        """The same problem seen from the document that holds this part at `prefix`."""
        return replace(self, path=f"{prefix}.{self.path}" if self.path else prefix)

    def __str__(self) -> str:
        tail = f" ({self.remedy})" if self.remedy else ""
        found = "" if self.value is None and self.expected.startswith("is missing") else f"{shown(self.value)}: "
        return f"{self.path or '(whole file)'}: {found}{self.expected}{tail}"


def shown(value: Any, limit: int = 120) -> str:
    """A value for an error message: on one short line, without a URL's user name and password."""
    text = _USERINFO.sub("//***@", repr(value))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class InvalidInput(UsageError):
    """All problems of one document at once."""

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where = where
        self.problems = tuple(problems)
        assert self.problems, "an InvalidInput needs at least one problem"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{where}: {count} problem{'s' if count > 1 else ''}\n{lines}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, tuple[Problem, ...]]]:
        """Exceptions cross processes pickled, by default as their message alone."""
        return type(self), (self.where, self.problems)


def install_extra(name: str) -> str:
    """How to install one of bam's extras, from a checkout or from a wheel; no index is asked for bam itself."""
    return f"in a checkout pip install -c constraints.txt -e '.[{name}]', with a wheel pip install 'WHEEL[{name}]'"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known when nothing is near."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
