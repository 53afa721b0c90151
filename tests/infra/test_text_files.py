"""Files as people have them: packed, many, cut short, not fetched; each disappointment named with its place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bam_core.errors import InvalidInput
from bam_core.protocols import Tally
from infra import text_rows
from infra.sources import TextSources, absolute_path

SOURCES = TextSources()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PACK = {"gzip": gzip.compress, "zstd": lambda data: pa.compress(data, "zstd", asbytes=True)}


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def texts(spec: dict[str, Any], tally: Tally | None = None) -> list[str]:
    return [document.text for document in SOURCES.read(spec, tally)]


def problems(spec: dict[str, Any], *, read: bool = False) -> list[Any]:
    with pytest.raises(InvalidInput) as caught:
        list(SOURCES.read(spec)) if read else SOURCES.digest(spec)
    return list(caught.value.problems)


# packed files


@pytest.mark.parametrize("codec", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.bin"])
def test_packed_lines_and_texts_are_read_whatever_they_are_called(tmp_path, codec, name):
    rows = [{"text": f"né {number}"} for number in range(500)]
    path = tmp_path / name
    path.write_bytes(PACK[codec](lines(*rows)))
    assert texts({"kind": "jsonl", "path": str(path)}) == [row["text"] for row in rows]
    path.write_bytes(PACK[codec]("one\ntwo é".encode()))
    assert texts({"kind": "text", "path": str(path)}) == ["one\ntwo é"]


def test_files_that_were_packed_one_behind_the_other_are_one_file(tmp_path):
    for codec, pack in PACK.items():
        (tmp_path / codec).write_bytes(pack(lines({"text": "one"})) + pack(lines({"text": "two"})))
        assert texts({"kind": "jsonl", "path": str(tmp_path / codec)}) == ["one", "two"]


def test_a_packed_text_is_another_identity_and_moving_it_is_none(tmp_path):
    data = lines({"text": "one"})
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    (tmp_path / "b").write_bytes(gzip.compress(data, mtime=0))
    plain, packed, moved = (
        SOURCES.digest({"kind": "jsonl", "path": f"{tmp_path}/{name}"}) for name in ("a.jsonl", "a.jsonl.gz", "b")
    )
    assert plain != packed == moved


@pytest.mark.parametrize("codec", PACK)
def test_a_packed_file_that_is_cut_is_named_with_the_line(tmp_path, codec):
    rows = [{"text": f"{number} {number**9}"} for number in range(20_000)]
    whole = PACK[codec](lines(*rows))
    (tmp_path / "a.jsonl").write_bytes(whole[: len(whole) * 3 // 4])
    (found,) = problems({"kind": "jsonl", "path": f"{tmp_path}/a.jsonl"}, read=True)
    place, _, line = found.value.rpartition(":")
    assert place == f"{tmp_path}/a.jsonl"
    assert 1 < int(line) < 20_000
    assert "is cut or damaged" in found.expected
    assert found.remedy == "copy it again"
    (found,) = problems({"kind": "text", "path": f"{tmp_path}/a.jsonl"})
    assert found.value == f"{tmp_path}/a.jsonl"


def test_a_packed_file_of_any_size_streams_by(tmp_path):
    with gzip.open(tmp_path / "a.gz", "wb", compresslevel=1) as file:
        for number in range(24):
            file.write(lines({"text": f"{number}" + "x" * 2**20}))
    tracemalloc.start()
    try:
        assert sum(1 for _ in SOURCES.read({"kind": "jsonl", "path": f"{tmp_path}/a.gz"})) == 24
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_packed_document_longer_than_memory_is_refused_before_it_is_there(tmp_path, monkeypatch):
    memory = type("Memory", (), {"available": text_rows.BYTES_PER_BYTE * 3 * 2**20})
    monkeypatch.setattr("infra.text_rows.psutil.virtual_memory", lambda: memory)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(lines({"text": "fine"}, {"text": "0" * 2**23})))
    (found,) = problems({"kind": "jsonl", "path": f"{tmp_path}/bomb.gz"}, read=True)
    assert found.value == f"{tmp_path}/bomb.gz:2"
    assert "longer than memory has room for" in found.expected


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path, kind):
    (tmp_path / "a").write_bytes(POINTER)
    (found,) = problems({"kind": kind, "path": f"{tmp_path}/a"})
    assert (found.path, found.value, found.remedy) == ("path", f"{tmp_path}/a", "git lfs pull")


# several files


def test_a_list_of_paths_is_all_of_their_files_once(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(lines({"text": name}))
    paths = [f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"]
    spec = {"kind": "jsonl", "path": paths}
    assert sorted(texts(spec)) == ["a", "b", "c"]
    assert SOURCES.digest(spec) == SOURCES.digest({"kind": "jsonl", "path": f"{tmp_path}/*.jsonl"})


def test_paths_of_a_list_are_made_absolute_one_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["a/*.jsonl", "s3://bucket/b", "/c"]
    assert absolute_path({"kind": "jsonl", "path": paths}) == [f"{tmp_path}/a/*.jsonl", "s3://bucket/b", "/c"]


def test_every_path_that_is_none_is_named(tmp_path):
    found = problems({"kind": "jsonl", "path": [f"{tmp_path}/none", f"{tmp_path}/*.x", f"{tmp_path}"]})
    assert [problem.value for problem in found] == [f"{tmp_path}/none", f"{tmp_path}/*.x", f"{tmp_path}"]
    (found,) = problems({"kind": "jsonl", "path": []})
    assert "or a list of them" in found.expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_that_the_third_file_lacks_shows_at_once(tmp_path, kind):
    for number, row in enumerate([{"text": "x"}, {"text": "y"}, {"body": "z", "title": "t"}]):
        path = tmp_path / f"{number}"
        if kind == "jsonl":
            path.write_bytes(lines(row))
        else:
            pq.write_table(pa.table({name: [value] for name, value in row.items()}), path)
    (found,) = problems({"kind": kind, "path": f"{tmp_path}/*"})
    assert (found.path, found.value) == ("column", "text")
    assert str(tmp_path / "2") in found.expected
    assert "it has body, title" in found.expected


# templates, filters and caps, in both forms of tables


ROWS = [{"q": f"Q{n}", "a": f"A{n}" * n, "meta": {"lang": "en" if n % 2 else "de"}, "score": n} for n in range(1, 9)]
SPEC = {"template": "{q}: {a}", "filter": {"meta.lang": "en", "score": {"min": 3}}, "max_chars": 20}


def written(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / kind
    if kind == "jsonl":
        path.write_bytes(lines(*ROWS))
    else:
        pq.write_table(pa.Table.from_pylist([{**row, "unread": 1} for row in ROWS]), path)
    return {"kind": kind, "path": str(path)}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_table_is_read_by_template_and_filter(tmp_path, kind):
    tally = Tally()
    assert texts(written(tmp_path, kind) | SPEC, tally) == ["Q3: A3A3A3", "Q5: A5A5A5A5A5", "Q7: A7A7A7A7A7A7A7"]
    assert tally.dropped == {"filter.meta.lang": 4, "filter.score": 1}
    assert texts(written(tmp_path, kind) | SPEC | {"max_documents": 1}) == ["Q3: A3A3A3"]


def test_how_a_text_is_read_is_a_part_of_its_identity(tmp_path):
    spec = written(tmp_path, "jsonl")
    ways = [{"column": "q"}, SPEC, {**SPEC, "max_chars": 12}, {**SPEC, "max_documents": 1}, {"template": "{q}"}]
    sampled = [{**SPEC, "max_documents": 1, "sample": number} for number in (0, 1)]
    assert len({SOURCES.digest(spec | way) for way in [*ways, *sampled]}) == 7


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"template": "{q} {answer}"}, "template", "has no field 'answer'; it has q, a"),
        ({"template": "{q} {meta}"}, "path", "'meta' must be a string, not dict"),
        ({"template": "{q} {}"}, "template", "names no field"),
        ({"template": None, "column": "score"}, "path", "'score' must be a string, not int"),
        ({"template": None, "column": "quest"}, "column", "has no such column"),
        ({"filter": {"language": "en"}}, "filter", "it has q, a, meta, score"),
        ({"filter": {"q": {"min": 1}}}, "path", "'q' must be a number to be compared with 1, not str"),
        ({"column": "q"}, "column", "both say what the text is"),
    ],
)
def test_what_does_not_fit_the_rows_shows_at_once(tmp_path, kind, change, path, expected):
    (found,) = problems({**written(tmp_path, kind), **SPEC, **change})
    assert found.path == path
    assert expected in found.expected


def test_filters_that_leave_nothing_say_what_each_took(tmp_path):
    (found,) = problems(written(tmp_path, "jsonl") | SPEC | {"min_chars": 19})
    assert found.expected == (
        "holds no text: filter.meta.lang leaves out 4, filter.score leaves out 1, min_chars leaves out 3"
    )


def test_conversations_of_a_table_are_text(tmp_path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pq.write_table(pa.Table.from_pylist([{"messages": chat}]), tmp_path / "chat.parquet")
    (tmp_path / "chat.jsonl").write_bytes(lines({"messages": chat}))
    for kind in ("parquet", "jsonl"):
        spec = {"kind": kind, "path": f"{tmp_path}/chat.{kind}", "column": "messages"}
        assert texts(spec) == ["user: Hi\n\nassistant: Hello"]


# several sources


def test_several_sources_are_read_one_after_the_other_each_with_its_own_keys(tmp_path):
    spec = {
        "kind": "several",
        "sources": [written(tmp_path, "jsonl") | SPEC, written(tmp_path, "parquet") | {"column": "q"}],
    }
    tally = Tally()
    found = list(SOURCES.read(spec, tally))
    assert [document.part for document in found] == [0] * 3 + [1] * 8
    assert [part.read for part in tally.parts] == [8, 8]
    assert [part.kept for part in tally.parts] == [3, 8]
    turned = {"kind": "several", "sources": spec["sources"][::-1]}
    assert SOURCES.digest(spec) != SOURCES.digest(turned), "which is first decides whose a copy is"


def test_what_is_wrong_with_any_of_several_is_said_at_once(tmp_path):
    wrong = {"kind": "jsonl", "path": f"{tmp_path}/none"}
    fine = written(tmp_path, "jsonl") | {"column": "q"}
    found = problems({"kind": "several", "sources": [wrong, fine, {"kind": "jsnol"}, {**fine, "column": "x"}]})
    assert [problem.path for problem in found] == ["0.path", "2.kind", "3.column"]
