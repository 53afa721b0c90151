"""Environment that Ray reads when it is imported or started; set before either."""

from __future__ import annotations

import os

COMMON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a group's end is noticed sooner than after the default 2 s
}
EMBEDDED = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts a laptop: one process less per group
    # The number of tokens that an FFN expert gets is new each step, and for each oneDNN would keep a compiled product:
    # with its default of 1024 a mixture of 3M parameters takes 1.15 GB, with 64 it takes 0.83 GB at the same speed.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}  # what the raylet says to every driver; it stays in Ray's own logs


FOR_WORKERS = (*COMMON, *EMBEDDED)
"""Read in Ray's own processes, on whatever machine: they travel with the job."""


def prepare(*, verbose: bool, embedded: bool) -> None:
    """Set what is not set yet: a person's own choice wins. embedded: this process starts its own Ray."""
    for name, value in (COMMON | (EMBEDDED if embedded else {}) | ({} if verbose else QUIET)).items():
        os.environ.setdefault(name, value)
