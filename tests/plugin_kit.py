"""Distributions with plug-ins, as pip would leave them: a folder for `sys.path`, made without pip."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bam_core import plugins

Entries = Mapping[str, Mapping[str, str]]
"""Group -> name -> `module:attribute`."""


def install(
    site: Path, distribution: str, version: str | None, entries: Entries, files: Mapping[str, str] | None = None
) -> Path:
    """version: None for metadata that has lost it. files: name of a module -> its source."""
    info = site / f"{distribution.replace('-', '_')}-{version or 0}.dist-info"
    info.mkdir(parents=True)
    said = f"Version: {version}\n" if version is not None else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n{said}")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in names.items()) for group, names in entries.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for name, source in (files or {}).items():
        (site / f"{name}.py").write_text(source)
    return site


Visible = Callable[[Path], None]


@contextmanager
def visible_sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visible]:
    """Puts a folder on `sys.path`, and forgets afterwards what was found and imported there."""
    sites: list[Path] = []

    def show(site: Path) -> None:
        sites.append(site)
        monkeypatch.syspath_prepend(str(site))
        plugins.forget()

    plugins.forget()
    yield show
    monkeypatch.undo()
    plugins.forget()
    for name, module in list(sys.modules.items()):
        if any(Path(getattr(module, "__file__", None) or "/").is_relative_to(site) for site in sites):
            del sys.modules[name]


@pytest.fixture
def visible() -> Iterator[Visible]:
    with pytest.MonkeyPatch.context() as monkeypatch, visible_sites(monkeypatch) as show:
        yield show
