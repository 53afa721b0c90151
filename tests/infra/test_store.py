"""The store on a local folder and on `memory://`, which is like an object store: no rename, no folders."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bam_core.errors import ArtifactDamaged, BamError, StoreError, UsageError
from bam_core.graph.record import InputRef, Record, artifact_digest
from infra.storage import ray_storage
from infra.store import ArtifactStore, hash_outputs, resolve

KEY, OTHER_KEY = "ab" * 32, "cd" * 32
FILES = {"model.safetensors": b"weights", "train/00000.arrow": b"rows", "config.json": b"{}"}


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    memory = fsspec.filesystem("memory")
    yield f"memory://{tmp_path.name}"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture
def store(uri: str) -> ArtifactStore:
    return ArtifactStore(uri)


def write(store: ArtifactStore, uri_path: str, data: bytes) -> None:
    """Change a file of a store from outside."""
    with fsspec.open(f"{store.uri}/{uri_path}", "wb") as file:
        file.write(data)


def files(store: ArtifactStore) -> set[str]:
    fs, root = fsspec.url_to_fs(store.uri)
    return {name.removeprefix(root + "/") for name in fs.find(root)}


def commit(
    store: ArtifactStore,
    contents: dict[str, bytes] = FILES,
    *,
    stage: str = "expert.law",
    key: str = KEY,
    ended: float = 2.0,
) -> Record:
    with store.scratch(stage, key) as folder:
        for path, data in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        outputs = store.hash_outputs(folder)
        record = Record(
            stage=stage,
            key=key,
            payload={"config": {"lr": 0.5}},
            inputs={"seed": InputRef("seed", OTHER_KEY, "d")},
            outputs=outputs,
            digest=artifact_digest(outputs),
            metrics={"loss": 1.5},
            provenance={"git_commit": None},
            started=1.0,
            ended=ended,
            attempt=1,
        )
        store.commit(folder, record)
    return record


PLACE = f"artifacts/expert.law/{KEY[:12]}"


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


def test_a_commit_that_stops_half_way_is_no_artifact(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            patch.setattr(store._storage, "put", stopping(store._storage.put))
            patch.setattr(store._storage, "write_atomic", stopping(store._storage.write_atomic))
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

    monkeypatch.setattr(store._storage, "put", refuse)
    monkeypatch.setattr(store._storage, "remove", refuse)
    again = commit(store, ended=7.0)
    assert ArtifactStore(uri).record("expert.law", KEY) == again


def test_forced_again_with_other_files_leaves_none_of_the_old(store: ArtifactStore) -> None:
    commit(store)
    again = commit(store, {"model.safetensors": b"WEIGHTS", "config.json": b"{}", "new.json": b"1"})
    assert store.record("expert.law", KEY) == again
    assert store.verify(again) == []
    assert files(store) == {
        f"{PLACE}/{p}" for p in ("model.safetensors", "config.json", "new.json", "record.json")
    }


def test_an_equal_size_is_not_taken_for_equal_bytes(store: ArtifactStore) -> None:
    record = commit(store)
    write(store, f"{PLACE}/model.safetensors", b"w3ights")
    assert store.verify(record) == ["output model.safetensors has other bytes than recorded: sha256 differs"]
    commit(store)
    assert store.verify(record) == []


def test_the_record_goes_before_any_file_changes(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)
    seen = []
    put = store._storage.put

    def watching(file: Path, path: str) -> None:
        seen.append(store.record("expert.law", KEY))
        put(file, path)

    monkeypatch.setattr(store._storage, "put", watching)
    commit(store, {"model.safetensors": b"other", "config.json": b"{}"})
    assert seen == [None]


def test_what_a_commit_refuses(store: ArtifactStore, tmp_path: Path) -> None:
    record = commit(store)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ArtifactDamaged, match=r"output config\.json is missing"):
        store.commit(folder, record)
    assert store.verify(record) == []
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(BamError, match="'link' is a link"):
        hash_outputs(folder)


@pytest.mark.parametrize("name", ["record.json", "lease.json", "attempts/0001/log.txt", "scratch-1/x"])
def test_the_stores_own_names_are_no_outputs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(BamError, match="the store's own"):
        hash_outputs(tmp_path)


def edited(change: dict[str, Any]) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | change).encode()


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("model.safetensors", None, "expert.law@abababababab: output model.safetensors is missing"),
        ("train/00000.arrow", None, "output train/00000.arrow is missing"),
        ("model.safetensors", lambda data: data[:-1], "output model.safetensors has 6 bytes, not 7"),
        ("record.json", lambda data: data[:100], "expert.law@abababababab: record.json is not JSON"),
        ("record.json", lambda data: b"\xff\xfe", "record.json is not JSON"),
        ("record.json", lambda data: b"", "record.json is not JSON"),
        ("record.json", lambda data: b"[]", "not a record of this version of bam"),
        ("record.json", lambda data: b"{}", "not a record of this version of bam"),
        ("record.json", edited({"schema": 99}), "schema 99; this version of bam reads 1"),
        ("record.json", edited({"payload": 3}), "not a record of this version of bam"),
        ("record.json", edited({"ended": "late"}), "not a record of this version of bam"),
        ("record.json", edited({"key": OTHER_KEY}), "its record is of expert.law@cdcd"),
        ("record.json", edited({"stage": "seed"}), "its record is of seed@abab"),
        ("record.json", edited({"outputs": []}), "lists outputs that do not have its digest"),
        (
            "record.json",
            edited({"outputs": [{"path": "../../x", "size": 1, "sha256": "0"}]}),
            "leaves the artifact's folder",
        ),
        ("record.json", edited({"outputs": [{"path": 5, "size": 1, "sha256": "0"}]}), "not a record"),
    ],
)
def test_a_damaged_artifact_is_named_never_read(
    store: ArtifactStore, path: str, change: Callable[[bytes], bytes] | None, words: str
) -> None:
    commit(store)
    fs, root = fsspec.url_to_fs(f"{store.uri}/{PLACE}")
    if change is None:
        fs.rm_file(f"{root}/{path}")
    else:
        write(store, f"{PLACE}/{path}", change(fs.cat_file(f"{root}/{path}")))
    with pytest.raises(ArtifactDamaged, match=re.escape(words)):
        store.record("expert.law", KEY)


def test_verify_names_every_bad_file(store: ArtifactStore) -> None:
    record = commit(store)
    write(store, f"{PLACE}/model.safetensors", b"Weights")
    write(store, f"{PLACE}/config.json", b"")
    fs, root = fsspec.url_to_fs(f"{store.uri}/{PLACE}")
    fs.rm_file(f"{root}/train/00000.arrow")
    assert store.verify(record) == [
        "output config.json has 0 bytes, not 2",
        "output model.safetensors has other bytes than recorded: sha256 differs",
        "output train/00000.arrow is missing",
    ]


def test_a_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = ArtifactStore(f"memory://{tmp_path.name}")
    record = commit(store)
    write(store, f"{PLACE}/model.safetensors", b"w3ights")
    with pytest.raises(ArtifactDamaged, match="downloaded files differ from their record"):
        store.localize(record)
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    write(store, f"{PLACE}/model.safetensors", b"weights")
    folder = store.localize(record)
    fs, root = fsspec.url_to_fs(store.uri)
    fs.rm(root, recursive=True)
    assert store.localize(record) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"


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


@pytest.mark.parametrize("stage", ["", ".", "..", "a/b", "../x", "a..b", ".a", "a b", "a\n"])
def test_a_stages_name_never_leaves_its_folder(store: ArtifactStore, stage: str) -> None:
    with pytest.raises(UsageError, match="cannot be a stage's name"):
        store.record(stage, KEY)


def test_a_key_is_hex(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="is not a key"):
        store.record("seed", "../../../../etc")


def test_a_store_can_be_sent_to_another_process(store: ArtifactStore) -> None:
    record = commit(store)
    assert pickle.loads(pickle.dumps(store)).records() == [record]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "the store's URI is empty"),
        ("nope://x", "Protocol not known: nope"),
    ],
)
def test_an_unknown_store(uri: str, words: str) -> None:
    with pytest.raises(StoreError, match=re.escape(words)):
        ArtifactStore(uri)


USES: dict[str, Callable[[ArtifactStore], object]] = {
    "check_writable": ArtifactStore.check_writable,
    "record": lambda store: store.record("seed", KEY),
    "lease_info": lambda store: store.lease_info("seed", KEY),
    "acquire": lambda store: store.acquire("seed", KEY, "me"),
    "scratch": lambda store: store.scratch("seed", KEY).__enter__(),
    "attempt": lambda store: store.attempt_dir("seed", KEY, 1),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("below", ["", "/store"])
def test_a_file_in_the_way(tmp_path: Path, use: str, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="file"):
        USES[use](ArtifactStore(f"{tmp_path}/file{below}"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def nobody() -> Iterator[None]:
    """For a test that runs as root, who may write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.parametrize("use", ["check_writable", "acquire", "scratch", "attempt"])
