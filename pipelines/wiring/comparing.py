"""Two artifacts of a store beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bam_core.graph import refs
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.graph.diff import Difference


def compare(left: str, right: str, settings: Settings) -> Difference:
    """Why they differ. Raises UsageError unless each names one artifact."""
    from bam_core.graph import diff
    from bam_core.graph.lineage import lineage
    from infra.adopting import foreign_records

    store = open_store(settings)
    records = store.records()
    keys = [refs.resolve(ref, records).key for ref in (left, right)]
    foreign = foreign_records(store, records)
    return diff.compare(*(lineage(records, key, "up", foreign) for key in keys))
