"""Sources: identity by content, text that repeats to the bit, and every disappointment named with a place."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.errors import InvalidInput
from infra import text_rows
from infra.sources import KINDS, TextSources

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""

SOURCES = TextSources()
REAL_TEXT = Path(__file__).parents[3] / "shared" / "data"


def texts(spec: dict) -> list[str]:
    return [document.text for document in SOURCES.read(spec)]


def write_json_lines(path: Path, *texts: str, column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def problem_of(spec: dict, read: bool = False):
    """The one problem that this spec has."""
    with pytest.raises(InvalidInput) as caught:
        list(SOURCES.read(spec)) if read else SOURCES.digest(spec)
    (problem,) = caught.value.problems
    return problem


# files that somebody brings


def test_each_file_kind_reads_what_it_holds(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo é", encoding="utf-8")
    assert texts({"kind": "text", "path": str(tmp_path / "a.txt")}) == ["one\ntwo é"]
    write_json_lines(tmp_path / "a.jsonl", "one\ntwo", "é", column="body")
    assert texts({"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "column": "body"}) == ["one\ntwo", "é"]
    write_parquet(tmp_path / "a.parquet", text=["one\ntwo", "é"], other=[1, 2])
    assert texts({"kind": "parquet", "path": str(tmp_path / "a.parquet")}) == ["one\ntwo", "é"]


def test_empty_lines_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    assert texts({"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}) == ["one", "two"]


def test_parquet_of_many_batches_and_encodings_is_read_whole(tmp_path):
    many = [f"text {number % 10}" for number in range(3000)]
    write_parquet(tmp_path / "a.parquet", text=pa.array(many).dictionary_encode())
    assert texts({"kind": "parquet", "path": str(tmp_path / "a.parquet")}) == many


def test_documents_say_where_they_came_from_without_the_folder(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", "one", "two")
    documents = SOURCES.read({"kind": "jsonl", "path": str(tmp_path / "a.jsonl")})
    assert [document.source for document in documents] == ["a.jsonl:1", "a.jsonl:2"]


@pytest.mark.parametrize("make_uri", [str, lambda path: f"file://{path}", lambda path: f"{path.parent}/*.jsonl"])
def test_a_path_a_uri_and_a_glob_are_the_same_text(tmp_path, make_uri):
    path = write_json_lines(tmp_path / "a.jsonl", "one")
    spec = {"kind": "jsonl", "path": make_uri(path)}
    assert texts(spec) == ["one"]
    assert SOURCES.digest(spec) == SOURCES.digest({"kind": "jsonl", "path": str(path)})


def test_another_storage_is_read_through_its_scheme():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/domain/one.txt", b"one")
    memory.pipe("/domain/two.txt", b"two")
    try:
        assert sorted(texts({"kind": "text", "path": "memory://domain/*.txt"})) == ["one", "two"]
    finally:
        memory.rm("/domain", recursive=True)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("bracketed")
    (tmp_path / "a1.txt").write_text("other")
    assert texts({"kind": "text", "path": str(tmp_path / "a[1].txt")}) == ["bracketed"]


contents = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=5, unique=True)


@CALM
@given(contents=contents, data=st.data())
def test_names_and_order_of_files_change_nothing_and_one_byte_does(tmp_path_factory, contents, data):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for number, content in enumerate(contents):
        (one / f"{number}.txt").write_text(content)
    for number, content in enumerate(data.draw(st.permutations(contents))):
        (two / f"other{number}.txt").write_text(content)
        os.utime(two / f"other{number}.txt", (0, 0))
    specs = [{"kind": "text", "path": f"{folder}/*.txt"} for folder in (one, two)]
    assert SOURCES.digest(specs[0]) == SOURCES.digest(specs[1])
    assert texts(specs[0]) == texts(specs[1])
    changed = next(two.iterdir())
    changed.write_text(changed.read_text() + "c")
    assert SOURCES.digest(specs[0]) != SOURCES.digest(specs[1])


def test_the_same_bytes_read_in_another_way_are_another_identity(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "body": "two"}\n')
    digests = {
        SOURCES.digest({"kind": "jsonl", "path": str(path)}),
        SOURCES.digest({"kind": "jsonl", "path": str(path), "column": "body"}),
        SOURCES.digest({"kind": "text", "path": str(path)}),
    }
    assert len(digests) == 3
    assert SOURCES.digest({"kind": "jsonl", "path": str(path), "column": "text"}) in digests


def test_real_text_is_read_as_its_readme_says():
    if not REAL_TEXT.is_dir():
        pytest.skip("needs the real text in ../shared/data")
    documents = texts({"kind": "jsonl", "path": str(REAL_TEXT / "law" / "valid.jsonl")})
    assert len(documents) == 25
    assert sum(len(text.encode()) for text in documents) == 461_148


# files that disappoint


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_missing_files_are_named(tmp_path, kind):
    for name, expected in (("none.x", "no such file"), ("*.x", "matches no file"), ("", "is a folder")):
        path = f"{tmp_path}/{name}"
        problem = problem_of({"kind": kind, "path": path})
        assert (problem.path, problem.value) == ("path", path)
        assert expected in problem.expected


@pytest.mark.parametrize("path", ["nowhere://host/x", 3, None, "", "a\x00b"])
def test_a_path_that_cannot_be_one_is_named(path):
    problem = problem_of({"kind": "text", "path": path})
    assert (problem.path, problem.value) == ("path", path)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("secret")

    def refuse(*args, **kwargs):  # root may read everything, so permissions alone would not do
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", refuse)
    problem = problem_of({"kind": "text", "path": str(path)})
    assert problem.path == "path"
    assert "Permission denied" in problem.expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "cut', "must be one JSON object per line"),
        ("plain text", "must be one JSON object per line"),
        ("[" * 100_000, "must be one JSON object per line"),
        ("[1, 2]", "must be a JSON object, not list"),
        ('"text"', "must be a JSON object, not str"),
        ('{"text": null}', "'text' must be a string, not NoneType"),
        ('{"text": 3}', "'text' must be a string, not int"),
        ('{"text": "half \\ud800 a pair"}', "'text' must be valid Unicode"),
    ],
)
def test_a_broken_line_is_named_with_file_and_line(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    problem = problem_of({"kind": "jsonl", "path": str(path)}, read=True)
    assert (problem.path, problem.value) == ("path", f"{path}:3")
    assert expected in problem.expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_wrong_column_shows_at_once_and_names_those_that_there_are(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "jsonl":
        path.write_text('{"body": "x", "title": "y"}\n')
    else:
        write_parquet(path, body=["x"], title=["y"])
    problem = problem_of({"kind": kind, "path": str(path), "column": "text"})
    assert (problem.path, problem.value) == ("column", "text")
    assert "it has body, title" in problem.expected
    assert str(path) in problem.expected


def test_text_that_is_not_utf8_is_named_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    problem = problem_of({"kind": "text", "path": f"{tmp_path}/a.txt"})
    assert (problem.value, problem.expected) == (
        f"{tmp_path}/a.txt",
        "must be UTF-8: invalid continuation byte at byte 2",
    )
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "na\xefve"}\n')
    problem = problem_of({"kind": "jsonl", "path": f"{tmp_path}/a.jsonl"}, read=True)
    assert problem.value == f"{tmp_path}/a.jsonl:2"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "na\xefve"}\n'))
    assert "UTF-8" in problem_of({"kind": "jsonl", "path": f"{tmp_path}/a.jsonl.gz"}).expected


def test_parquet_that_is_none_is_cut_or_holds_no_text_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=["one", None], number=[1, 2])
    spec = {"kind": "parquet", "path": str(path)}
    assert problem_of(spec, read=True).value == f"{path}:row 1"
    assert "'number' must be a string, not int" in problem_of({**spec, "column": "number"}).expected
    for content in (b"", b"PAR1", path.read_bytes()[:-10], path.read_bytes()[10:]):
        path.write_bytes(content)
        problem = problem_of(spec)
        assert problem.value == str(path)
        assert "must be a Parquet file" in problem.expected


# specs that cannot be meant


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "json"}, r"kind: 'json': is not a kind of source \(did you mean 'jsonl'\?\)"),
        ({}, "kind: None: is not a kind of source"),
        ({"kind": "text"}, "path: is missing"),
        ({"kind": "hf"}, "path: is missing"),
        ({"kind": "text", "path": "x", "colunm": "y"}, "colunm: 'y': unknown key of text"),
        ({"kind": "jsonl", "path": "x", "colunm": "y"}, "did you mean 'column'"),
        ({"kind": "python-docs", "path": "x"}, "path: 'x': unknown key of python-docs"),
        ({"kind": "generated-math", "documents": 0}, "documents: 0: must be a whole number"),
        ({"kind": "generated-math", "documents": True}, "documents: True: must be a whole number"),
        ({"kind": "generated-math", "documents": "many"}, "documents: 'many': must be a whole number"),
    ],
)
def test_a_wrong_spec_is_refused_by_both_ways_in(spec, expected):
    for method in (SOURCES.digest, SOURCES.read):
        with pytest.raises(InvalidInput, match=expected):
            method(spec)


# the hub


def test_a_pinned_commit_is_an_identity_without_the_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    spec = {"kind": "hf", "path": "someone/data", "revision": "a" * 40}
    assert SOURCES.digest(spec) == SOURCES.digest({**spec, "path": "moved/data"})
    others = [{**spec, "revision": "b" * 40}, {**spec, "split": "test"}, {**spec, "column": "body"}]
    assert len({SOURCES.digest(other) for other in [spec, *others]}) == 4


def test_a_branch_is_the_commit_that_it_stands_for(monkeypatch):
    asked = []

    class Hub:
        def dataset_info(self, path, revision):
            asked.append((path, revision))
            return type("Info", (), {"sha": "a" * 40})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    branch, commit = {"kind": "hf", "path": "someone/data"}, {"kind": "hf", "path": "x", "revision": "a" * 40}
    assert SOURCES.digest(branch) == SOURCES.digest(commit)
    assert asked == [("someone/data", "main")]


def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(monkeypatch):
    class Hub:
        def dataset_info(self, path, revision):
            raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    problem = problem_of({"kind": "hf", "path": "someone/data"})
    assert problem.expected == "revision 'main' cannot be resolved: Name or service not known"
    assert "HF_TOKEN" in problem.remedy


@pytest.fixture
def local_dataset(tmp_path, monkeypatch):
    """`datasets` opens a folder like a data set of the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "data").mkdir()
    write_json_lines(tmp_path / "data" / "train.jsonl", "one", "two")
    yield {"kind": "hf", "path": str(tmp_path / "data"), "revision": "a" * 40, "split": "train", "column": "text"}
    datasets.enable_progress_bars()


