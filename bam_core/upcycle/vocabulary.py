"""One vocabulary for models that bring their own: which row of whose embedding stands for a token.

Tokens are matched by their string, special ones too; an id means nothing outside its own tokenizer. What differs is
never guessed at: `refuse` refuses, `seed` keeps the seed's tokens and no other, `union` keeps those of all. The text is
always cut as the seed's tokenizer cuts it. Pure: JSON in, numbers and JSON out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bam_core.documents import LFS_POINTER
from bam_core.errors import InvalidInput, Problem

Rule = Literal["refuse", "union", "seed"]
RULES: tuple[Rule, ...] = ("refuse", "union", "seed")
Relation = Literal["identical", "reordered", "superset", "subset", "different"]

OWN_ROW = -1
"""In `Rows.own`: the model has no row for this token."""


@dataclass(frozen=True)
class Vocabulary:
    """What a `tokenizer.json` knows. ids: token -> id, added tokens too. special: tokens that are no text.

    cut: hash of how it cuts text into tokens: all but the ids. definition: the file, parsed.
    """

    ids: Mapping[str, int]
    special: frozenset[str]
    cut: str
    definition: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)
    """The file as it is."""

    @property
    def size(self) -> int:
        """The highest id + 1."""
        return max(self.ids.values(), default=-1) + 1

    @cached_property
    def by_id(self) -> dict[int, str]:
        return {index: token for token, index in self.ids.items()}

    @property
    def has_table(self) -> bool:
        """Whether its model maps tokens to ids, so that some can be added (a Unigram's list has probabilities)."""
        return isinstance(self.definition["model"].get("vocab"), Mapping)


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a `tokenizer.json`. Raises InvalidInput naming the file."""
    try:
        return vocabulary_of(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise _unreadable(str(path), f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _unreadable(str(path), "is not a tokenizer.json of the tokenizers library") from error


def vocabulary_of(text: str, where: str = "tokenizer") -> Vocabulary:
    """The same of a file's text. Raises InvalidInput."""
    if text.startswith(LFS_POINTER.decode()):
        raise _unreadable(where, "is a git-LFS pointer, not the file", "fetch it: git lfs pull")
    try:
        definition = json.loads(text)
        model, added = definition["model"], definition.get("added_tokens") or []
        found = model["vocab"]
        ids = dict(found) if isinstance(found, dict) else {token: index for index, (token, _) in enumerate(found)}
        ids |= {token["content"]: token["id"] for token in added}
        special = frozenset(token["content"] for token in added if token.get("special"))
        sound = all(isinstance(index, int) and index >= 0 for index in ids.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(where, "is not a tokenizer.json of the tokenizers library") from error
    if not sound or len(set(ids.values())) != len(ids):
        raise _unreadable(where, "must give each token an id of its own", "write the tokenizer again")
    return Vocabulary(ids, special, _cut(definition), definition, text)


def _unreadable(where: str, expected: str, remedy: str = "") -> InvalidInput:
    return InvalidInput("tokenizer", [Problem("tokenizer.json", where, expected, remedy)])


def _cut(definition: Mapping[str, Any]) -> str:
    """Hash of what cuts text: not of ids, nor of what is at its default, which versions of the library leave out."""
    model = {name: value for name, value in definition["model"].items() if name != "vocab"}
    if "merges" in model:
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    kept = {"model": model} | {name: definition.get(name) for name in ("normalizer", "pre_tokenizer")}
    return hashlib.sha256(json.dumps(_without_defaults(kept), sort_keys=True).encode()).hexdigest()


def _without_defaults(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {name: _without_defaults(part) for name, part in value.items()}
        return {name: part for name, part in kept.items() if part not in (None, False, "", {})}
    return [_without_defaults(part) for part in value] if isinstance(value, list) else value


def relation(seed: Vocabulary, other: Vocabulary) -> Relation:
    """What another vocabulary is to the seed's, by the strings of the tokens; `identical`: by the ids as well."""
    if other.ids == seed.ids:
        return "identical"
    ours, theirs = seed.ids.keys(), other.ids.keys()
    if ours == theirs:
        return "reordered"
    if ours < theirs:
        return "superset"
    return "subset" if theirs < ours else "different"


def vocabulary_problems(
    seed: Vocabulary, seed_rows: int, others: Mapping[str, tuple[Vocabulary, int]], rule: Rule
) -> Iterator[Problem]:
    """What keeps the models from having one vocabulary by this rule. others: model -> its vocabulary, its rows."""
    for name, (own, rows) in {"": (seed, seed_rows), **others}.items():
        if own.size > rows:
            expected = f"the model has rows for {rows} tokens"
            yield Problem(name, f"a tokenizer of {own.size} ids", expected, "it is another model's tokenizer")
    for name, (own, rows) in others.items():
        if rule == "refuse":
            yield from _refused(name, seed, seed_rows, own, rows)
        elif rule == "union" and own.ids.keys() - seed.ids.keys() and not seed.has_table:
            kind = seed.definition["model"].get("type", "such")
            expected = f"tokens cannot be added to a {kind} tokenizer"
            yield Problem(name, "tokens that the seed's tokenizer lacks", expected, "say vocabulary: seed")


def _refused(name: str, seed: Vocabulary, seed_rows: int, own: Vocabulary, rows: int) -> Iterator[Problem]:
    remedy = "say vocabulary: union (the tokens of all) or vocabulary: seed (the seed's)"
    found = relation(seed, own)
    if found == "identical" and own.cut == seed.cut:
        if rows != seed_rows:
            yield Problem(name, f"{rows} rows for the same tokens", f"must be as the seed's, {seed_rows}", remedy)
        return
    words = {
        "identical": "its tokens are the seed's, but it cuts text in another way",
        "reordered": "its tokens are the seed's in another order",
        "superset": f"it has {len(own.ids.keys() - seed.ids.keys())} tokens more than the seed",
        "subset": f"it lacks {len(seed.ids.keys() - own.ids.keys())} of the seed's tokens",
        "different": f"it shares {len(seed.ids.keys() & own.ids.keys())} of the seed's {len(seed.ids)} tokens",
    }
    yield Problem(name, f"tokenizer: {found}", words[found], remedy)


@dataclass(frozen=True)
class Rows:
    """Where the rows of one model's embedding come from. own [V]: the row of its own for each id of the common
    vocabulary, or `OWN_ROW`; of such an id `others` says of which rows of which models it is the mean."""

    own: Sequence[int]
    others: Mapping[int, tuple[tuple[str, int], ...]]
    held: int
    """Rows that the model has."""

    @property
    def as_they_are(self) -> bool:
        return not self.others and list(self.own) == list(range(self.held))


@dataclass(frozen=True)
class Common:
    """The vocabulary that all get. size: rows, with those that stand for no token. rows: model -> `Rows`, seed first.

    added: tokens that the seed lacks, with their ids.
    """

    rule: Rule
    size: int
    ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, int] = field(repr=False)
    rows: Mapping[str, Rows] = field(repr=False)


def common_vocabulary(models: Mapping[str, tuple[Vocabulary, int]], rule: Rule) -> Common:
    """One vocabulary for models without `vocabulary_problems`. models: name -> (vocabulary, rows), the seed first.

    The seed's tokens keep their ids. Of a token that a model does not know, its row is the mean of those of the models
    that know it (`union`), or the seed's (`seed`). A row that stands for no token stays, and is the seed's where the
    model has none: it takes part in every softmax.
    """
    first, *rest = models
    seed, seed_rows = models[first]
    added: dict[str, int] = {}
    if rule == "union":
        for name in rest:
            for _, token in sorted(models[name][0].by_id.items()):
                if token not in seed.ids:
                    added.setdefault(token, seed.size + len(added))
    ids = {**seed.ids, **added}
    size = max(seed_rows, seed.size + len(added))
    by_id = {index: token for token, index in ids.items()}
    known = models if rule == "union" else {first: models[first]}
    rows = {
        name: Rows(range(size), {}, held) if held == size and own.ids == ids else _rows((own, held), known, by_id, size)
        for name, (own, held) in models.items()
    }
    return Common(rule, size, ids, added, rows)


def _rows(
    model: tuple[Vocabulary, int],
    known: Mapping[str, tuple[Vocabulary, int]],
    by_id: Mapping[int, str],
    size: int,
) -> Rows:
    """known: the models whose rows stand for a token that the model does not know, the seed first."""
    vocabulary, held = model
    first = next(iter(known))
    rows: list[int] = []
    others: dict[int, tuple[tuple[str, int], ...]] = {}
    for index in range(size):
        token = by_id.get(index)
        if token is not None:
            row = vocabulary.ids.get(token, OWN_ROW)
            if row == OWN_ROW:
                others[index] = tuple((name, own.ids[token]) for name, (own, _) in known.items() if token in own.ids)
        else:
            row = index if index < held and index not in vocabulary.by_id else OWN_ROW
            if row == OWN_ROW:
                others[index] = ((first, index),)
        rows.append(row)
    return Rows(rows, others, held)


def common_definition(models: Mapping[str, Vocabulary], common: Common) -> str:
    """The `tokenizer.json` of the common vocabulary: the seed's, as it is where nothing is added.

    An added token that is an added token where it comes from is cut out of the text as it is there; any other has its
    id and its row, and stands in no text, since the seed's merges do not make it.
    """
    seed = next(iter(models.values()))
    if not common.added:
        return seed.text
    definition = json.loads(seed.text)
    # The library numbers added tokens by itself unless the table knows them, and would number them otherwise.
    table = {**definition["model"]["vocab"], **common.ids}
    definition["model"]["vocab"] = dict(sorted(table.items(), key=lambda item: item[1]))
    entries: dict[str, dict[str, Any]] = {}
    for vocabulary in models.values():
        for entry in vocabulary.definition.get("added_tokens") or []:
            entries.setdefault(entry["content"], {**entry, "id": common.ids[entry["content"]]})
    definition["added_tokens"] = sorted(entries.values(), key=lambda entry: entry["id"])
    return json.dumps(definition, ensure_ascii=False, indent=2)
