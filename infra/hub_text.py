"""Rows of a data set on the Hugging Face hub, or of a folder that the same library opens.

A data set is identified by the commit that its revision stands for, a folder by the bytes of its files. Offline
(`HF_HUB_OFFLINE=1`) a branch is the commit that the cache last had it at, and what was prepared from another commit
is refused: the library takes what it prepared last. No code of a data set is ever run.

The libraries are imported where they are used: they take seconds, and most runs need no hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bam_core.data.picking import Picker, Placed
from bam_core.errors import InvalidInput, Problem, install_extra
from infra.text_files import find_files

COMMIT = re.compile(r"[0-9a-f]{40}")
SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote: of several splits, of one."""

Spec = Mapping[str, Any]


class Rows(Protocol):
    """A split as the library gives it: `Dataset`, or `IterableDataset` where it streams."""

    @property
    def column_names(self) -> list[str] | None: ...
    def select_columns(self, column_names: list[str]) -> Rows: ...
    def __iter__(self) -> Iterator[dict[str, Any]]: ...


def is_folder(path: str) -> bool:
    """Whether a path means a folder of this machine; a name on the hub never begins so."""
    return path.startswith((".", "/", "~"))


def identity(spec: Spec) -> list[str]:
    """What the data set's content is known by. Raises InvalidInput."""
    path = _path(spec)
    require_library(path)
    if not is_folder(path):
        return [resolve_commit(path, spec["revision"])]
    folder = _folder(path)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise _invalid(path, "is an empty folder")
    names = [file.relative_to(folder).as_posix() for file in files]  # names of files say which split they are of
    return [f"{name} {find_files(str(file))[0].sha256()}" for name, file in zip(names, files, strict=True)]


def resolve_commit(path: str, revision: str) -> str:
    """The commit behind a branch or tag; a commit is itself, without the network. Raises InvalidInput."""
    if COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
    except Exception as error:  # wrong names, missing rights and the network's many errors
        commit = _commit_in_cache(path, revision) if _is_offline(path) else None
        if commit is None:
            remedy = "check the name, HF_TOKEN and the network; a revision of 40 hex digits needs no look-up"
            raise _invalid(path, f"revision {revision!r} cannot be resolved: {_first_line(error)}", remedy) from error
    assert commit is not None, f"the hub gave no commit for {path}@{revision}"
    return commit


def _commit_in_cache(path: str, revision: str) -> str | None:
    """As the hub's cache last knew it; None where it does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True)).name
    except LocalEntryNotFoundError:
        return None


def read_rows(spec: Spec, picker: Picker) -> Iterator[Placed]:
    """Rows of one split, in the data set's order, of the columns that are asked for.

    Raises InvalidInput, also midway.
    """
    path, split, streams = _path(spec), spec["split"], spec["streaming"]
    require_library(path)
    if streams and not re.fullmatch(r"\w[\w.-]*", split):
        remedy = "max_documents reads the first ones only"
        raise InvalidInput("source", [Problem("split", split, "streaming reads whole splits", remedy)])
    try:
        rows = _saved(path, split) if _is_saved(path) else _opened(spec, path, split, streams)
    except InvalidInput:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        remedy = "of a data set that is not in the cache nothing can be read offline" if _is_offline(path) else ""
        raise _invalid(path, f"split {split!r} cannot be loaded: {_first_line(error)}", remedy) from error
    columns = picker.columns(rows.column_names, path) if rows.column_names else None  # a stream may not know them
    rows = rows.select_columns(columns) if columns else rows
    try:
        for number, row in enumerate(rows):
            yield Placed(row, f"{path}:row {number}", f"{path}:{number}")
    except InvalidInput:
        raise
    except Exception as error:
        raise _invalid(path, f"split {split!r} cannot be read on: {_first_line(error)}") from error


def require_library(path: str) -> None:
    """Before anything is planned: a run would end where it reads the text. Raises InvalidInput."""
    if find_spec("datasets") is None:
        raise _invalid(path, "needs the package datasets, which is an extra", install_extra("hf"))


def _opened(spec: Spec, path: str, split: str, streams: bool) -> Rows:
    import datasets

    local = is_folder(path)
    place = str(_folder(path)) if local else path
    commit = None if local else resolve_commit(path, spec["revision"])
    builder = datasets.load_dataset_builder(place, spec["name"], revision=commit)
    if not local and builder.hash != commit:
        expected = f"is not in the cache as of commit {commit}, only as of {builder.hash}, and the hub is not reached"
        raise _invalid(path, expected, "give that revision, or let the hub be reached once")
    if not streams:
        builder.download_and_prepare()
    opened: Rows = builder.as_streaming_dataset(split=split) if streams else builder.as_dataset(split=split)
    return opened


def _is_saved(path: str) -> bool:
    return is_folder(path) and any((Path(path).expanduser() / name).is_file() for name in SAVED)


def _saved(path: str, split: str) -> Rows:
    """A split of what `save_to_disk` wrote, which may be one split without a name."""
    import datasets

    found = datasets.load_from_disk(str(_folder(path)))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise _invalid(path, f"has no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    rows: Rows = found
    return rows


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise _invalid(path, "is no folder", "a name on the hub is written as owner/name, without a path before it")
    return folder


def _path(spec: Spec) -> str:
    path = spec["path"]
    if not isinstance(path, str) or not path:
        raise _invalid(path, "must be the name of a data set, or a folder")
    return path


def _is_offline(path: str) -> bool:
    import huggingface_hub

    return not is_folder(path) and bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _invalid(path: Any, expected: str, remedy: str = "") -> InvalidInput:
    return InvalidInput("source", [Problem("path", path, expected, remedy)])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