def test_a_folder_without_permission(tmp_path: Path, use: str, request: pytest.FixtureRequest) -> None:
    tmp_path.chmod(0o500)
    request.getfixturevalue("nobody")
    with pytest.raises(StoreError, match="check the permissions"):
        USES[use](ArtifactStore(str(tmp_path / "store")))


def test_secrets_in_a_uri_are_not_shown() -> None:
    with pytest.raises(StoreError) as caught:
        ArtifactStore("nope://user:secret@host/bucket")
    assert "secret" not in str(caught.value)


def test_a_full_disk_says_what_to_do(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = commit(store)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infra.storage._write_synced", full)
    monkeypatch.setattr(type(store._storage.fs), "pipe_file", full)
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        store.commit(store.localize(record), replace(record, ended=9.0))


def test_ray_gets_a_folder_in_its_own_form(store: ArtifactStore) -> None:
    """A path without a scheme beside a filesystem, and no filesystem for a local folder."""
    filesystem, parent, name = ray_storage(store.training_uri("seed", KEY))
    assert name == f"seed-{KEY[:12]}"
    if filesystem is None:
        assert parent == f"{store.uri}/training"
        return
    assert parent == f"/{store.uri.removeprefix('memory://')}/training"
    filesystem.create_dir(f"{parent}/{name}")
    with filesystem.open_output_stream(f"{parent}/{name}/checkpoint") as file:
        file.write(b"x")
    assert files(store) == {f"training/{name}/checkpoint"}
