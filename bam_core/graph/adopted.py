"""An expert that somebody else trained, as a stage: `adopted.<name>`, which `bam adopt` fills and no run can make.

Its key is made of the foreign artifact's identity and of our own seed's key, so a recipe finds it only for the seed
that it was accepted for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bam_core.graph.key import key12
from bam_core.graph.lineage import origin_of
from bam_core.graph.record import Record
from bam_core.graph.stage import Stage, kind_of

KIND = "adopted"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
NAME_RULE = "a name has 1 to 64 letters, digits, '-' and '_', and does not start with '-'"


def adopted_name(name: str) -> str:
    """The stage of an adopted expert."""
    return f"{KIND}.{name}"


def adopted_stage(config: Mapping[str, Any], version: int) -> Stage:
    """config: of `adopted_config`. version: of the function `adopt` in the table of stage kinds."""
    return Stage(adopted_name(config["name"]), "adopt", version, config, {"seed": "seed"})


def adopted_config(name: str, foreign: Record) -> dict[str, Any]:
    """All that defines the adopted artifact besides our seed."""
    return {"name": name, "digest": foreign.digest, "origin": dict(vars(foreign.ref))}


def is_adopted(stage: str) -> bool:
    return kind_of(stage) == KIND


def origin_words(record: Record) -> str | None:
    """`expert.law@0123456789ab of s3://their/store`, or None for what was made here."""
    origin, store = origin_of(record), record.provenance.get("adopted_from")
    if origin is None:
        return None
    return f"{origin.stage}@{key12(origin.key)} of {store if isinstance(store, str) else 'an unknown store'}"
