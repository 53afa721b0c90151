"""Live figures of a running stage: `progress.json` for the terminal, MLflow for the curves. Never raises.

Sent to worker processes, so it holds plain values and a tracker that can be pickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_core.protocols import Metrics, Tracker


@dataclass(frozen=True)
class LiveLog:
    """attempt: the attempt's folder; it may not exist on another machine, where only MLflow hears."""

    attempt: Path
    tracker: Tracker
    handle: Mapping[str, Any]

    def __call__(self, step: int, metrics: Metrics) -> None:
        with suppress(OSError):
            partial = self.attempt / ".progress.json"
            partial.write_text(json.dumps({"step": step, "at": time.time(), **metrics}))
            partial.replace(self.attempt / "progress.json")
        self.tracker.log(self.handle, step, {name: value for name, value in metrics.items() if name != "total_steps"})