def test_rows_of_a_data_set_are_documents(local_dataset):
    assert texts(local_dataset) == ["one", "two"]


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ({"column": "body"}, "column", "it has text"),
        ({"split": "nowhere"}, "path", "split 'nowhere' cannot be loaded"),
    ],
)
def test_a_data_set_without_the_split_or_column_is_named(local_dataset, change, key, expected):
    with pytest.raises(InvalidInput, match=expected) as caught:
        texts({**local_dataset, **change})
    assert caught.value.problems[0].path == key


def test_every_kind_is_one_of_the_design():
    assert set(KINDS) == {
        "python-docs", "python-code", "python-licences", "generated-math", "text", "jsonl", "parquet", "hf", "several",
    }  # fmt: skip


# documents that disappoint


@pytest.mark.parametrize(("kind", "content"), [("text", b" \n"), ("jsonl", b""), ("jsonl", b'\n{"text": " "}\n')])
def test_a_text_with_nothing_in_it_is_named_before_anything_starts(tmp_path, kind, content):
    (tmp_path / "a").write_bytes(content)
    problem = problem_of({"kind": kind, "path": f"{tmp_path}/*"})
    assert (problem.path, problem.value, problem.expected) == ("path", f"{tmp_path}/*", "holds no text")
    (tmp_path / "b").write_bytes(b'{"text": "now there is some"}')
    assert SOURCES.digest({"kind": kind, "path": f"{tmp_path}/*"})


