"""What is in the files and data sets that somebody names: of which kind, how much text, and in which columns.

A look, not a reading: names, sizes, and the first rows of a file. What is read and how is for `infra/sources.py`; all
that a recipe's own reading would refuse in what is looked at is refused here with the same words.
"""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bam_core.data.fields import as_text
from bam_core.data.picking import Picker
from bam_core.errors import InvalidInput, Problem
from infra.text_files import CHUNK_BYTES, Damaged, TextFile, find_files
from infra.text_rows import read_json_lines

N_ROWS = 200
N_FOOTERS = 16
UNPACKED = 3
"""Text in a packed file is about so many times as long."""
PACKED = (".gz", ".gzip", ".zst", ".zstd")
KINDS = dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "jsonl") | dict.fromkeys(
    (".parquet", ".pq"), "parquet"
)
_TABLES = "python -c \"import pyarrow.csv as c, pyarrow.parquet as p; p.write_table(c.read_csv('{0}'), '{0}.parquet')\""
_NO_TEXT = "write its text to .txt or .jsonl first"
OTHERS = {
    ".csv": f"make it Parquet: {_TABLES}",
    ".tsv": "make it Parquet, or JSON lines",
    ".xlsx": "make it Parquet, or JSON lines",
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".epub"), _NO_TEXT),
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz"), "unpack it; gzip and zstd are read as they are"
    ),
}
"""What people keep text in and no kind of source reads -> a remedy."""


@dataclass(frozen=True)
class LookedAt:
    """columns: those with text -> about so many bytes of it, None where nobody knows; empty where a file is a document.

    n_bytes: of text, about, where a file is a document.
    """

    kind: str
    files: tuple[str, ...] = ()
    columns: Mapping[str, int | None] = field(default_factory=dict)
    n_bytes: int | None = None


def look_at_files(path: str | Sequence[str]) -> LookedAt:
    """path: as in a recipe. Raises InvalidInput with what is wrong."""
    files = find_files(path, looking=True)
    kind = _kind(path, files)
    sizes = [int(file.fs.size(file.path) or 0) for file in files]
    if not sum(sizes):
        raise _invalid(path, "holds no text: every file of it is empty")
    n_bytes = sum(size * (UNPACKED if _is_packed(file) else 1) for file, size in zip(files, sizes, strict=True))
    names = tuple(file.path for file in files)
    with_bytes = [file for file, size in zip(files, sizes, strict=True) if size]
    if kind == "parquet":
        return LookedAt(kind, names, _parquet_columns(path, with_bytes, sum(sizes)))
    if kind == "jsonl":
        return LookedAt(kind, names, _json_columns(path, with_bytes, n_bytes))
    for file in {id(file): file for file in (with_bytes[0], with_bytes[-1])}.values():
        _require_utf8(file)
    return LookedAt(kind, names, n_bytes=n_bytes)


def pattern_of(folder: str) -> list[str]:
    """Paths, as of a recipe, that match the files of a folder: a glob for each ending. Raises InvalidInput."""
    top = Path(folder).expanduser()
    files = [file for file in sorted(top.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(top))]
    if not files:
        raise _invalid(folder, "is a folder without files")
    between = "/**/*" if any(file.parent != top for file in files) else "/*"
    endings = sorted({_ending(file.name) for file in files})
    start = glob.escape(folder.rstrip("/") or "/")
    return [f"{start}{between}"] if "" in endings else [f"{start}{between}{ending}" for ending in endings]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _ending(name: str) -> str:
    """`.jsonl.gz` of `a.b.jsonl.gz`; empty for a name without one."""
    packed = next((end for end in PACKED if name.lower().endswith(end)), "")
    return Path(name[: len(name) - len(packed)]).suffix + name[len(name) - len(packed) :]


def _plain_ending(name: str) -> str:
    ending = _ending(name).lower()
    return next((ending.removesuffix(packed) for packed in PACKED if ending.endswith(packed)), ending)


def _is_packed(file: TextFile) -> bool:
    return file.name.lower().endswith(PACKED)


def _kind(path: Any, files: Iterable[TextFile]) -> str:
    """The one kind of all files. Raises InvalidInput."""
    counts: dict[str, int] = {}
    for file in files:
        ending = _plain_ending(file.name)
        if ending in OTHERS:
            raise _invalid(file.path, f"no source reads {ending}", OTHERS[ending].format(file.path))
        kind = KINDS.get(ending, "text")
        counts[kind] = counts.get(kind, 0) + 1
    if len(counts) > 1:
        shown = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
        raise _invalid(path, f"holds files of several kinds: {shown}", "name those of one kind, such as DIR/*.jsonl")
    return next(iter(counts))


