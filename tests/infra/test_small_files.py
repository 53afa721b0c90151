"""What MLflow is shown of an artifact is fetched whole, and the weights beside it are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from bam_core.errors import ArtifactDamaged
from infra.small_files import MAX_BYTES, SmallFiles, is_small
from infra.store import ArtifactStore
from tests.infra.store_kit import PLACE, commit, write

CONTENTS = {"model.safetensors": b"weights", "config.json": b"{}", "tables/a.csv": b"a,b\n"}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    if request.param == "local":
        yield ArtifactStore(str(tmp_path / "store"))
        return
    memory = fsspec.filesystem("memory")
    yield ArtifactStore(f"memory://{tmp_path.name}")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_the_small_files_are_here_while_they_are_needed(store: ArtifactStore) -> None:
    record = commit(store, CONTENTS)
    with SmallFiles(store) as folder_of:
        folder = folder_of(record)
        assert (folder / "config.json").read_bytes() == b"{}"
        assert (folder / "tables" / "a.csv").read_bytes() == b"a,b\n"
        assert (folder / "model.safetensors").exists() == store.storage.is_local
        assert folder_of(record) == folder
    assert folder.exists() == store.storage.is_local


@pytest.mark.parametrize("data", [b"[]", None])
def test_a_file_that_is_not_as_recorded_is_named(store: ArtifactStore, data: bytes | None) -> None:
    record = commit(store, CONTENTS)
    if data is None:
        store.storage.remove(f"{PLACE}/config.json")
    else:
        write(store, f"{PLACE}/config.json", data)
    with SmallFiles(store) as folder_of, pytest.raises(ArtifactDamaged, match=r"expert.law@abab.*config.json"):
        folder_of(record)


def test_what_is_small_is_what_a_person_reads(store: ArtifactStore) -> None:
    small = {output.path for output in commit(store, CONTENTS).outputs if is_small(output)}
    assert small == {"config.json", "tables/a.csv"}
    (large,) = commit(store, {"large.json": b" " * (MAX_BYTES + 1)}, key="ef" * 32).outputs
    assert not is_small(large)