def test_a_table_without_rows_is_named_too(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=pa.array([], pa.string()))
    assert problem_of({"kind": "parquet", "path": str(path)}).expected == "holds no text"


@pytest.mark.parametrize("read", [False, True])
def test_a_document_longer_than_memory_is_named_with_file_and_line(tmp_path, monkeypatch, read):
    """Before it is in memory: the limit is for each document, not for the file."""
    free = text_rows.BYTES_PER_BYTE * 3 * 2**20
    memory = type("Memory", (), {"available": free})
    monkeypatch.setattr("infra.text_rows.psutil.virtual_memory", lambda: memory)
    long = b"x" * (4 * 2**20)
    (tmp_path / "a.txt").write_bytes(long)
    problem = problem_of({"kind": "text", "path": f"{tmp_path}/a.txt"}, read)
    assert problem.value == f"{tmp_path}/a.txt"
    assert "longer than memory has room for" in problem.expected
    assert problem.remedy == "split it into several documents"
    lines = [b'{"text": "' + long[: 2**21] + b'"}'] * 4
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert len(texts({"kind": "jsonl", "path": f"{tmp_path}/a.jsonl"})) == 4
    (tmp_path / "b.jsonl").write_bytes(b'\n{"text": "' + long + b'"}\n')
    assert problem_of({"kind": "jsonl", "path": f"{tmp_path}/b.jsonl"}, read).value == f"{tmp_path}/b.jsonl:2"


def test_a_table_that_memory_does_not_hold_is_named_with_its_rows(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", text=["one"])

    def refuse(*args, **kwargs):
        raise pa.ArrowMemoryError("malloc of size 99 failed")

    monkeypatch.setattr("infra.text_rows.pq.ParquetFile", refuse)
    problem = problem_of({"kind": "parquet", "path": str(path)})
    assert problem.value == f"{path}:rows from 0"
    assert "malloc of size 99 failed" in problem.expected


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_lines_are_whole_wherever_the_file_is_cut_for_reading(tmp_path, monkeypatch, ends):
    monkeypatch.setattr(text_rows, "CHUNK_BYTES", 7)
    lines = [json.dumps({"text": f"né {number}" * number}, ensure_ascii=False).encode() for number in range(1, 9)]
    (tmp_path / "a.jsonl").write_bytes(ends.join(lines))
    documents = list(SOURCES.read({"kind": "jsonl", "path": f"{tmp_path}/a.jsonl"}))
    assert [document.text for document in documents] == [f"né {number}" * number for number in range(1, 9)]
    assert documents[-1].source == "a.jsonl:8"
