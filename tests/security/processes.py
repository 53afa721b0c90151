"""A training that was killed, and so left checkpoints."""

from __future__ import annotations

from tests.e2e.kit import Place
from tests.faults.processes import KillPoint, Process


def killed_in_training(place: Place, stage: str) -> Place:
    """`place` after a `bam run` was killed as it began the third checkpoint of `stage`."""
    process = Process(
        place, "run", str(place.recipe), "--until", stage, kill=KillPoint("os.rename", f"{stage}-*/*/step-000015")
    )
    assert process.end() == -9, process.err
    assert list(place.store.glob(f"training/{stage}-*/*/step-*"))
    return place
