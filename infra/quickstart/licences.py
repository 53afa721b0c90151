"""The prose of lawyers: licences and notices that installed packages carry, each passage once.

Licences repeat each other almost word for word. A paragraph counts as seen when a fifth of its runs of eight
words were seen before, so that what is later kept for validation was not read in training.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from bam_core.protocols import Document
from infra.quickstart.python_text import standard_library

VERSION = 1
"""Raised when the same files would give other text."""

PACKAGES = (
    *("aiohappyeyeballs", "aiohttp", "certifi", "databricks_sdk", "fonttools", "gitdb"),
    *("kiwisolver", "matplotlib", "numpy", "pandas", "pillow", "pyarrow"),
    *("scikit_learn", "scipy", "sympy", "torch", "tqdm"),
)
"""Those of what this project needs, without extras, that have a passage of their own. A fixed list, so that installing
something else beside them (the tools for tests, an extra) does not make this another text."""

LICENCE = re.compile(r"licen[cs]e|copying|copyright|notice", re.IGNORECASE)
WORD = re.compile(r"[a-z0-9]+")
RUN_WORDS = 8
SEEN_FRAC = 0.2
DOCUMENT_CHARS = 2000
"""Where a document ends: long enough for context, short enough that validation gets some of every licence."""
SHORTEST_DOCUMENT = 200


def licence_files(site: Path | None = None, library: Path | None = None) -> list[Path]:
    """Python's own licence and those in the packages' metadata, sorted by path."""
    sites = {site} if site else {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    own = [(library or standard_library()) / "LICENSE.txt"]
    metadata = [folder for site in sites for name in PACKAGES for folder in site.glob(f"{name}-*.dist-info")]
    named = [path for folder in metadata for path in folder.rglob("*") if LICENCE.search(path.name)]
    return [path for path in own + sorted(named) if path.is_file()]


def read_licences(site: Path | None = None, library: Path | None = None) -> Iterator[Document]:
    """Passages of about DOCUMENT_CHARS characters."""
    texts = {path.read_bytes().decode("utf-8", errors="replace"): path for path in licence_files(site, library)}
    seen: set[tuple[str, ...]] = set()
    for text in sorted(texts):
        passages = _passages(_unseen_paragraphs(text.replace("\r\n", "\n"), seen))
        for number, passage in enumerate(passages, start=1):
            if len(passage) >= SHORTEST_DOCUMENT:
                path = texts[text]
                yield Document(passage, f"{path.parent.name}/{path.name}, part {number}")


def _unseen_paragraphs(text: str, seen: set[tuple[str, ...]]) -> Iterator[str]:
    """Paragraphs that are mostly new; their runs of words join `seen`."""
    for paragraph in re.split(r"\n[^\S\n]*\n", text):
        words = WORD.findall(paragraph.lower())
        runs = {tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)}
        if runs and len(runs & seen) <= SEEN_FRAC * len(runs):
            seen |= runs
            yield paragraph.strip("\n")


def _passages(paragraphs: Iterator[str]) -> Iterator[str]:
    passage = ""
    for paragraph in paragraphs:
        passage += paragraph + "\n\n"
        if len(passage) >= DOCUMENT_CHARS:
            yield passage.rstrip() + "\n"
            passage = ""
    if passage:
        yield passage.rstrip() + "\n"