def _require_utf8(file: TextFile) -> None:
    """Of what the file begins with."""
    with file.open_unpacked() as stream:
        try:
            codecs.getincrementaldecoder("utf-8-sig")().decode(stream.read(CHUNK_BYTES))
        except UnicodeDecodeError as error:
            expected = f"must be UTF-8: {error.reason} at byte {error.start}"
            raise _invalid(file.path, expected, "iconv -f ENCODING -t utf-8 FILE > NEW") from error
        except Damaged as error:
            raise _invalid(file.path, f"is cut or damaged, here or soon after: {error}", "copy it again") from error


def _json_columns(path: Any, files: Iterable[TextFile], n_bytes: int) -> dict[str, int | None]:
    """From the first rows of the first file that has any."""
    for file in files:
        if rows := [placed.row for placed in islice(_json_rows(file), N_ROWS)]:
            whole = sum(len(json.dumps(row, ensure_ascii=False).encode(errors="replace")) + 1 for row in rows)
            return _text_columns(path, rows, n_bytes / whole)
    raise _invalid(path, "holds no text: there are empty lines alone")


def _json_rows(file: TextFile) -> Iterator[Any]:
    with file.open_unpacked() as stream:
        try:
            is_list = stream.read(CHUNK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        except Damaged:  # reading says it better
            is_list = False
    if is_list:
        remedy = f"jq -c '.[]' {file.path} > {Path(file.name).stem}.jsonl"
        raise _invalid(file.path, "is one list of JSON, and a line must be a document", remedy)
    return read_json_lines(file, Picker.of({}))


def _text_columns(path: Any, rows: Sequence[Mapping[str, Any]], times: float) -> dict[str, int | None]:
    """times: all rows are so many times these."""
    found: dict[str, int] = {}
    for row in rows:
        for name, value in _fields(row):
            text = _as_text(value)
            if text is not None:
                found[name] = found.get(name, 0) + len(text.encode())
    if not any(found.values()):
        there = ", ".join(dict.fromkeys(name for row in rows for name in row)) or "none"
        raise _invalid(path, f"has no column of text in its first rows; it has {there}")
    return {name: int(size * times) for name, size in found.items() if size}


def _fields(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Each with its path."""
    for name, value in row.items():
        yield f"{before}{name}", value
        if isinstance(value, Mapping) and before.count(".") < 3:
            yield from _fields(value, f"{before}{name}.")


def _as_text(value: Any) -> str | None:
    try:
        return as_text(value, "", "")
    except InvalidInput:
        return None


def _parquet_columns(path: Any, files: Sequence[TextFile], all_bytes: int) -> dict[str, int | None]:
    """From the footers of some files: what a column is when unpacked."""
    looked, seen, found = files[:N_FOOTERS], 0, dict[str, int]()
    for file in looked:
        seen += int(file.fs.size(file.path) or 0)
        with file.open_data() as stream:
            try:
                table = pq.ParquetFile(stream)
                names = {field.name for field in table.schema_arrow if _may_be_text(field.type)}
                for name, size in _column_bytes(table.metadata):
                    if name in names:
                        found[name] = found.get(name, 0) + size
                if not names:
                    there = ", ".join(table.schema_arrow.names)
                    raise _invalid(file.path, f"has no column of text; it has {there}")
            except (pa.ArrowException, OSError) as error:
                raise _invalid(file.path, f"must be a Parquet file: {error}") from error
    return {name: int(size * all_bytes / max(1, seen)) for name, size in found.items()}


def _may_be_text(kind: pa.DataType) -> bool:
    """Strings, and lists of messages."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or (is_list and pa.types.is_struct(kind.value_type))
    )


def _column_bytes(metadata: Any) -> Iterator[tuple[str, int]]:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            yield column.path_in_schema.partition(".")[0], int(column.total_uncompressed_size)


def _invalid(path: Any, expected: str, remedy: str = "") -> InvalidInput:
    shown = path[0] if isinstance(path, list) and len(path) == 1 else path
    return InvalidInput("source", [Problem("path", shown, expected, remedy)])
