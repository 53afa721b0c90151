"""A model's tensors against what its files say of them, and a mixture's against its sources, as they lie there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import BamError
from bam_core.graph.key import key12
from bam_core.graph.record import Record
from pipelines.stages import KINDS

if TYPE_CHECKING:
    from bam_core.upcycle.retrace import Retraced

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, AssertionError)
"""What reading a JSON file raises that is not what it should be."""


@dataclass(frozen=True)
class Source:
    """An artifact's folder, None where it cannot be read. whole: its files and its record are as they were written."""

    folder: Path | None
    whole: bool


def is_model(record: Record) -> bool:
    paths = {output.path for output in record.outputs}
    return "config.json" in paths and any(path.endswith(".safetensors") and "/" not in path for path in paths)


def retraced(record: Record, own: Source, inputs: Mapping[str, Source]) -> Retraced:
    """inputs: role -> what fills it. What follows from damage that is named where it lies is no fault here."""
    from bam_core.upcycle import retrace

    if own.folder is None:
        return retrace.Retraced(cannot=("its tensors were not read, as its files are damaged",))
    try:
        digests = retrace.digests_in(own.folder)
        faults = tuple(retrace.tensor_faults(own.folder, digests))
    except (BamError, *MALFORMED) as error:
        why = (f"its tensors cannot be read: {_words(error)}",)
        return retrace.Retraced(faults=why) if own.whole else retrace.Retraced(cannot=why)
    found = _from_sources(record, own, inputs, digests)
    by_digest = tuple(name for name in digests if name not in found.again)
    return replace(found, by_digest=by_digest, faults=faults + found.faults)


def _from_sources(record: Record, own: Source, inputs: Mapping[str, Source], digests: Mapping[str, str]) -> Retraced:
    """The tensors of a mixture, made again. Any other model was trained, and is not trained again."""
    from bam_core.upcycle import retrace

    function, version = str(record.payload.get("function")), record.payload.get("version")
    again = {"mix": retrace.retrace_mixture, "edit": retrace.retrace_edit}.get(function)
    if again is None or own.folder is None:
        return retrace.Retraced()
    if version != KINDS[function].version:
        known = f"version {version} of {function} made it, and this bam has {KINDS[function].version}"
        return retrace.Retraced(cannot=(f"its tensors were not made again: {known}",))
    sources: dict[str, Source] = {}
    try:
        roles = _roles(record, function)
        sources = {name: inputs[role] for name, role in roles.items()}
        folders = {name: source.folder for name, source in sources.items()}
        found = again(own.folder, record.payload["config"], folders, digests)
    except (BamError, *MALFORMED) as error:
        why = (f"its tensors cannot be made again: {_words(error)}",)
        blameless = own.whole and all(source.whole for source in sources.values())
        return retrace.Retraced(faults=why) if blameless else retrace.Retraced(cannot=why)
    faults, cannot = found.faults, found.cannot
    for name, tensors in found.changed.items():
        ref = record.inputs[roles[name]]
        what = f"{ref.stage}@{key12(ref.key)} has other bytes now than were read: {retrace.shortened(tensors)}"
        if sources[name].whole:
            faults += (what,)
        else:
            cannot += (f"{what}; it is damaged",)
    return replace(found, changed={}, faults=faults, cannot=cannot)


def _roles(record: Record, function: str) -> dict[str, str]:
    """Source -> the role that it fills, in the order in which the stage reads them."""
    if function == "edit":
        return {role: role for role in ("base", "expert") if role in record.inputs}
    from bam_core.upcycle.variants import Variant, variant_sources

    config: Mapping[str, Any] = record.payload["config"]
    roles = dict(config["experts"])
    return {expert: roles[expert] for expert in variant_sources(Variant.from_json(config["variant"]), tuple(roles))}


def _words(error: Exception) -> str:
    """On one line."""
    text = " ".join(str(error).split()) if isinstance(error, BamError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= 300 else f"{text[:297]}..."
