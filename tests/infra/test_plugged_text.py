"""Text of a plug-in's kind of source: read as any other, and its faults are said with its distribution's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bam_core.errors import InvalidInput
from bam_core.plugins import SOURCES
from bam_core.protocols import Document
from infra.sources import TextSources
from tests.plugin_kit import Visible, install, visible

__all__ = ["visible"]

SOURCE = """
from bam_core.errors import InvalidInput, Problem
from bam_core.protocols import Document

class Wiki:
    def digest(self, options):
        if "lang" not in options:
            raise InvalidInput("source", [Problem("lang", None, "is missing")])
        return {"en": "one", "de": "two"}[options["lang"]]

    def read(self, options):
        yield "first"
        yield Document("second", "page 2")
        if options.get("torn"):
            yield 3

wiki = Wiki()
"""


@pytest.fixture
def sources(tmp_path: Path, visible: Visible) -> TextSources:
    entries = {SOURCES: {"acme.wiki": "acme_wiki:wiki", "acme.half": "acme_wiki:Document"}}
    visible(install(tmp_path, "bam-acme", "0.3", entries, {"acme_wiki": SOURCE}))
    return TextSources()


def spec(**options: object) -> dict[str, object]:
    return {"kind": "acme.wiki", "options": options}


def test_documents_and_digest(sources: TextSources) -> None:
    read = list(sources.read(spec(lang="en")))
    assert read == [Document("first", "acme.wiki 0"), Document("second", "page 2")]
    digests = {lang: sources.digest(spec(lang=lang)) for lang in ("en", "de")}
    assert len(set(digests.values())) == 2
    assert all(len(digest) == 64 for digest in digests.values())
    assert digests["en"] == sources.digest(spec(lang="en", other=1))


def test_faults(sources: TextSources) -> None:
    with pytest.raises(InvalidInput, match=r"options.lang: is missing"):
        sources.digest(spec())
    with pytest.raises(InvalidInput, match=r"kind of source acme.wiki of bam-acme 0.3 failed: KeyError: 'fr'"):
        sources.digest(spec(lang="fr"))
    with pytest.raises(InvalidInput, match=r"of bam-acme 0.3 failed: a document must be text, not 3"):
        list(sources.read(spec(torn=True)))
    with pytest.raises(InvalidInput, match=r"acme.half of bam-acme 0.3 is not what it must be.*lacks digest and read"):
        sources.digest({"kind": "acme.half"})
    with pytest.raises(InvalidInput, match=r"path: '/x': unknown key of acme.wiki"):
        sources.digest({"kind": "acme.wiki", "path": "/x"})
