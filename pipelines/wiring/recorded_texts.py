"""Whether the texts that an artifact was made from can still be read, and are the same (`bam verify --sources`).

Where a text lies is in no record, as it enters no key. The run that made the artifact says it, if it is on record and
gave an absolute path; a text that comes with bam, or is made from numbers, needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput
from bam_core.graph.lineage import RawSource, raw_sources
from bam_core.graph.record import Record
from infra.hub_text import is_folder
from infra.provenance import HIDDEN
from infra.sources import KINDS, TextSources
from infra.store import ArtifactStore

NOWHERE = "where it lies is not on record"


class RecordedTexts:
    """The texts of one store's artifacts; each is read once."""

    def __init__(self, store: ArtifactStore) -> None:
        self._recipes = {run.name: run.recipe for run in store.runs.all()}
        self._digests: dict[tuple[tuple[str, str], ...], str | InvalidInput] = {}

    def check(self, record: Record) -> tuple[list[str], list[str]]:
        """(faults, what cannot be checked), in words, of the texts that this stage read itself."""
        faults, cannot = [], []
        config = record.payload.get("config")
        recipe = self._recipes.get(str(record.provenance.get("run")), {})
        for source in raw_sources(config if isinstance(config, Mapping) else {}):
            where = f"text of {source.domain}"
            spec, why = _readable(source, recipe)
            digest = why or self._digest(spec)
            if isinstance(digest, InvalidInput):
                reasons = "; ".join(str(problem) for problem in digest.problems)
                cannot.append(f"{where}: cannot be read here: {reasons}")
            elif why:
                cannot.append(f"{where}: {why}")
            elif digest != source.digest:
                faults.append(f"{where}: has digest {digest[:12]} now, and was read with {source.digest[:12]}")
        return faults, cannot

    def _digest(self, spec: Mapping[str, Any]) -> str | InvalidInput:
        name = tuple(sorted((key, str(value)) for key, value in spec.items()))
        if name not in self._digests:
            try:
                self._digests[name] = TextSources().digest(spec)
            except InvalidInput as error:
                self._digests[name] = error
        return self._digests[name]


def _readable(source: RawSource, recipe: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The source's spec with its path, and why it cannot be read, if so."""
    spec, said = dict(source.spec), _source(recipe, source.domain)
    if "sources" not in spec:
        return _placed(spec, said)
    several = said if isinstance(said, list) else []
    if len(several) != len(spec["sources"]):
        return spec, NOWHERE
    placed = [_placed(dict(one), where) for one, where in zip(spec["sources"], several, strict=True)]
    return spec | {"sources": [one for one, _ in placed]}, next((why for _, why in placed if why), "")


def _placed(spec: dict[str, Any], said: Any) -> tuple[dict[str, Any], str]:
    """said: the source in the recipe."""
    kind = KINDS.get(str(spec.get("kind")))
    if kind is not None and "path" not in kind.needs:
        return spec, ""
    path = said.get("path") if isinstance(said, Mapping) else None
    each = path if isinstance(path, list) else [path]
    known = [one for one in each if isinstance(one, str) and HIDDEN not in one]
    if not each or len(known) < len(each):
        return spec, NOWHERE
    if any(_is_relative(one, spec.get("kind")) for one in known):
        return spec, "its run gave a relative path, which says nothing here"
    return spec | {"path": path}, ""


def _is_relative(path: str, kind: Any) -> bool:
    is_local = "://" not in path and (kind != "hf" or is_folder(path))
    return is_local and not Path(path).expanduser().is_absolute()


def _source(recipe: Mapping[str, Any], name: str) -> Any:
    """The source, or the list of several, of a domain, or of a text under `discover`.

    Of the latter, too, where a domain is one of its clusters.
    `DOMAIN.valid` is a domain's held-out text; no domain has a point in its name.
    """
    domain, _, is_valid = name.partition(".")
    if is_valid:
        return _part(_part(recipe, "domains"), domain).get("valid")
    found = _part(_part(recipe, "domains"), name).get("source")
    if found and not (isinstance(found, Mapping) and "of" in found):
        return found
    divided = str(found.get("of")) if found else name
    return _part(_part(recipe, "discover"), divided).get("source")


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}
