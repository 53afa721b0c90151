"""A store to test: on a local folder, on `memory://` (no rename, no folders), and on a real S3 server.

Import the fixtures `uri` and `store`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from bam_core.graph.record import InputRef, Record, artifact_digest
from infra.store import ArtifactStore

KEY, OTHER_KEY = "ab" * 32, "cd" * 32
FILES = {"model.safetensors": b"weights", "train/00000.arrow": b"rows", "config.json": b"{}"}


@pytest.fixture(params=["local", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    if request.param == "s3":
        yield request.getfixturevalue("s3").uri(tmp_path.name)
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
    fs, root = fsspec.url_to_fs(store.uri, use_listings_cache=False)
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
