"""The one writer of files that a person asks for with `--out`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bam_core.errors import UsageError
from pipelines.cli.writing import write_text


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, there: bool) -> None:
    """Also when the target lies on another file system than the link: the new file grows beside the target."""
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "page.md", tmp_path / "link.md"
    link.symlink_to("middle.md")
    (tmp_path / "middle.md").symlink_to("far/page.md")
    if there:
        target.write_text("old")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link.md", "middle.md", "page.md"]


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    """As `--out /dev/stdout`: a file in its place would take it from everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "words")
        assert os.read(reader, 100) == b"words"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_file_that_cannot_be_replaced_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--readme .*: cannot be written: Is a directory"):
        write_text(tmp_path, "words", "--readme")
    with pytest.raises(UsageError, match=r"nowhere/page\.md: cannot be written: No such file or directory"):
        write_text(tmp_path / "nowhere" / "page.md", "words")
    assert list(tmp_path.iterdir()) == []
