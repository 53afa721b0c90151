"""Documents from a data set on the Hugging Face hub, identified by the commit that its revision stands for.

The libraries are imported where they are used: they take seconds, and most runs need no hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document

COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_commit(path: str, revision: str) -> str:
    """The commit behind a branch or tag; a commit is itself, without the network. Raises InvalidInput."""
    if COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
    except Exception as error:  # wrong names, missing rights and the network's many errors
        remedy = "check the name, HF_TOKEN and the network; a revision of 40 hex digits needs no look-up"
        expected = f"revision {revision!r} cannot be resolved: {_first_line(error)}"
        raise InvalidInput("source", [Problem("path", path, expected, remedy)]) from error
    assert commit is not None, f"the hub gave no commit for {path}@{revision}"
    return commit


def read_hub(spec: Mapping[str, Any]) -> Iterator[Document]:
    """Rows of one split, in the data set's order. Raises InvalidInput."""
    import datasets

    path, split, column = spec["path"], spec["split"], spec["column"]
    commit = resolve_commit(path, spec["revision"])
    try:
        rows = datasets.load_dataset(path, revision=commit, split=split)
    except Exception as error:  # the library raises whatever its readers raise
        expected = f"split {split!r} cannot be loaded: {_first_line(error)}"
        raise InvalidInput("source", [Problem("path", path, expected)]) from error
    if column not in rows.column_names:
        expected = f"{path} has no such column; it has {', '.join(rows.column_names)}"
        raise InvalidInput("source", [Problem("column", column, expected)])
    for number, text in enumerate(rows[column]):
        if not isinstance(text, str):
            expected = f"row {number} must be a string, not {type(text).__name__}"
            raise InvalidInput("source", [Problem("column", column, expected)])
        yield Document(text, f"{path}:{number}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
