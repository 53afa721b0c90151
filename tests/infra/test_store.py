"""The store: what is committed is what is read, and a commit is all or nothing."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from store_kit import FILES, KEY, OTHER_KEY, PLACE, commit, files, store, uri, write

from infra.storage import ray_storage
from infra.store import ArtifactStore, resolve

__all__ = ["store", "uri"]  # fixtures


def test_what_is_committed_is_what_is_read(store: ArtifactStore) -> None:
    record = commit(store)
    assert store.record("expert.law", KEY) == record
    assert store.records() == [record]
    assert store.verify(record) == []
    folder = store.localize(record)
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert files(store) == {f"{PLACE}/{path}" for path in (*FILES, "record.json")}
    assert store.artifact_uri("expert.law", KEY) == f"{store.uri}/{PLACE}"


def test_reading_makes_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    assert store.record("seed", KEY) is None
    assert store.records() == store.records("seed") == []
    assert store.lease_info("seed", KEY) is None
    assert store.progress("seed", KEY) is store.error("seed", KEY) is None
    assert store.next_attempt("seed", KEY) == 1
    store.clear_training("seed", KEY)
    store.check_writable()
    assert list(tmp_path.iterdir()) == []
    assert files(store) == set()


def test_records_are_newest_last_and_skip_what_is_not_one(store: ArtifactStore) -> None:
    late = commit(store, ended=9.0)
    early = commit(store, stage="seed", ended=1.0)
    other = commit(store, stage="seed", key=OTHER_KEY, ended=5.0)
    write(store, "artifacts/seed/ffffffffffff/record.json", b"{")
    write(store, "artifacts/seed/eeeeeeeeeeee/record.json", json.dumps(early.to_json()).encode())
    assert store.records() == [early, other, late]
    assert store.records("seed") == [early, other]
    assert resolve("seed", store) == other
    assert resolve("seed@abab", store) == early


def test_a_commit_that_stops_half_way_is_no_artifact(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any number of writes: either the old artifact, or none; the next commit completes it."""
    steps = list(range(len(FILES) + 1))
    for stop in steps:
        left = [stop]

        def stopping(method: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return method(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(store.storage, "put", stopping(store.storage.put))
            patch.setattr(store.storage, "write_atomic", stopping(store.storage.write_atomic))
            with pytest.raises(KeyboardInterrupt):
                commit(store, {path: data + b"%d" % stop for path, data in FILES.items()})
        assert store.record("expert.law", KEY) is None
    record = commit(store)
    assert store.record("expert.law", KEY) == record
    assert store.verify(record) == []


def test_forced_again_with_equal_bytes_touches_no_file_but_the_record(
    uri: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)

    def refuse(*args: Any) -> None:
        raise AssertionError(f"touched {args}")

    monkeypatch.setattr(store.storage, "put", refuse)
    monkeypatch.setattr(store.storage, "remove", refuse)
    again = commit(store, ended=7.0)
    assert ArtifactStore(uri).record("expert.law", KEY) == again


def test_forced_again_with_other_files_leaves_none_of_the_old(store: ArtifactStore) -> None:
    commit(store)
    again = commit(store, {"model.safetensors": b"WEIGHTS", "config.json": b"{}", "new.json": b"1"})
    assert store.record("expert.law", KEY) == again
    assert store.verify(again) == []
    assert files(store) == {f"{PLACE}/{p}" for p in ("model.safetensors", "config.json", "new.json", "record.json")}


def test_an_equal_size_is_not_taken_for_equal_bytes(store: ArtifactStore) -> None:
    record = commit(store)
    write(store, f"{PLACE}/model.safetensors", b"w3ights")
    assert store.verify(record) == ["output model.safetensors has other bytes than recorded: sha256 differs"]
    commit(store)
    assert store.verify(record) == []


def test_the_record_goes_before_any_file_changes(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(store)
    seen = []
    put = store.storage.put

    def watching(file: Path, path: str) -> None:
        seen.append(store.record("expert.law", KEY))
        put(file, path)

    monkeypatch.setattr(store.storage, "put", watching)
    commit(store, {"model.safetensors": b"other", "config.json": b"{}"})
    assert seen == [None]


def test_attempts_are_counted_and_published(uri: str, store: ArtifactStore) -> None:
    first = store.attempt_dir("seed", KEY, store.next_attempt("seed", KEY))
    (first / "log.txt").write_text("hello")
    (first / "progress.json").write_text('{"step": 3}')
    store.close_attempt("seed", KEY, 1, {"type": "ValueError"})
    seen = ArtifactStore(uri)
    assert seen.next_attempt("seed", KEY) == 2
    assert seen.progress("seed", KEY) == {"step": 3}
    assert seen.error("seed", KEY) == {"type": "ValueError"}
    place = f"artifacts/seed/{KEY[:12]}/attempts"
    assert files(store) == {f"{place}/0001/{name}" for name in ("log.txt", "progress.json", "error.json")}

    second = store.attempt_dir("seed", KEY, 2)
    (second / "progress.json").write_text('{"step": ')  # its process was killed while writing
    store.close_attempt("seed", KEY, 2, None)
    assert seen.next_attempt("seed", KEY) == 3
    assert seen.progress("seed", KEY) is None
    assert seen.error("seed", KEY) is None


def test_attempts_survive_a_commit(store: ArtifactStore) -> None:
    store.close_attempt("expert.law", KEY, 1, {"type": "OSError"})
    commit(store)
    commit(store, {"config.json": b"{ }"})
    assert store.error("expert.law", KEY) == {"type": "OSError"}


def test_training_is_cleared(store: ArtifactStore) -> None:
    assert store.training_uri("seed", KEY) == f"{store.uri}/training/seed-{KEY[:12]}"
    write_there = f"training/seed-{KEY[:12]}/step-000100/model"
    kept = f"training/seed-{OTHER_KEY[:12]}/step-000100/model"
    for path in (write_there, kept):
        fs, root = fsspec.url_to_fs(store.uri)
        fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        write(store, path, b"x")
    store.clear_training("seed", KEY)
    assert files(store) == {kept}


def test_scratch_of_a_killed_process_is_cleared(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    left = tmp_path / "store" / PLACE / "scratch-of-a-killed-process"
    left.mkdir(parents=True)
    (left / "half").touch()
    with store.scratch("expert.law", KEY) as folder:
        assert list(folder.parent.iterdir()) == [folder]
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_a_store_can_be_sent_to_another_process(store: ArtifactStore) -> None:
    record = commit(store)
    assert pickle.loads(pickle.dumps(store)).records() == [record]


def test_ray_gets_a_folder_in_its_own_form(store: ArtifactStore) -> None:
    """A path without a scheme beside a filesystem, and no filesystem for a local folder."""
    filesystem, parent, name = ray_storage(store.training_uri("seed", KEY))
    assert name == f"seed-{KEY[:12]}"
    if filesystem is None:
        assert parent == f"{store.uri}/training"
        return
    scheme, _, place = store.uri.partition("://")
    assert parent == f"{'/' if scheme == 'memory' else ''}{place}/training"
    filesystem.create_dir(f"{parent}/{name}")
    with filesystem.open_output_stream(f"{parent}/{name}/checkpoint") as file:
        file.write(b"x")
    assert files(store) - {f"training/{name}"} == {f"training/{name}/checkpoint"}


def test_the_newest_of_other_keys_is_found_by_reading_few(
    uri: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.newest("seed", but=KEY) is None
    commit(store, stage="seed", key=KEY)
    assert store.newest("seed", but=KEY) is None
    other = commit(store, stage="seed", key=OTHER_KEY)
    write(store, "artifacts/seed/ffffffffffff/record.json", b"{")
    write(store, "artifacts/seed/eeeeeeeeeeee/record.json", json.dumps(other.to_json()).encode())
    assert store.newest("seed", but=KEY) == other
    if not uri.startswith("s3:"):  # whose times are whole seconds
        last = commit(store, stage="seed", key="12" * 32)
        reads: list[str] = []
        read = store.storage.read
        monkeypatch.setattr(store.storage, "read", lambda path: (reads.append(path), read(path))[1])
        assert store.newest("seed", but=KEY) == last
        assert len(reads) == 1


def test_live_figures_of_an_attempt_on_this_machine(store: ArtifactStore) -> None:
    """They are not in a remote store before the attempt is over."""
    assert store.progress("seed", KEY) is None
    folder = store.attempt_dir("seed", KEY, 1)
    (folder / "progress.json").write_text('{"step": 3}')
    assert store.progress("seed", KEY) == {"step": 3}


def test_a_training_on_this_machine_has_a_local_folder(store: ArtifactStore) -> None:
    folder = store.training_dir("seed", KEY)
    assert folder.is_absolute()
    (folder / "run" / "step-1").mkdir(parents=True)
    store.clear_training("seed", KEY)
    assert not folder.exists()
