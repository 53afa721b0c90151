"""The documents hold together, without Sphinx: links and anchors, navigation, generated pages, names of code.

Links to other sites are not followed: a test needs no network.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bam_core.graph.record import Record
from bam_core.graph.runs import Run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CODE_FOLDERS = ("bam", "bam_core", "infra", "pipelines", "tests", "docs")
FOLDERS = (*CODE_FOLDERS, "examples")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SOURCES = [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
DRAWINGS = sorted((DOCS / "pictures").glob("*.svg"))
NO_PAGES = {DOCS / "performance" / "notes.md"}
"""Text that a generated page takes in."""

FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"`(\w+)` (?:of|in) `((?:[a-z_]+/)*[a-z_0-9]+\.py)`")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def anchors(path: Path) -> frozenset[str]:
    """Of a page's headings, as GitHub makes them, and Sphinx after it."""
    seen: dict[str, int] = {}
    found = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text())):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
    return frozenset(found)


def broken(page: Path) -> Iterator[str]:
    for link in LINK.findall(CODE.sub("``", FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One `code` heading\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#one-code-heading) [c](there.md#twice-1) [d](https://else.where) `[e](in-code.md)`\n"
        "```\n[f](in-a-block.md)\n```\n[g](gone.md) [h](there.md#gone) [i](#gone)\n"
    )
    assert [problem.partition(":")[0] for problem in broken(page)] == ["gone.md", "there.md#gone", "#gone"]


def listed(page: Path) -> Iterator[Path]:
    """The pages in the navigation below a page."""
    for block in TOCTREE.findall(page.read_text()):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                pattern = (page.parent / line).relative_to(DOCS).as_posix() + ".md"
                yield from (path for path in DOCS.rglob("*.md") if fnmatch(name_in_docs(path), pattern))


def name_in_docs(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def test_every_page_is_in_the_navigation() -> None:
    reached = {DOCS / "index.md"}
    while more := {page for known in reached for page in listed(known)} - reached:
        reached |= more
    assert sorted(map(name_of, set(DOCS.rglob("*.md")) - reached - NO_PAGES)) == []


def test_generated_pages_are_current() -> None:
    command = [sys.executable, "docs/tools/write.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def files_named(name: str) -> list[Path]:
    return (
        [ROOT / name] if (ROOT / name).is_file() else [path for path in SOURCES if path.as_posix().endswith(f"/{name}")]
    )


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/deviations.md", "docs/method.md"])
def test_names_of_code_are_in_the_files_that_are_named(page: str) -> None:
    wrong = [
        f"{name} of {file}"
        for name, file in NAMED.findall((ROOT / page).read_text())
        if not any(re.search(rf"\b{name}\b", path.read_text()) for path in files_named(file))
    ]
    assert wrong == []


@pytest.mark.parametrize("drawing", DRAWINGS, ids=name_of)
def test_drawing_is_described_readable_in_the_dark_and_names_what_is_there(drawing: Path) -> None:
    root = ElementTree.parse(drawing).getroot()
    tag = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{tag}title")
    assert root.findtext(f"{tag}desc")
    assert "prefers-color-scheme: dark" in (root.findtext(f"{tag}style") or "")
    for text in root.iter(f"{tag}text"):
        words = text.text or ""
        folder = ""
        for file, name in re.findall(r"((?:[a-z_]+/)*[a-z_]+\.py)(?:: (\w+))?", words):
            folder, path = (file.rpartition("/")[0], file) if "/" in file else (folder, f"{folder}/{file}")
            assert (ROOT / path).is_file(), words
            assert name in (ROOT / path).read_text(), words


@pytest.mark.parametrize("of", [Record, Run])
def test_the_page_on_files_names_every_field(of: type) -> None:
    text = (DOCS / "reference" / "files.md").read_text()
    assert [name for name in of.__dataclass_fields__ if f"`{name}`" not in text] == []
