"""A look at a data set of the Hugging Face hub, or a folder that the same library opens: splits, columns, sizes.

What the hub says about it is asked for, not its rows. No code of a data set is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput, Problem
from infra.hub_text import SAVED, is_folder, require_library, resolve_commit
from infra.text_looking import LookedAt

SPLIT = "train"


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of the library wrote this folder."""
    return any((Path(folder).expanduser() / name).is_file() for name in SAVED)


def look_at_hub(path: str, name: str | None = None) -> tuple[LookedAt, str]:
    """path: a name on the hub, or a folder as `hub_text.is_folder` has it; name: of a subset. The split too.

    Raises InvalidInput, with the subsets or columns that there are where one is missing.
    """
    require_library(path)
    commit = None if is_folder(path) else resolve_commit(path, "main")
    try:
        splits, features = _saved(path) if is_folder(path) and is_saved(path) else _described(path, name, commit)
    except Exception as error:  # the library raises whatever its readers raise
        raise _invalid(path, f"cannot be looked at: {_first_line(error)}") from error
    split = SPLIT if SPLIT in splits or not splits else next(iter(splits))
    columns = [column for column, kind in features.items() if _may_be_text(kind)]
    if not columns:
        raise _invalid(path, f"has no column of text; it has {', '.join(features) or 'none that it tells of'}")
    each = splits.get(split)
    return LookedAt("hf", columns=dict(zip(columns, _sizes(columns, each), strict=True))), split


def _sizes(columns: list[str], n_bytes: int | None) -> Iterator[int | None]:
    """Of all columns together more is not known."""
    for _ in columns:
        yield n_bytes or None


def _saved(path: str) -> tuple[dict[str, int | None], Mapping[str, Any]]:
    import datasets

    found = datasets.load_from_disk(str(Path(path).expanduser()))
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {SPLIT: found}
    return {name: int(each.data.nbytes) for name, each in splits.items()}, next(iter(splits.values())).features


def _described(path: str, name: str | None, commit: str | None) -> tuple[dict[str, int | None], Mapping[str, Any]]:
    import datasets

    place = str(Path(path).expanduser()) if is_folder(path) else path
    info = datasets.load_dataset_builder(place, name, revision=commit).info
    splits = {str(split): each.num_bytes or None for split, each in (info.splits or {}).items()}
    features = info.features
    if features is None:  # it says nothing about itself: the first row does
        rows = datasets.load_dataset(place, name, revision=commit, streaming=True)
        split = SPLIT if SPLIT in rows else next(iter(rows))
        splits = splits or dict.fromkeys(map(str, rows))
        row = next(iter(rows[split]))
        features = {column: type(value) for column, value in row.items()}
    return splits, features


def _may_be_text(kind: Any) -> bool:
    """Strings, and lists of messages."""
    if isinstance(kind, type):
        return issubclass(kind, str | list)
    inner = getattr(kind, "feature", None)
    return getattr(kind, "dtype", None) in ("string", "large_string") or isinstance(inner, Mapping)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _invalid(path: str, expected: str, remedy: str = "") -> InvalidInput:
    return InvalidInput("source", [Problem("path", path, expected, remedy)])
