"""Data sets: of a folder as of the hub, streamed or not, by split, template and filter; and a hub that is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import InvalidInput
from bam_core.protocols import Tally
from infra.sources import TextSources, absolute_path

SOURCES = TextSources()
ROWS = [
    {"text": f"text {n}", "lang": "en" if n % 2 else "de", "chat": [{"role": "user", "content": str(n)}]}
    for n in range(6)
]
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two splits, as people lay one out."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    made = tmp_path / "data"
    made.mkdir()
    for name, rows in (("train", ROWS), ("test", ROWS[:1])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield made
    datasets.enable_progress_bars()


def texts(path: Path, **keys: Any) -> list[str]:
    return [document.text for document in SOURCES.read({"kind": "hf", "path": str(path), **keys})]


def problem(keys: dict[str, Any], *, read: bool = True) -> Any:
    with pytest.raises(InvalidInput) as caught:
        list(SOURCES.read({"kind": "hf", **keys})) if read else SOURCES.digest({"kind": "hf", **keys})
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_read_streamed_or_not(folder, streaming):
    every = [row["text"] for row in ROWS]
    assert texts(folder, streaming=streaming) == every
    assert texts(folder, split="test", streaming=streaming) == every[:1]
    picked = {"template": "{lang}: {text}", "filter": {"lang": "en"}, "max_documents": 2}
    tally = Tally()
    found = SOURCES.read({"kind": "hf", "path": str(folder), "streaming": streaming, **picked}, tally)
    assert [document.text for document in found] == ["en: text 1", "en: text 3"]
    assert (tally.dropped, tally.stopped) == ({"filter.lang": 2}, "max_documents")
    assert texts(folder, column="chat", streaming=streaming, max_documents=1) == ["user: 0"]


def test_split_expressions_are_those_of_the_library(folder):
    assert texts(folder, split="train[1:3]") == ["text 1", "text 2"]
    assert texts(folder, split="train[:1]+test") == ["text 0", "text 0"]
    found = problem({"path": str(folder), "split": "train[:1]", "streaming": True})
    assert (found.path, found.remedy) == ("split", "max_documents reads the first ones only")


def test_a_folder_is_known_by_its_bytes_and_streaming_does_not_matter(folder, tmp_path):
    def digest(**keys: Any) -> str:
        return SOURCES.digest({"kind": "hf", "path": str(folder), **keys})

    before = digest()
    assert digest(streaming=True) == before
    assert len({before, digest(split="test"), digest(column="lang"), digest(name="x"), digest(max_documents=1)}) == 5
    moved = folder.rename(tmp_path / "moved")
    assert SOURCES.digest({"kind": "hf", "path": str(moved)}) == before
    (moved / "test.jsonl").write_text("{}\n")
    assert SOURCES.digest({"kind": "hf", "path": str(moved)}) != before


def test_what_was_saved_by_the_library_is_read_too(folder, tmp_path):
    import datasets

    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS[:n]) for name, n in (("train", 3), ("test", 1))})
    both.save_to_disk(tmp_path / "both")
    both["test"].save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "both", split="test") == texts(tmp_path / "one") == ["text 0"]
    assert "it has train, test" in problem({"path": str(tmp_path / "both"), "split": "dev"}).expected


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"column": "body"}, "column", "it has text, lang, chat"),
        ({"template": "{body}"}, "template", "has no field 'body'"),
        ({"filter": {"langs": "en"}}, "filter", "it has text, lang, chat"),
        ({"split": "dev"}, "path", "split 'dev' cannot be loaded"),
        ({"name": "other"}, "path", "cannot be loaded"),
    ],
)
def test_what_a_data_set_does_not_have_is_named(folder, change, path, expected):
    found = problem({"path": str(folder), **change})
    assert found.path == path
    assert expected in found.expected


def test_a_folder_that_is_none_is_not_looked_for_on_the_hub(tmp_path):
    for read in (False, True):
        found = problem({"path": f"{tmp_path}/none"}, read=read)
        assert "is no folder" in found.expected
    (tmp_path / "empty").mkdir()
    assert "empty folder" in problem({"path": f"{tmp_path}/empty"}, read=False).expected


def test_only_what_looks_like_a_folder_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"owner/name": "owner/name", "./data": f"{tmp_path}/data", "/data": "/data"}
    assert {path: absolute_path({"kind": "hf", "path": path}) for path in paths} == paths


def test_what_was_prepared_of_another_commit_is_refused(monkeypatch):
    """Offline, the library opens what it prepared last, whatever was asked for."""
    builder = type("Builder", (), {"hash": OTHER})()
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: builder)
    found = problem({"path": "owner/name", "revision": COMMIT})
    assert f"is not in the cache as of commit {COMMIT}, only as of {OTHER}" in found.expected


def test_a_data_set_that_is_not_there_offline_is_named_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = problem({"path": "owner/name", "revision": COMMIT})
    assert "cannot be loaded" in found.expected
    assert "offline" in found.remedy
    assert "40 hex digits" in problem({"path": "owner/name"}, read=False).remedy


def test_offline_a_branch_is_the_commit_that_the_cache_knows(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "datasets--owner--name"
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    pinned = SOURCES.digest({"kind": "hf", "path": "owner/name", "revision": COMMIT})
    assert SOURCES.digest({"kind": "hf", "path": "owner/name"}) == pinned
