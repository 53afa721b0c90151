"""`adopted.<name>`: an expert that somebody else trained. `bam adopt` puts it into the store; no run makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.errors import UsageError
from bam_core.protocols import StageContext


def run(context: StageContext) -> Mapping[str, Any]:
    """Raises UsageError: a plan reuses an adopted expert or refuses the recipe, so a run comes here only when the
    seed came out with other bytes than the expert was adopted for."""
    name = context.config["name"]
    seed = context.records["seed"]
    raise UsageError(
        f"the expert {name!r} was trained elsewhere and was not adopted for this seed, {seed.stage}@{seed.key[:12]} "
        f"with digest {seed.digest[:12]}: give one that branched from it, `bam adopt {name} URI --replace`"
    )
