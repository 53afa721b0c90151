"""What a look at files tells: their kind, how much text, and the columns that have it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bam_core.errors import InvalidInput
from infra.hub_looking import look_at_hub
from infra.text_files import find_files
from infra.text_looking import look_at_files, pattern_of

ROWS = [
    {"id": n, "title": "t" * 10, "body": "é" * 50, "chat": [{"role": "user", "content": "x" * 14}], "in": {"a": "y"}}
    for n in range(100)
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(n: int = 1) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS * n).encode()


def test_text_is_counted_packed_or_not(here):
    (here / "a.txt").write_bytes(b"x" * 1000)
    (here / "b.txt.gz").write_bytes(gzip.compress(b"x" * 900))
    packed = (here / "b.txt.gz").stat().st_size
    looked = look_at_files(["a.txt", "b.txt.gz"])
    assert (looked.kind, looked.n_bytes, looked.columns) == ("text", 1000 + 3 * packed, {})
    assert [Path(file).name for file in looked.files] == ["a.txt", "b.txt.gz"]


def test_columns_of_json_lines_with_their_text(here):
    (here / "a.jsonl").write_bytes(lines())
    (here / "b.json").write_bytes(lines(9))
    looked = look_at_files("*.json*")
    assert looked.kind == "jsonl"
    assert looked.columns == pytest.approx({"title": 10_000, "body": 100_000, "chat": 20_000, "in.a": 1000}, rel=0.02)


def test_columns_of_parquet_with_their_text(here):
    pq.write_table(pa.Table.from_pylist(ROWS), here / "a.parquet", use_dictionary=False)
    looked = look_at_files("a.parquet")
    assert looked.kind == "parquet"
    assert set(looked.columns) == {"title", "body", "chat"}
    assert looked.columns["body"] == pytest.approx(100 * 104, rel=0.05)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["a.txt", "b.txt"], ["d/*.txt"]),
        (["a.txt", "in/b.txt", "in/c.md"], ["d/**/*.md", "d/**/*.txt"]),
        (["a.jsonl", "b.jsonl.gz"], ["d/*.jsonl", "d/*.jsonl.gz"]),
        (["LICENCE", "b.txt"], ["d/*"]),
        (["a.b.txt", ".hidden.pdf"], ["d/*.txt"]),
    ],
)
def test_a_folder_is_its_files(here, names, patterns):
    for name in names:
        (here / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "d" / name).write_text("text")
    assert pattern_of("d/") == patterns
    kept = [name for name in names if not name.startswith(".")]
    assert {Path(file.path).relative_to(here / "d").as_posix() for file in find_files(patterns)} == set(kept)


def test_a_folder_whose_name_is_like_a_glob(here):
    (here / "a[1]*").mkdir()
    (here / "a[1]*" / "b.txt").write_text("text")
    assert [Path(file.path).name for file in find_files(pattern_of("a[1]*"))] == ["b.txt"]


@pytest.mark.parametrize(
    ("files", "path", "says"),
    [
        ({"a.csv": b"a,b\n"}, "a.csv", "no source reads .csv (make it Parquet: python -c"),
        ({"a.pdf": b"%PDF"}, "a.pdf", "write its text to .txt"),
        ({"a.tar.gz": b"\x1f\x8b"}, "a.tar.gz", "unpack it"),
        ({"a.txt": b"x", "b.jsonl": b"{}"}, "*", "several kinds: 1 of text, 1 of jsonl"),
        ({"a.txt": b""}, "a.txt", "every file of it is empty"),
        ({"a.txt": b"caf\xe9 au lait"}, "a.txt", "must be UTF-8"),
        ({"a.txt.gz": b"\x1f\x8b\x08 no more"}, "a.txt.gz", "is cut or damaged"),
        ({"a.json": b'[\n {"text": "a"}]'}, "a.json", "is one list of JSON"),
        ({"a.jsonl": b'{"text": 1}\n'}, "a.jsonl", "no column of text in its first rows; it has text"),
        ({"a.jsonl": b"\n\n"}, "a.jsonl", "empty lines alone"),
        ({"a.jsonl": b"text\n"}, "a.jsonl", "must be one JSON object per line"),
        ({"a.parquet": b"PAR1"}, "a.parquet", "must be a Parquet file"),
        ({"a.txt": b"version https://git-lfs.github.com/spec/v1\n"}, "a.txt", "pointer of git-LFS"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_remedy(here, files, path, says):
    for name, data in files.items():
        (here / name).write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        look_at_files(path)
    assert says in str(caught.value)


def test_parquet_without_text(here):
    pq.write_table(pa.table({"n": [1, 2]}), here / "a.parquet")
    with pytest.raises(InvalidInput, match="has no column of text; it has n"):
        look_at_files("a.parquet")


def test_a_data_set_that_was_saved(here):
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list([{"body": "some text", "n": n, "chat": ROWS[0]["chat"]} for n in range(50)])
    datasets.DatasetDict({"test": rows}).save_to_disk(here / "saved")
    datasets.enable_progress_bars()
    looked, split = look_at_hub("./saved")
    assert (looked.kind, set(looked.columns), split) == ("hf", {"body", "chat"}, "test")
    assert looked.columns["body"] > 450


def test_a_data_set_that_the_hub_does_not_have_is_named(monkeypatch):
    import huggingface_hub

    def refuse(*args: object, **options: object) -> None:
        raise OSError("404: no such data set")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(InvalidInput, match=r"no/where.*cannot be resolved: 404"):
        look_at_hub("no/where")


def test_a_data_set_of_the_hub_by_what_it_says_of_itself(monkeypatch):
    from types import SimpleNamespace

    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "n": datasets.Value("int64")})
    info = datasets.DatasetInfo(features=features, splits={"train": {"name": "train", "num_bytes": 123}})
    asked = []

    def builder(*args: object, **options: object) -> SimpleNamespace:
        asked.append((args, options))
        return SimpleNamespace(info=info)

    monkeypatch.setattr("infra.hub_looking.resolve_commit", lambda path, revision: "c" * 40)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    looked, split = look_at_hub("org/name", "sub")
    assert (looked.columns, split) == ({"text": 123}, "train")
    assert asked == [(("org/name", "sub"), {"revision": "c" * 40})]
