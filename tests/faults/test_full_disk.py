"""A store that is full or cannot be written: it is named, nothing committed is lost, the same command continues."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from tests.e2e.kit import Place

IN_SMALL_FILE_SYSTEM = """
mount -t tmpfs -o size=$1 none store || exit 77
shift
"$@" > first.out 2> first.err
echo $? > first.status
mount -o remount,size=64m store
"$@" > second.out 2> second.err
echo $? > second.status
cp -r store kept
"""
"""The same command twice: in a file system of a given size, then with room. What it makes stays in `kept`."""

ENOUGH_FOR = [
    pytest.param("400k", id="an expert's weights"),
    pytest.param("70k", id="a shard", marks=pytest.mark.long),
    pytest.param("220k", id="the seed's checkpoints", marks=pytest.mark.long),
    pytest.param("900k", id="all but the end", marks=pytest.mark.long),
]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs `unshare` to mount a file system of its own")
@pytest.mark.parametrize("size", ENOUGH_FOR)
def test_a_full_file_system_stops_a_run_and_the_same_command_continues(
    empty: Place, finished: Place, tmp_path: Path, size: str
) -> None:
    empty.store.mkdir()
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_SMALL_FILE_SYSTEM, "sh", size]
    command = [str(Path(sys.executable).with_name("bam")), *empty.words("run", str(empty.recipe))]
    ended = subprocess.run([*shell, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    if ended.returncode in (1, 77):
        pytest.skip(f"no file system of its own for a test here: {ended.stderr.strip()}")

    texts = {name: (tmp_path / name).read_text() for name in ("first.out", "first.err", "second.out", "second.err")}
    assert (tmp_path / "first.status").read_text().strip() == "1", texts["first.err"]
    assert "No space left on device" in texts["first.err"]
    assert str(empty.store) in texts["first.err"]
    assert "run the same command: nothing committed is lost" in texts["first.err"]
    assert "Traceback" not in texts["first.err"]

    assert (tmp_path / "second.status").read_text().strip() == "0", texts["second.err"]
    done, reused = _stages(texts["first.out"], "done"), _stages(texts["second.out"], "reused")
    assert done
    assert reused == done
    assert Place(empty.recipe, tmp_path / "kept").perplexity() == finished.perplexity()


@pytest.mark.parametrize("n", range(1, 6))
def test_no_room_for_the_n_th_file_of_a_commit(
    up_to: Callable[..., Place], finished: Place, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """The disk fills while outputs are moved into place: no record claims what is not there."""
    place, move, moved = up_to("tokenizer", "data.*", "seed"), storage._move_local, []

    def full(file: Path, target: Path) -> None:
        moved.append(target)
        if len(moved) == n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move(file, target)

    monkeypatch.setattr(storage, "_move_local", full)
    answer = place.run("--only", "expert.law")
    assert answer.status == 1
    assert f"{moved[-1]}: cannot write: No space left on device; free some space and run the same command" in answer.err
    assert not place.is_done("expert.law")
    monkeypatch.undo()
    assert place.run("--only", "expert.law").status == 0
    assert place.record("expert.law")["outputs"] == finished.record("expert.law")["outputs"]


def test_a_commit_that_found_no_room_keeps_the_training(
    up_to: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    steps: list[int] = []
    monkeypatch.setattr(storage, "_move_local", _no_room)
    assert place.run("--only", "expert.law").status == 1
    monkeypatch.undo()
    assert [path.name for path in sorted(place.store.glob("training/*/*/step-*"))] == ["step-000010", "step-000015"]

    from bam_core.train import loop

    step = loop.accumulate_gradient

    def counted(*arguments: Any) -> Any:
        steps.append(1)
        return step(*arguments)

    monkeypatch.setattr(loop, "accumulate_gradient", counted)
    assert place.run("--only", "expert.law").status == 0
    assert len(steps) == 5, "it continued from step 15 of 20"


def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(empty: Place) -> None:
    (empty.recipe.parent / "file").write_text("not a folder")
    in_a_file = Place(empty.recipe, empty.recipe.parent / "file" / "store")
    answer = in_a_file.run()
    assert answer.status == 2
    assert str(in_a_file.store) in answer.err
    assert "choose another --store" in answer.err
    assert answer.out == ""
    assert list(empty.recipe.parent.glob("store*")) == []


def test_a_read_only_store_is_refused_but_can_be_read(done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, who may run the tests: so what others see is played."""
    monkeypatch.setattr(storage.tempfile, "TemporaryFile", _read_only)
    answer = done.run("--force", "seed")
    assert answer.status == 2
    assert f"{done.store}: cannot write: Read-only file system; check the permissions" in answer.err
    assert set(done.run().actions().values()) == {"reuse"}
    assert done.bam("verify", "seed").status == 0


def _stages(lines: str, state: str) -> set[str]:
    """Stages that plain lines of a display (`00:01  seed  done in 2s`) call so."""
    words = (line.split() for line in lines.splitlines())
    return {line[1] for line in words if len(line) > 2 and line[2] == state}


def _no_room(file: Path, target: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_only(**options: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
