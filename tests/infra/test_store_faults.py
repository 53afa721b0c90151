"""Damaged artifacts, hostile names and bad places: named with a remedy, never read, nothing left behind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from store_kit import KEY, OTHER_KEY, PLACE, commit, store, uri, write

from bam_core.errors import ArtifactDamaged, BamError, StoreError, UsageError
from bam_core.graph.record import record_checksum
from infra.store import ArtifactStore, hash_outputs

__all__ = ["store", "uri"]  # fixtures


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


def edited(change: dict[str, Any], *, sealed: bool = True) -> Callable[[bytes], bytes]:
    """sealed: with the checksum of what it says now, as somebody who means it would write it."""

    def write(data: bytes) -> bytes:
        content = json.loads(data) | change
        return json.dumps(content | ({"checksum": record_checksum(content)} if sealed else {})).encode()

    return write


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
        ("record.json", edited({"metrics": {"loss": 0.1}}, sealed=False), "its checksum differs"),
        ("record.json", edited({"schema": 99}), "schema 99; this version of bam reads 1"),
        ("record.json", edited({"payload": 3}), "not a record of this version of bam"),
        ("record.json", edited({"ended": "late"}), "not a record of this version of bam"),
        ("record.json", edited({"ended": 10**400}), "not a record of this version of bam"),
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


@pytest.mark.parametrize("stage", ["", ".", "..", "a/b", "../x", "a..b", ".a", "a b", "a\n"])
def test_a_stages_name_never_leaves_its_folder(store: ArtifactStore, stage: str) -> None:
    with pytest.raises(UsageError, match="cannot be a stage's name"):
        store.record(stage, KEY)


def test_a_key_is_hex(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="is not a key"):
        store.record("seed", "../../../../etc")


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


def test_a_file_where_a_stages_folder_should_be_is_no_lease(store: ArtifactStore) -> None:
    """It raises the same FileExistsError as a lease that another run holds."""
    if store.uri.startswith("s3:"):
        pytest.skip("S3 has no folders: both can be there")
    commit(store)
    write(store, "artifacts/seed", b"mine")
    with pytest.raises(StoreError, match="a part of this path is a file"):
        store.acquire("seed", KEY, "me")


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
    if store.uri.startswith("s3:"):
        pytest.skip("a bucket does not fill up")
    record = commit(store)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infra.storage._write_synced", full)
    monkeypatch.setattr(type(store.storage.fs), "pipe_file", full)
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        store.commit(store.localize(record), replace(record, ended=9.0))
