"""Which documents a domain has, in which order, and which of them are kept for validation.

Invariant: the result is a function of the texts alone - not of their order, names or a random generator.
Sorting by sha256 shuffles, and is stable: a new document does not change the order of the others. All that is chosen is
held in memory; with `max_bytes`, about three times as much, however large the text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from bam_core.data.distinct import Distinct, content_digest
from bam_core.data.near_copies import near_copies
from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document

__all__ = ["Choice", "Split", "Step", "content_digest", "size_bytes", "split"]

FEWEST_VALID = 0.5
"""If whole documents fill less than this part of the validation share, one document is cut to fill it."""


@dataclass(frozen=True)
class Choice:
    """What a domain takes of its text beside its size. near: documents this alike count as copies; None: none do.

    keep_copies: train on every copy of a text. shares: of the domain's bytes from each of its sources; None: as it is.
    """

    near: float | None = None
    keep_copies: bool = False
    shares: tuple[float, ...] | None = None


AS_IT_IS = Choice()


@dataclass(frozen=True)
class Step:
    """What one step left out, by reason, and how many documents it kept."""

    name: str
    dropped: dict[str, int]
    kept: int


@dataclass(frozen=True)
class Split:
    """Documents in the order of their sha256. n_duplicates: how many are equal to another; dropped unless kept."""

    train: tuple[Document, ...]
    valid: tuple[Document, ...]
    n_duplicates: int
    steps: tuple[Step, ...] = field(default=())


def size_bytes(documents: Iterable[Document]) -> int:
    """UTF-8 bytes of the texts."""
    return sum(len(document.text.encode()) for document in documents)


def split(
    documents: Iterable[Document],
    valid_frac: float | None,
    max_bytes: int | None = None,
    choice: Choice = AS_IT_IS,
) -> Split:
    """Drop duplicates, sort by content, keep `max_bytes`, and set `valid_frac` of the bytes apart.

    Two texts are duplicates when they differ in case and white space only. Validation takes whole documents,
    in order, that fit into its share; where they are too few or too large for that, one is cut at the end of
    a line. None sets nothing apart: what is held out comes from elsewhere.

    Raises InvalidInput when there is no text, or too little to give both parts some.
    """
    if valid_frac is not None and not 0 < valid_frac < 1:
        raise InvalidInput("split", [Problem("valid_frac", valid_frac, "must lie between 0 and 1")])
    taken = _Taken.of(documents, max_bytes, choice)
    if valid_frac is None:
        if not taken.groups:
            raise InvalidInput("split", [Problem("documents", 0, "must hold text")])
        return Split(tuple(document for group in taken.groups for document in group), (), taken.n_copies, taken.steps)
    train, valid = _set_apart([group[0] for group in taken.groups], valid_frac)
    if not (train and valid):
        expected = "must hold enough text for training and validation; a few lines are too little"
        raise InvalidInput("split", [Problem("documents", len(taken.groups), expected)])
    if choice.keep_copies:
        return taken.with_copies(train, valid)
    return Split(tuple(train), tuple(valid), taken.n_copies, taken.steps)


@dataclass(frozen=True)
class _Taken:
    """groups: by sha256, each a document with the copies of it that are kept, which is cut where it is the last."""

    groups: list[list[Document]]
    n_copies: int
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, documents: Iterable[Document], max_bytes: int | None, choice: Choice) -> _Taken:
        is_prefix = choice == AS_IT_IS
        distinct = Distinct(max_bytes if is_prefix else None, keep_copies=choice.keep_copies)
        for document in documents:
            distinct.add(document)
        groups, n_here = distinct.documents(), distinct.n_contents
        dropped = {"empty": distinct.n_empty}
        if choice.keep_copies:
            n_here += distinct.n_copies
        else:
            dropped["copies"] = distinct.n_copies
        steps = [Step("copies", dropped, n_here)]
        if choice.near is not None:
            groups = _without_near_copies(groups, choice.near)
            steps.append(Step("near copies", {"near copies": n_here - len(groups)}, len(groups)))
            n_here = len(groups)
        if max_bytes is not None or choice.shares is not None:
            groups = _within(groups, max_bytes, choice.shares)
            n_taken = sum(map(len, groups))
            reason = "shares" if choice.shares is not None else "max_bytes"
            steps.append(Step("size", {reason: n_here - n_taken}, n_taken))
        return cls(groups, distinct.n_copies, tuple(steps))

    def with_copies(self, train: Sequence[Document], valid: Sequence[Document]) -> Split:
        """Copies follow what is trained on as a whole; those of held-out text, or of a part of it, are dropped."""
        copies = {id(group[0]): group for group in self.groups}
        kept = tuple(document for first in train for document in copies.get(id(first), [first]))
        n_left = sum(map(len, self.groups)) - len(self.groups) - (len(kept) - len(train))
        step = Step("held out", {"copies of held-out text": n_left}, len(kept) + len(valid))
        return Split(kept, tuple(valid), self.n_copies, (*self.steps, step))


def _without_near_copies(groups: list[list[Document]], threshold: float) -> list[list[Document]]:
    """Of documents that are alike the longest is kept; of equally long ones the one with the smallest sha256."""
    by_length = sorted(range(len(groups)), key=lambda i: (-len(groups[i][0].text), i))
    copied = near_copies((groups[i][0].text for i in by_length), threshold)
    dropped = {i for i, of in zip(by_length, copied, strict=True) if of is not None}
    return [group for i, group in enumerate(groups) if i not in dropped]


def _within(
    groups: list[list[Document]], max_bytes: int | None, shares: tuple[float, ...] | None
) -> list[list[Document]]:
    """The first documents, `max_bytes` in all or as much of each source as makes its share; the last is cut."""
    left = _budgets(groups, max_bytes, shares)
    taken = []
    for group in groups:
        kept = []
        for document in group:
            part = document.part if shares is not None else 0
            if left[part] <= 0:
                continue
            size = size_bytes([document])
            fits = document if size <= left[part] else _cut(document, left[part])[0]
            left[part] -= size
            kept += [fits] if fits.text else []
        taken += [kept] if kept else []
    return taken


def _budgets(groups: list[list[Document]], max_bytes: int | None, shares: tuple[float, ...] | None) -> dict[int, int]:
    """Bytes to take of each source. Without shares, of all as one. Raises InvalidInput for a source without text."""
    if shares is None:
        assert max_bytes is not None
        return {0: max_bytes}
    sizes = dict.fromkeys(range(len(shares)), 0)
    for group in groups:
        for document in group:
            sizes[document.part] += size_bytes([document])
    empty = [part for part, size in sizes.items() if not size]
    if empty:
        expected = "has no text of its own left, so nothing can have the share that it is given"
        raise InvalidInput("source", [Problem(str(part), shares[part], expected) for part in empty])
    whole = min(sizes[part] / share for part, share in enumerate(shares))
    if max_bytes is not None:
        whole = min(whole, max_bytes)
    return {part: min(sizes[part], round(whole * share)) for part, share in enumerate(shares)}


def _set_apart(documents: list[Document], valid_frac: float) -> tuple[list[Document], list[Document]]:
    """(train, valid), in the order of the documents but for one that is cut."""
    target = int(valid_frac * size_bytes(documents))
    train: list[Document] = []
    valid: list[Document] = []
    filled = 0
    for document in documents:
        size = size_bytes([document])
        fits = filled + size <= target
        (valid if fits else train).append(document)
        filled += size * fits
    if filled < FEWEST_VALID * target:
        # Each document of train is longer than what is left to fill, or it would have fitted.
        shortest = min(range(len(train)), key=lambda i: size_bytes([train[i]]))
        head, train[shortest] = _cut(train[shortest], target - filled)
        valid.append(head)
    return [document for document in train if document.text], [document for document in valid if document.text]


def _cut(document: Document, n_bytes: int) -> tuple[Document, Document]:
    """Two documents: whole lines within the first `n_bytes`, or whole characters if no line ends there."""
    text = document.text
    head = text.encode()[:n_bytes].decode(errors="ignore")
    end = head.rfind("\n") + 1 or len(head)
    return replace(document, text=text[:end]), replace(document, text=text[end:])
