"""Checkpoints that a recipe imports, for `bam_core.protocols.Sources`: where they are, and what identifies them.

A place is what a plan found, `{kind: model, path: DIR}` or `{kind: hub-model, id: ID, revision: COMMIT}`, so that every
node opens the content that was planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra import hub_models

FOLDER, HUB = "model", "hub-model"
KINDS = frozenset({FOLDER, HUB})


def place_of(source: str, revision: str | None) -> tuple[dict[str, Any], Path]:
    """The place of a folder or hub id as a person gives it, and the local folder. Raises InvalidInput."""
    found = hub_models.locate(source, revision)
    if found.commit is None:
        folder = found.folder.expanduser().absolute()
        return {"kind": FOLDER, "path": str(folder)}, folder
    return {"kind": HUB, "id": source, "revision": found.commit}, found.folder


def absolute_source(source: str) -> str:
    """A folder's path as it is seen from any other folder; an id of the hub as it is."""
    return source if hub_models.is_hub_id(source) else str(Path(source).expanduser().absolute())


def digest(place: Mapping[str, Any]) -> str:
    """Identity of a place's content: of a hub's its commit, of a folder's a hash over those of its files."""
    return hub_models.digest(*_named(place))


def folder(place: Mapping[str, Any]) -> Path:
    """A local folder with its files. Raises InvalidInput."""
    return hub_models.locate(*_named(place)).folder


def _named(place: Mapping[str, Any]) -> tuple[str, str | None]:
    return (place["path"], None) if place["kind"] == FOLDER else (place["id"], place["revision"])
