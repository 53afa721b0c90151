"""What is known of a search's trials outlives the process that found it out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bam_core.errors import StoreError
from infra.storage import Storage
from infra.trials import Notes


def test_an_end_is_read_again_and_takes_the_checkpoints_with_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "step-000001").mkdir(parents=True)
    Notes(str(tmp_path)).ended("a", "stopped", [3.0, 2.5], 7.0)
    again = Notes(str(tmp_path)).of("a").end("a")
    assert (again.status, again.losses, again.seconds) == ("stopped", (3.0, 2.5), 7.0)
    assert not (tmp_path / "a").exists()


def test_checkpoints_that_cannot_be_removed_do_not_end_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(storage: Storage, path: str) -> None:
        raise StoreError(f"{path}: cannot remove")

    monkeypatch.setattr(Storage, "remove_tree", refuse)
    Notes(str(tmp_path)).ended("a", "finished", [3.0], 1.0)
    assert Notes(str(tmp_path)).of("a").status == "finished"
